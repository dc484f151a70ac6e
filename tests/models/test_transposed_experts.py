"""Experts that a model stores as (expert, in, out): their matrices, inputs, and the checkpoint that is written of them.

Shape suffixes: N sequences, T tokens, K tokens of an expert, E experts, O out, I in.
"""

import pytest
import torch
from calibrated import statistics_of
from transformers import AutoConfig, AutoModelForCausalLM

from selfprune.errors import ModelError
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig, Placement
from selfprune.models.units import n_row_groups, weight_view
from selfprune.prune import main as prune
from selfprune.pruners.weights.wanda import Wanda

WINDOWS_NT = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
EXPERTS = {"gpt_oss": "mlp.experts", "llama4_text": "feed_forward.experts"}


@pytest.fixture(params=EXPERTS)
def folder(request, tiny_tokenizer, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SIZES)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    model.save_pretrained(tmp_path / request.param)
    tiny_tokenizer.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def experts_of(loaded):
    return [unit for unit in loaded.units if EXPERTS[loaded.model.config.model_type] in unit.kind]


def inputs_of_experts(loaded, block):
    """Expert -> the tokens [K, I] that it is sent, by the arguments of its layer."""
    seen = {}

    def note(_, arguments):
        if len(arguments) == 1:
            seen.update({e: tokens_TI[tokens_TI.any(dim=1)] for e, tokens_TI in enumerate(arguments[0].view(4, -1, 64))})
        else:
            hidden_TI, chosen_TP = arguments[:2]
            seen.update({e: hidden_TI.reshape(-1, 64)[(chosen_TP == e).any(dim=1)] for e in range(4)})

    experts = loaded.model.get_submodule(f"model.layers.{block}.{EXPERTS[loaded.model.config.model_type]}")
    with experts.register_forward_pre_hook(note):
        loaded.model(input_ids=WINDOWS_NT)
    return seen


def test_matrices_are_views_and_the_model_does_not_notice(folder):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    loaded = load_model(ModelConfig(str(folder), device="cpu"))
    assert torch.equal(loaded.model(input_ids=WINDOWS_NT).logits, plain(input_ids=WINDOWS_NT).logits)
    for unit in experts_of(loaded):
        stored_EIO = plain.get_parameter(unit.name)
        assert n_row_groups(loaded.model, unit) == 4
        assert torch.equal(weight_view(loaded.model, unit).view(4, stored_EIO.shape[2], -1), stored_EIO.transpose(1, 2))
        weight_view(loaded.model, unit)[0].zero_()
        assert not loaded.model.get_parameter(unit.name)[0, :, 0].any()
    assert len(experts_of(loaded)) == 4


def test_each_expert_is_calibrated_on_the_tokens_that_it_is_sent(folder):
    loaded = load_model(ModelConfig(str(folder), device="cpu"))
    expected = inputs_of_experts(loaded, block=0)
    assert 0 < len(expected[0]) < WINDOWS_NT.numel()
    statistics = statistics_of(loaded, WINDOWS_NT, Wanda(), 4)
    sums_EI = statistics[experts_of(loaded)[0].name].sums_GI
    torch.testing.assert_close(sums_EI, torch.stack([expected[e].square().sum(dim=0) for e in range(4)]), rtol=1e-4, atol=1e-4)


def test_what_is_pruned_is_saved_as_the_architecture_stores_it(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sees the dog and the dog sees the cat. " * 200)
    options = [f"model.path={folder}", f"data.calibration={text}", "data.n_calibration=4", "data.n_tokens_per_window=16"]
    assert prune(["model=local", "data=files", *options, "budget.sparsity=0.5", f"output={tmp_path / 'pruned'}"]) == 0
    dense, pruned = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, tmp_path / "pruned"))
    kept, n_zero, n = [], 0, 0
    for name, weight in pruned.named_parameters():
        of_dense = dense.get_parameter(name)
        assert weight.shape == of_dense.shape
        kept.append(bool((weight == of_dense)[weight != 0].all()))
        if weight.ndim == 3:
            n_zero, n = n_zero + int((weight == 0).sum()), n + weight.numel()
            # Wanda takes as many of each row, which is a column of what is stored
            assert set((weight == 0).sum(dim=1).flatten().tolist()) == {weight.shape[1] // 2}
    assert all(kept)
    assert n_zero / n == 0.5


def test_they_must_lie_in_memory(folder):
    with pytest.raises(ModelError, match=r"experts are stored as \(expert, in, out\) .* give model.placement=WHOLE"):
        load_model(ModelConfig(str(folder), device="cpu", placement=Placement.STREAM))
