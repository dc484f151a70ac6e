"""What every pruner of heads and channels must do; every method in `pruners/structures` is found.

Shape suffixes: O out, C items, W columns per item, N sequences, T tokens.
"""

from typing import get_type_hints

import pytest
import torch

from selfprune.allocations.unit import Item
from selfprune.configs.methods import find_methods
from selfprune.configs.mistakes.expected_values import expectation
from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.structure_pruner import StructurePruner
from selfprune.pruners.structures.reap import REAP
from selfprune.pruners.structures.wanda_sp import WandaSP

PRUNERS = [method for method in find_methods("pruner").values() if issubclass(method, StructurePruner)]
N_OUT, N_ITEMS, WIDTH = 10, 12, 3
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gathered(pruner, weight_OCW, inputs_NTI):
    """Statistics of inputs, or of the gradients of a loss whose derivatives by the outputs are random."""
    if isinstance(pruner, REAP):
        # what each expert puts out of its own inputs, for tokens that are all sent to it by the weight one
        statistics = pruner.statistics(weight_OCW.shape[1], weight_OCW.shape[2], len(inputs_NTI))
        for inputs_TI in inputs_NTI:
            outputs_TOC = torch.einsum("tcw,ocw->toc", inputs_TI.reshape(len(inputs_TI), *weight_OCW.shape[1:]), weight_OCW)
            for expert, norm_T in enumerate(outputs_TOC.float().norm(dim=1).T):
                statistics.update(norm_T[:, None], expert)
        return statistics
    statistics = pruner.statistics(1, weight_OCW[0].numel(), len(inputs_NTI))
    for n, inputs_TI in enumerate(inputs_NTI):
        if pruner.needs_gradients:
            gradient_OI = normal(len(inputs_TI), len(weight_OCW), seed=n).to(inputs_TI.dtype).T @ inputs_TI
            pruner.see_gradient(statistics, weight_OCW, gradient_OI)
        else:
            statistics.update(inputs_TI)
    return statistics


def degenerate(weight_OCW, inputs_NTI):
    zero_OCW, dead_NTI = weight_OCW.clone(), inputs_NTI.clone()
    zero_OCW[:, 3], dead_NTI[..., :WIDTH] = 0, 0
    return {
        "normal": (weight_OCW, inputs_NTI),
        "zero matrix": (torch.zeros_like(weight_OCW), inputs_NTI),
        "zero item": (zero_OCW, inputs_NTI),
        "equal items": (torch.full_like(weight_OCW, 0.5), inputs_NTI[..., :1].expand_as(inputs_NTI)),
        "dead item": (weight_OCW, dead_NTI),
        "dead input": (weight_OCW, torch.zeros_like(inputs_NTI)),
        "one token": (weight_OCW, inputs_NTI[:1, :1]),
        "scales far apart": (weight_OCW, inputs_NTI * torch.logspace(-6, 6, inputs_NTI.shape[-1])),
    }


@pytest.mark.parametrize("method", PRUNERS)
class TestEveryStructurePruner:
    @pytest.mark.parametrize("width", [1, WIDTH])
    def test_exactly_as_many_items_go_as_are_asked_for_in_nested_order(self, method, width):
        weight_OCW, inputs_NTI = normal(N_OUT, N_ITEMS, width), normal(3, 5, N_ITEMS * width, seed=1)
        for dtype in DTYPES:
            pruner, before = method(), torch.ones(N_ITEMS, dtype=torch.bool)
            statistics = gathered(pruner, weight_OCW.to(dtype), inputs_NTI.to(dtype))
            pruner.prepare(statistics)
            ranks_C = pruner.ranks(weight_OCW.to(dtype), statistics)
            assert sorted(ranks_C.tolist()) == list(range(N_ITEMS))
            for n_pruned in range(N_ITEMS + 1):
                pruned = pruner.prune(weight_OCW.to(dtype), statistics, n_pruned)
                assert (pruned.kept.shape, pruned.n_removed) == ((N_ITEMS,), n_pruned)
                assert torch.equal(pruned.kept, ranks_C >= n_pruned)
                assert not (pruned.kept & ~before).any()
                before = pruned.kept
                if pruned.weight_OI is not None:
                    assert (pruned.weight_OI.dtype, pruned.weight_OI.shape) == (dtype, (N_OUT, N_ITEMS * width))
                    assert pruned.weight_OI.isfinite().all()
                    assert not pruned.weight_OI.reshape(weight_OCW.shape)[:, ~pruned.kept].any()

    def test_degenerate_weights_and_inputs_prune_exactly(self, method):
        cases = degenerate(normal(N_OUT, N_ITEMS, WIDTH), normal(3, 5, N_ITEMS * WIDTH, seed=1))
        for case, (weight_OCW, inputs_NTI) in cases.items():
            pruner = method()
            statistics = gathered(pruner, weight_OCW, inputs_NTI)
            pruner.prepare(statistics)
            assert pruner.prune(weight_OCW, statistics, 5).n_removed == 5, case

    def test_an_item_that_nothing_reads_goes_first(self, method):
        weight_OCW, inputs_NTI = normal(N_OUT, N_ITEMS, WIDTH), normal(3, 5, N_ITEMS * WIDTH, seed=1)
        weight_OCW[:, 7] = 0
        pruner = method()
        statistics = gathered(pruner, weight_OCW, inputs_NTI)
        pruner.prepare(statistics)
        assert pruner.prune(weight_OCW, statistics, 1).kept.tolist().index(False) == 7

    def test_what_is_not_finite_is_refused(self, method):
        weight_OCW, inputs_NTI = normal(N_OUT, N_ITEMS, WIDTH), normal(3, 5, N_ITEMS * WIDTH, seed=1)
        inputs_NTI[0, 0, 0] = torch.nan
        pruner = method()
        statistics = gathered(pruner, weight_OCW, inputs_NTI)

        def prune():
            pruner.prepare(statistics)
            pruner.prune(weight_OCW, statistics, 3)

        with pytest.raises(PruningError, match="finite"):
            prune()

    def test_a_count_out_of_range_is_refused(self, method):
        weight_OCW, inputs_NTI = normal(N_OUT, N_ITEMS, WIDTH), normal(3, 5, N_ITEMS * WIDTH, seed=1)
        pruner = method()
        statistics = gathered(pruner, weight_OCW, inputs_NTI)
        pruner.prepare(statistics)
        for n_pruned in (-1, N_ITEMS + 1):
            with pytest.raises(PruningError, match=f"cannot lose {n_pruned}; ask for 0 to {N_ITEMS}"):
                pruner.prune(weight_OCW, statistics, n_pruned)


def test_wanda_sp_is_the_sum_of_wandas_metric_over_an_item():
    weight_OCW, inputs_NTI = normal(2, 2, 2), normal(3, 5, 4, seed=1)
    statistics = gathered(WandaSP(), weight_OCW, inputs_NTI)
    expected = [0.0, 0.0]
    for o in range(2):
        for c in range(2):
            for w in range(2):
                squares = sum(float(x) ** 2 for x in inputs_NTI[..., 2 * c + w].flatten())
                expected[c] += abs(float(weight_OCW[o, c, w])) * (squares / 3) ** 0.5
    assert WandaSP().scores(weight_OCW, statistics).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("structures", [[], [Item.WEIGHT], [Item.CHANNEL, Item.WEIGHT]])
def test_what_is_no_structure_is_refused(structures):
    with pytest.raises(ConfigError, match=r"pruner\.structures must name what may go"):
        WandaSP(structures)


def test_widths_are_multiples_of_one_or_more():
    with pytest.raises(ConfigError, match=r"pruner\.multiple must be 1 or more, got 0"):
        WandaSP(multiple=0)


def test_a_list_of_structures_is_asked_for_by_their_names():
    asked = expectation(get_type_hints(WandaSP)["structures"], "pruner.structures", "HEAD")
    assert asked == "a list of WEIGHT, CHANNEL, HEAD_GROUP, EXPERT, as in pruner.structures=[WEIGHT,CHANNEL]"
