from contextlib import ExitStack

import pytest
import torch
from calibrated import statistics_of
from in_turn import in_turn
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from selfprune.errors import ModelError
from selfprune.models.blocks.calls import first_tensor
from selfprune.models.blocks.walk import walk_blocks
from selfprune.models.units import weight_view
from selfprune.pruners.weights.wanda import Wanda

MOES = ["mixtral", "qwen2_moe", "qwen3_moe"]
WINDOWS_NT = torch.randint(300, (7, 24), generator=torch.Generator().manual_seed(0))


def outputs_of_blocks(loaded, run):
    """What each block returned during a run, call by call."""
    outputs = [[] for _ in loaded.blocks]
    with ExitStack() as stack:
        for block, returned in zip(loaded.blocks, outputs, strict=True):
            hook = block.register_forward_hook(lambda *seen, returned=returned: returned.append(first_tensor(seen[2])))
            stack.callback(hook.remove)
        with torch.no_grad():
            run()
    return outputs


def check_walk(loaded, batch_size):
    def full_passes():
        for batch_NT in WINDOWS_NT.split(batch_size):
            loaded.model(input_ids=batch_NT, use_cache=False)

    def walk():
        for visit in walk_blocks(loaded, WINDOWS_NT, batch_size):
            visit.forward()

    n_batches = len(WINDOWS_NT.split(batch_size))
    for expected, walked in zip(outputs_of_blocks(loaded, full_passes), outputs_of_blocks(loaded, walk), strict=True):
        # before it walks, it makes a full pass per batch shape
        torch.testing.assert_close(torch.cat(walked[-n_batches:]), torch.cat(expected), rtol=0, atol=1e-6)


def n_hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@in_turn("batch_size", [3, 8])
def test_a_walk_gives_each_block_the_hidden_states_of_a_full_pass(batch_size, family, load_tiny):
    check_walk(load_tiny(family), batch_size)


@pytest.mark.parametrize("sliding", ["mistral", "gemma2", "gemma3_text"])
def test_a_walk_keeps_each_blocks_own_sliding_window(sliding, load_tiny, make_tiny_model):
    # Gemma 3 has five sliding blocks before each full one.
    size = {"num_hidden_layers": 6}
    loaded = load_tiny(sliding, sliding_window=8, **size)
    far = make_tiny_model(sliding, sliding_window=64, **size)
    assert not torch.allclose(loaded.model(input_ids=WINDOWS_NT).logits, far(input_ids=WINDOWS_NT).logits, atol=1e-6)
    check_walk(loaded, 3)


def test_units_are_visited_with_their_blocks(family, load_tiny):
    loaded = load_tiny(family)
    visited = []
    for visit in walk_blocks(loaded, WINDOWS_NT, 4):
        assert {unit.block for unit in visit.units} == {visit.index}
        visited += visit.units
        visit.forward()
    assert tuple(visited) == loaded.units


def test_a_block_may_be_run_again_after_a_change(load_tiny):
    loaded = load_tiny("llama")

    def walk():
        for visit in walk_blocks(loaded, WINDOWS_NT, 4):
            visit.forward()
            for unit in visit.units:
                weight_view(loaded.model, unit).mul_(0.5)
            visit.forward()

    walked = outputs_of_blocks(loaded, walk)[-1][-2:]
    expected = outputs_of_blocks(loaded, lambda: loaded.model(input_ids=WINDOWS_NT))[-1]
    torch.testing.assert_close(torch.cat(walked), torch.cat(expected), rtol=0, atol=1e-6)


def test_a_block_that_returns_no_hidden_states_is_refused():
    with pytest.raises(ModelError, match=r"must return one stream of hidden states \[sequences, tokens, width\], got dict"):
        first_tensor({"hidden": torch.zeros(1, 1, 1)})


@in_turn("batch_size", [3, 7])
def test_input_squares_equal_those_of_plain_hooks(batch_size, family, load_tiny):
    loaded = load_tiny(family)
    statistics = statistics_of(loaded, WINDOWS_NT, Wanda(), batch_size)
    assert statistics.keys() == {unit.name for unit in loaded.units}
    seen = {}
    for name, module in loaded.model.named_modules():
        if name in statistics and isinstance(module, nn.Linear | Conv1D):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].clone()}))
    loaded.model(input_ids=WINDOWS_NT)
    assert seen.keys() == {unit.name for unit in loaded.units if ".experts." not in unit.name}
    for name, hidden_NTI in seen.items():
        expected_I = hidden_NTI.double().flatten(0, -2).square().sum(dim=0) / len(WINDOWS_NT)
        torch.testing.assert_close(statistics[name].means(), expected_I.float()[None], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("moe", MOES)
def test_input_squares_of_experts_equal_those_of_their_routed_tokens(moe, load_tiny):
    loaded = load_tiny(moe)
    statistics = statistics_of(loaded, WINDOWS_NT, Wanda(), batch_size=3)
    hidden, logits = [], []
    for block in loaded.blocks:
        block.mlp.experts.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
        block.mlp.gate.register_forward_hook(lambda _, inputs, output: logits.append(output[0]))
    loaded.model(input_ids=WINDOWS_NT)
    activation = ACT2FN[loaded.model.config.hidden_act]
    for i, block in enumerate(loaded.blocks):
        experts = block.mlp.experts
        routed_KE = torch.zeros(WINDOWS_NT.numel(), 4).scatter(1, logits[i].topk(2, dim=-1).indices, 1).bool()
        assert routed_KE.sum() == 2 * WINDOWS_NT.numel()
        for name, inputs_of in (("gate_up_proj", False), ("down_proj", True)):
            expected = []
            for e in range(4):
                inputs_KI = hidden[i].reshape(WINDOWS_NT.numel(), -1)[routed_KE[:, e]]
                if inputs_of:
                    gate_KI, up_KI = (inputs_KI @ experts.gate_up_proj[e].T).chunk(2, dim=-1)
                    inputs_KI = activation(gate_KI) * up_KI
                expected.append(inputs_KI.double().square().sum(dim=0) / len(WINDOWS_NT))
            means_EI = statistics[f"model.layers.{i}.mlp.experts.{name}"].means()
            torch.testing.assert_close(means_EI, torch.stack(expected).float(), rtol=1e-5, atol=1e-12)


def test_calibration_leaves_the_model_as_it_was(family, load_tiny):
    loaded = load_tiny(family)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    statistics_of(loaded, WINDOWS_NT, Wanda(), batch_size=4)
    assert n_hooks(loaded.model) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())
