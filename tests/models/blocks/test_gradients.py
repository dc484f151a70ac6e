"""Gradients block by block against plain autograd through the whole model.

Shape suffixes: N sequences, T tokens, O out, I in, E experts.
"""

import weakref
from collections import Counter

import pytest
import torch
from calibrated import statistics_of

from selfprune.errors import PruningError
from selfprune.models.blocks.gradients import backward_blocks
from selfprune.models.model_config import DType
from selfprune.models.units import stored_weight, weight_matrix, weight_view
from selfprune.pruners.weights.obd import OBD
from selfprune.pruners.weights.taylor import Taylor
from selfprune.pruning.calibration import calibrate_blocks
from selfprune.pruning.sequential import prune_in_place

WINDOWS_NT = torch.randint(300, (3, 24), generator=torch.Generator().manual_seed(0))
METHODS = pytest.mark.parametrize("method", [Taylor, OBD])


def gradients_of(loaded, windows_NT, loss=None):
    """Unit name -> gradient, block by block."""
    found = {}
    calls = Counter()

    def take(unit, gradient_OI):
        found[unit.name] = gradient_OI.clone()
        calls[unit.name] += 1

    backward_blocks(loaded, windows_NT, take, loss and (lambda _, logits_NTV: loss(logits_NTV)))
    assert calls == Counter(unit.name for unit in loaded.units)
    return found


def plain_gradients(loaded, windows_NT, loss=None):
    """Unit name -> gradient of a loss, or of the library's own, in one graph."""
    weights = [stored_weight(loaded.model, unit).requires_grad_(True) for unit in loaded.units]
    with torch.enable_grad():
        output = loaded.model(input_ids=windows_NT, labels=windows_NT, use_cache=False)
        value = loss(output.logits) if loss else output.loss
    found = torch.autograd.grad(value, weights, materialize_grads=True)
    loaded.model.requires_grad_(False)
    return {unit.name: weight_matrix(loaded.model, unit, g) for unit, g in zip(loaded.units, found, strict=True)}


def assert_close(ours_OI, expected_OI):
    assert expected_OI.any()
    torch.testing.assert_close(ours_OI, expected_OI, rtol=1e-4, atol=1e-5 * float(expected_OI.abs().max()))


def halves(units):
    return {unit.name: unit.n_items // 2 for unit in units}


def test_gradients_equal_those_of_one_graph_through_the_whole_model(family, load_tiny):
    loaded = load_tiny(family)
    ours, expected = gradients_of(loaded, WINDOWS_NT), plain_gradients(loaded, WINDOWS_NT)
    assert ours.keys() == expected.keys()
    for unit in loaded.units:
        assert ours[unit.name].shape == weight_view(loaded.model, unit).shape
        assert_close(ours[unit.name], expected[unit.name])


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_gradients_of_another_loss_are_those_of_that_loss(family, load_tiny):
    loaded = load_tiny(family)
    dense_NTV = loaded.model(input_ids=WINDOWS_NT.flip(1)).logits.softmax(-1)

    def loss(logits_NTV):
        return -(dense_NTV * logits_NTV.log_softmax(-1)).sum()

    ours, expected = gradients_of(loaded, WINDOWS_NT, loss), plain_gradients(loaded, WINDOWS_NT, loss)
    default = gradients_of(loaded, WINDOWS_NT)
    for unit in loaded.units:
        assert_close(ours[unit.name], expected[unit.name])
        assert not torch.allclose(ours[unit.name], default[unit.name], rtol=0.1)


def test_the_model_is_left_as_it_was(family, load_tiny):
    loaded = load_tiny(family)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    logits_NTV = loaded.model(input_ids=WINDOWS_NT).logits
    gradients_of(loaded, WINDOWS_NT)
    for name, parameter in loaded.model.named_parameters():
        assert parameter.grad is None, name
        assert not parameter.requires_grad, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in loaded.model.modules())
    assert torch.equal(loaded.model(input_ids=WINDOWS_NT).logits, logits_NTV)


def test_it_works_where_gradients_are_switched_off(load_tiny):
    loaded = load_tiny("llama")
    expected = gradients_of(loaded, WINDOWS_NT)
    with torch.no_grad():
        for name, gradient_OI in gradients_of(loaded, WINDOWS_NT).items():
            assert torch.equal(gradient_OI, expected[name])
            assert not gradient_OI.requires_grad


def test_each_block_runs_once_forwards_and_once_more_for_its_own_graph(load_tiny):
    loaded = load_tiny("llama")
    runs = []
    for index, block in enumerate(loaded.blocks):
        block.mlp.register_forward_pre_hook(lambda *_, index=index: runs.append((index, torch.is_grad_enabled())))

    def take(unit, _):
        runs.append((unit.block, "gradient"))
        graph = [other.name for other in loaded.units if stored_weight(loaded.model, other).requires_grad]
        assert graph == []

    backward_blocks(loaded, WINDOWS_NT, take)
    of_units = [[(block, "gradient")] * 7 for block in range(2)]
    assert runs == [(0, False), (1, False), (1, True), *of_units[1], (0, True), *of_units[0]]


@pytest.mark.parametrize(
    ("family", "changes"),
    [("mixtral", {"num_local_experts": 16}), ("qwen2_moe", {"num_experts": 16}), ("qwen3_moe", {"num_experts": 16})],
)
def test_experts_that_no_token_reaches_have_gradients_of_zero(family, changes, load_tiny):
    # three tokens with two experts each, and one whose output nothing depends on
    loaded, window_NT = load_tiny(family, **changes), WINDOWS_NT[:1, :4]
    reached = [set() for _ in loaded.blocks]
    for block, of_block in zip(loaded.blocks, reached, strict=True):
        block.mlp.experts.register_forward_pre_hook(
            lambda _, inputs, of_block=of_block: of_block.update(inputs[1][:-1].flatten().tolist())
        )
    gradients = gradients_of(loaded, window_NT)
    for unit in loaded.units:
        if ".experts." in unit.name:
            alive_E = gradients[unit.name].view(16, -1).any(dim=1)
            assert 1 <= len(reached[unit.block]) <= 6
            assert set(alive_E.nonzero().flatten().tolist()) == reached[unit.block]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral"])
def test_scores_come_from_the_gradients_of_single_windows(family, load_tiny):
    loaded = load_tiny(family)
    of_windows = [plain_gradients(loaded, window_NT) for window_NT in WINDOWS_NT.split(1)]
    taylor, obd = (statistics_of(loaded, WINDOWS_NT, pruner, batch_size=2) for pruner in (Taylor(), OBD()))
    for unit in loaded.units:
        gradient_NOI = torch.stack([gradients[unit.name] for gradients in of_windows]).double()
        weight_OI = weight_view(loaded.model, unit)
        expected_OI = (gradient_NOI.mean(dim=0) * weight_OI).abs().float()
        assert_close(Taylor().scores(weight_OI, taylor[unit.name]), expected_OI)
        # the squares are averaged, not the gradients
        expected_OI = (gradient_NOI.square().mean(dim=0) * weight_OI.double().square() / 2).float()
        assert_close(OBD().scores(weight_OI, obd[unit.name]), expected_OI)


@METHODS
def test_the_statistics_come_block_by_block(method, load_tiny):
    loaded = load_tiny("llama")
    names = [[unit.name for unit in units] for units, _ in calibrate_blocks(loaded, WINDOWS_NT, method(), batch_size=2)]
    gathered = [list(statistics) for _, statistics in calibrate_blocks(loaded, WINDOWS_NT, method(), batch_size=2)]
    assert names == gathered == [[unit.name for unit in loaded.units if unit.block == block] for block in range(2)]


@METHODS
def test_the_gradients_of_a_block_that_was_handed_on_are_not_kept(method, load_tiny):
    loaded, handed_on = load_tiny("llama"), []
    for _, statistics in calibrate_blocks(loaded, WINDOWS_NT, method(), batch_size=2):
        assert all(gathered() is None for gathered in handed_on)
        handed_on = [weakref.ref(gathered) for gathered in statistics.values()]
    assert handed_on


@METHODS
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "gpt2", "qwen2_moe"])
def test_pruning_removes_exactly_what_the_dense_gradients_say(method, family, load_tiny):
    loaded, allocation = load_tiny(family), {}
    for i, unit in enumerate(loaded.units):
        allocation[unit.name] = (7, 0, unit.n_items, unit.n_items // 2, unit.n_items // 3)[i % 5]
    statistics = statistics_of(loaded, WINDOWS_NT, method(), batch_size=1)
    dense = {unit.name: weight_view(loaded.model, unit).clone() for unit in loaded.units}
    assert prune_in_place(loaded, WINDOWS_NT, method(), allocation, batch_size=2) == allocation
    for unit in loaded.units:
        mask_OI = method().prune(dense[unit.name], statistics[unit.name], allocation[unit.name]).kept
        assert torch.equal(weight_view(loaded.model, unit), dense[unit.name] * mask_OI)
        assert int((weight_view(loaded.model, unit) == 0).sum()) == allocation[unit.name]


@METHODS
def test_gradients_that_are_not_finite_name_the_unit(method, load_tiny):
    loaded = load_tiny("llama")
    loaded.model.get_input_embeddings().weight[WINDOWS_NT[1, 5]] = torch.nan
    with pytest.raises(PruningError, match=r"^model\.layers\.0\.self_attn\.q_proj: the scores of a unit are not finite"):
        prune_in_place(loaded, WINDOWS_NT, method(), halves(loaded.units), batch_size=2)


@METHODS
def test_a_model_in_half_precision_has_its_gradients_summed_in_fp32(method, load_tiny):
    loaded, wide = load_tiny("llama", DType.BFLOAT16), load_tiny("llama")
    ours, expected = (statistics_of(model, WINDOWS_NT, method(), batch_size=1) for model in (loaded, wide))
    for unit in loaded.units:
        assert ours[unit.name].mean().dtype is torch.float32
        difference_OI = ours[unit.name].mean() - expected[unit.name].mean()
        assert difference_OI.norm() < 0.1 * expected[unit.name].mean().norm()
