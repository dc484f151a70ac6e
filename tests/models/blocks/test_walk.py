import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from selfprune.errors import ModelError
from selfprune.models.blocks import walk
from selfprune.models.blocks.walk import nll_per_token
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig, Placement

WINDOWS_NT = torch.randint(5, 60, (5, 9), generator=torch.Generator().manual_seed(0))


def test_the_likelihood_of_a_walk_is_that_of_the_whole_model(family, tiny_model_folder, load_tiny, monkeypatch, tmp_path):
    whole = load_tiny(family)
    model = whole.model
    expected = cross_entropy(model(input_ids=WINDOWS_NT).logits[:, :-1].flatten(0, 1), WINDOWS_NT[:, 1:].flatten())
    # three positions at once, so that the last piece of a window is a shorter one
    monkeypatch.setattr(walk, "N_LOGITS_AT_ONCE", 3 * model.config.get_text_config().vocab_size + 1)
    streamed = load_model(ModelConfig(str(tiny_model_folder(family)), device="cpu", placement=Placement.STREAM), tmp_path)
    for loaded in (whole, streamed):
        assert nll_per_token(loaded, WINDOWS_NT, batch_size=2) == pytest.approx(float(expected), rel=1e-5), loaded.device


GEMMA_4 = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 0, "eos_token_id": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}  # fmt: skip


def gemma_4(tokenizer, folder, n_shared):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma4_text", **GEMMA_4, num_kv_shared_layers=n_shared)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(str(folder), device="cpu")


def test_every_batch_has_embeddings_of_its_own_where_blocks_take_such(tiny_tokenizer, tmp_path):
    loaded = load_model(gemma_4(tiny_tokenizer, tmp_path, n_shared=0))
    expected = cross_entropy(loaded.model(input_ids=WINDOWS_NT).logits[:, :-1].flatten(0, 1), WINDOWS_NT[:, 1:].flatten())
    assert nll_per_token(loaded, WINDOWS_NT, batch_size=2) == pytest.approx(float(expected), rel=1e-5)


BAMBA = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
}  # fmt: skip


@pytest.mark.parametrize("n_blocks", [2, 4])
def test_blocks_that_return_attention_weights_besides_are_walked(n_blocks, tiny_tokenizer, tmp_path):
    """With as many sequences in a batch as outputs are taken apart, one could be taken for the other."""
    config = AutoConfig.for_model("bamba", **BAMBA, num_hidden_layers=n_blocks)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(str(tmp_path), device="cpu"))
    expected = cross_entropy(loaded.model(input_ids=WINDOWS_NT).logits[:, :-1].flatten(0, 1), WINDOWS_NT[:, 1:].flatten())
    assert nll_per_token(loaded, WINDOWS_NT, batch_size=2) == pytest.approx(float(expected), rel=1e-5)


def test_blocks_that_share_keys_and_values_are_refused(tiny_tokenizer, tmp_path):
    with pytest.raises(ModelError, match=r"layers\.2 of Gemma4ForCausalLM needs more than hidden states"):
        load_model(gemma_4(tiny_tokenizer, tmp_path, n_shared=1))
