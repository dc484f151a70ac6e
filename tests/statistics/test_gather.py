"""Statistics that units share, and those of experts, against statistics of each unit alone.

Shape suffixes: N sequences, T tokens, O out, I in, E experts, K tokens.
"""

import pytest
import torch
from calibrated import statistics_of
from in_turn import in_turn
from torch import nn
from transformers.pytorch_utils import Conv1D

from selfprune.allocations.unit import Unit
from selfprune.errors import ModelError
from selfprune.models.units import n_row_groups, weight_view
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.pruners.weights.wanda import Wanda
from selfprune.statistics.gather import gather
from selfprune.statistics.input_gram import InputGram

WINDOWS_NT = torch.randint(300, (5, 24), generator=torch.Generator().manual_seed(0))
ATTENTION = ["q_proj k_proj v_proj", "o_proj"]
MLP = ["gate_proj up_proj", "down_proj"]
GROUPS = {
    "llama": [*ATTENTION, *MLP],
    "mistral": [*ATTENTION, *MLP],
    "qwen2": [*ATTENTION, *MLP],
    "qwen3": [*ATTENTION, *MLP],
    "gemma2": [*ATTENTION, *MLP],
    "gemma3_text": [*ATTENTION, *MLP],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "opt": ["q_proj k_proj v_proj", "out_proj", "fc1", "fc2"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "gpt2": ["c_attn", "c_proj", "c_fc", "c_proj"],
    # attention and feed-forward stand side by side behind one norm
    "falcon": ["query_key_value dense_h_to_4h", "dense", "dense_4h_to_h"],
    "mixtral": [*ATTENTION, "gate_up_proj", "down_proj"],
    "qwen2_moe": [*ATTENTION, "gate_up_proj", "down_proj", *MLP],
    "qwen3_moe": [*ATTENTION, "gate_up_proj", "down_proj"],
}


def maker(loaded):
    return lambda unit: InputGram(n_row_groups(loaded.model, unit), weight_view(loaded.model, unit).shape[1], len(WINDOWS_NT))


@torch.no_grad()
def gathered(loaded, units, batch_size=2):
    """Statistics from passes through the whole model."""
    with gather(loaded.model, units, maker(loaded)) as statistics:
        for batch_NT in WINDOWS_NT.split(batch_size):
            loaded.model(input_ids=batch_NT, use_cache=False)
    return statistics


def shared_names(statistics):
    """The unit names by the object that they share, in the order of the names."""
    groups = {}
    for name in statistics:
        groups.setdefault(id(statistics[name]), []).append(name)
    return sorted(sorted(group) for group in groups.values())


def n_hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_units_share_what_they_are_given_together_and_nothing_else(family, load_tiny):
    loaded = load_tiny(family)
    statistics = gathered(loaded, list(loaded.units))
    expected = sorted(kinds.split() for kinds in GROUPS[family] for _ in loaded.blocks)
    found = shared_names(statistics)
    assert sorted(sorted(name.rpartition(".")[2] for name in group) for group in found) == sorted(map(sorted, expected))
    blocks = {unit.name: unit.block for unit in loaded.units}
    assert all(len({blocks[name] for name in group}) == 1 for group in found)


def test_shared_statistics_equal_those_of_each_unit_alone(family, load_tiny):
    loaded = load_tiny(family)
    together = gathered(loaded, list(loaded.units))
    assert together.keys() == {unit.name for unit in loaded.units}
    for unit in loaded.units:
        alone = gathered(loaded, [unit])
        assert alone.keys() == {unit.name}
        assert torch.equal(together[unit.name].sums(), alone[unit.name].sums())
        assert together[unit.name].sums().any()


def test_gram_matrices_equal_those_of_plain_hooks(family, load_tiny):
    loaded, seen = load_tiny(family), {}
    statistics = statistics_of(loaded, WINDOWS_NT, SparseGPT(), batch_size=2)
    for name, module in loaded.model.named_modules():
        if name in statistics and isinstance(module, nn.Linear | Conv1D):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].clone()}))
    loaded.model(input_ids=WINDOWS_NT)
    assert seen.keys() == {unit.name for unit in loaded.units if ".experts." not in unit.name}
    for name, inputs_NTI in seen.items():
        inputs_KI = inputs_NTI.flatten(0, -2).double()
        expected_II = (inputs_KI.T @ inputs_KI).float()
        atol = 1e-5 * float(expected_II.abs().max())
        torch.testing.assert_close(statistics[name].sums(), expected_II[None], rtol=1e-4, atol=atol)


def test_hooks_go_with_the_context_and_with_an_error(family, load_tiny):
    loaded = load_tiny(family)
    make = maker(loaded)
    with gather(loaded.model, list(loaded.units), make) as statistics:
        assert n_hooks(loaded.model) == sum(".experts." not in unit.name for unit in loaded.units)
        loaded.model(input_ids=WINDOWS_NT)
    assert n_hooks(loaded.model) == 0
    sums = {name: gram.sums().clone() for name, gram in statistics.items()}
    loaded.model(input_ids=WINDOWS_NT)
    assert all(torch.equal(gram.sums(), sums[name]) for name, gram in statistics.items())
    broken = pytest.raises(ZeroDivisionError)
    with broken, gather(loaded.model, list(loaded.units), make) as after:
        raise ZeroDivisionError
    loaded.model(input_ids=WINDOWS_NT)
    assert n_hooks(loaded.model) == 0
    assert not any(gram.sums().any() for gram in after.values())


class Recorder:
    """Statistics that keep what they are fed."""

    def __init__(self):
        self.fed = []

    def update(self, inputs, row_group=0):
        self.fed.append((inputs.clone(), row_group))


class Branches(nn.Module):
    """Layers `a`, `b` and `c`, each run on the inputs that a pass names for it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3, bias=False) for _ in range(3))

    def forward(self, **inputs):
        for name, inputs_KI in inputs.items():
            getattr(self, name)(inputs_KI)


def branches(*passes, names="abc"):
    """The statistics of some passes, each a text such as `a1 b1 c2`: layers and the inputs that they are given."""
    inputs = {str(i): torch.full((2, 3), float(i)) for i in range(4)}
    model, units = Branches(), [Unit(name, 0, name, 9) for name in names]
    try:
        with torch.no_grad(), gather(model, units, lambda unit: Recorder()) as statistics:
            for text in passes:
                # new tensors in each pass, as in a model
                of_pass = {number: inputs_KI.clone() for number, inputs_KI in inputs.items()}
                model(**{layer: of_pass[number] for layer, number in text.split()})
    finally:
        assert n_hooks(model) == 0
    return statistics


def values(recorder):
    return [int(inputs_KI[0, 0]) for inputs_KI, _ in recorder.fed]


def test_what_is_shared_is_fed_once_a_pass():
    statistics = branches("a1 b1 c2", "a2 b2 c2", "a0 b0 c3")
    assert statistics["a"] is statistics["b"]
    assert statistics["c"] is not statistics["a"]
    assert values(statistics["a"]) == [1, 2, 0]
    assert values(statistics["c"]) == [2, 2, 3]


def test_equal_values_in_tensors_of_their_own_are_not_shared():
    model = Branches()
    with gather(model, [Unit(name, 0, name, 9) for name in "ab"], lambda unit: Recorder()) as statistics:
        model(a=torch.ones(2, 3), b=torch.ones(2, 3))
    assert statistics["a"] is not statistics["b"]
    assert values(statistics["a"]) == values(statistics["b"]) == [1]


def test_units_that_had_inputs_of_their_own_at_first_keep_statistics_of_their_own():
    statistics = branches("a1 b2", "a1 b1")
    assert statistics["a"] is not statistics["b"]
    assert (values(statistics["a"]), values(statistics["b"])) == ([1, 1], [2, 1])


@in_turn("later", ["a1 b2", "b1", "b1 a1"])
def test_sharing_that_ends_in_a_later_pass_is_refused(later):
    with pytest.raises(ModelError, match="b had the same input as a in one forward pass and another in the next"):
        branches("a1 b1", "a1 b1", later)


def test_a_layer_that_never_runs_saw_nothing():
    statistics = branches("a1", "a2")
    assert values(statistics["a"]) == [1, 2]
    assert statistics["b"].fed == statistics["c"].fed == []
    assert statistics.keys() == set("abc")


def test_only_the_named_units_are_watched():
    statistics = branches("a1 b1 c2", names="b")
    assert list(statistics) == ["b"]
    assert values(statistics["b"]) == [1]


class Experts(nn.Module):
    """Two experts in one parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(2, 4, 3))
        self.second = nn.Parameter(torch.randn(2, 3, 2))

    def forward(self, inputs_KI, routes, linear=nn.functional.linear):
        for expert in routes:
            gate_KO, up_KO = linear(inputs_KI, self.first[expert]).chunk(2, dim=-1)
            linear(gate_KO * up_KO, self.second[expert])


EXPERTS = [Unit("first", 0, "first", 24), Unit("second", 0, "second", 12)]


def test_every_expert_is_fed_its_own_inputs():
    model, inputs_KI = Experts().requires_grad_(False), torch.randn(5, 3)
    with gather(model, EXPERTS, lambda unit: Recorder()) as statistics:
        model(inputs_KI, [1])
        model(2 * inputs_KI, [0, 1])
    assert statistics["first"] is not statistics["second"]
    for name in ("first", "second"):
        assert [group for _, group in statistics[name].fed] == [1, 0, 1]
    for (fed_KI, _), factor in zip(statistics["first"].fed, (1, 2, 2), strict=True):
        assert torch.equal(fed_KI, factor * inputs_KI)
    gate_KO, up_KO = (inputs_KI @ model.first[1].T).chunk(2, dim=-1)
    torch.testing.assert_close(statistics["second"].fed[0][0], gate_KO * up_KO)


def test_experts_that_hide_their_inputs_are_refused():
    model = Experts()
    with (
        pytest.raises(ModelError, match="the inputs of the fused experts first, second could not be seen"),
        gather(model, EXPERTS, lambda unit: Recorder()),
    ):
        model(torch.randn(5, 3), [0, 1], linear=lambda inputs_KI, weight_OI: torch.einsum("ki,oi->ko", inputs_KI, weight_OI))


def test_wanda_gives_shared_units_one_statistic_too(load_tiny):
    statistics = statistics_of(load_tiny("llama"), WINDOWS_NT, Wanda(), batch_size=2)
    assert len({id(gathered) for gathered in statistics.values()}) == 8


def test_a_layer_that_comes_late_does_not_inherit_what_it_never_saw():
    statistics = branches("a1", "a2 b2")
    assert (values(statistics["a"]), values(statistics["b"])) == ([1, 2], [2])


def test_units_that_share_must_run_equally_often():
    with pytest.raises(ModelError, match="b had the same input as a in one forward pass and another in the next"):
        branches("a1 b1", "a2")


def test_a_tensor_that_was_changed_in_place_is_another_input():
    model, inputs_KI = Branches(), torch.ones(2, 3)
    with gather(model, [Unit(name, 0, name, 9) for name in "ab"], lambda unit: Recorder()) as statistics:
        model.a(inputs_KI)
        model.b(inputs_KI.add_(1))
    assert (values(statistics["a"]), values(statistics["b"])) == ([1], [2])
