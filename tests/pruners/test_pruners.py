"""What every pruner of single weights must do; all are found. `pytest tests/pruners/test_pruners.py -k NAME` looks at one.

Shape suffixes: O out, I in, N sequences, T tokens, E experts.
"""

import dataclasses
import functools
import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_turn import in_turn

from selfprune.configs.methods import find_methods
from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.selection import lowest_round_robin
from selfprune.pruners.weight_pruner import Scope, ScorePruner, WeightPruner
from selfprune.pruners.weights.admm import ADMM
from selfprune.pruners.weights.alps import ALPS
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.pruners.weights.ria import RIA
from selfprune.pruners.weights.wanda import Wanda, wanda_metric

PRUNERS = [method for method in find_methods("pruner").values() if issubclass(method, WeightPruner)]
NESTED = [method for method in PRUNERS if issubclass(method, ScorePruner)]
"""Each level contains the one below."""
PATTERNS = ["2:4", "4:8"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
N_OUT, N_IN = 12, 24
N_ALL = N_OUT * N_IN
OWN_FORMS = {
    ADMM: [{"percent_damping": 0.0}],
    ALPS: [{"percent_damping": 0.0}],
    RIA: [{"pattern": pattern, "permute_channels": True} for pattern in PATTERNS],
}
"""Options with which a method must keep the contract, too."""


def degenerate(weight_OI, inputs_NTI):
    """Case -> weights and inputs that have nothing to choose by, or too much."""
    row_OI, column_OI, dead_NTI = weight_OI.clone(), weight_OI.clone(), inputs_NTI.clone()
    row_OI[3], column_OI[:, 7], dead_NTI[..., 7] = 0, 0, 0
    return {
        "zero matrix": (torch.zeros_like(weight_OI), inputs_NTI),
        "zero row": (row_OI, inputs_NTI),
        "zero column": (column_OI, inputs_NTI),
        "constant rows": (torch.full_like(weight_OI, 0.5), inputs_NTI),
        "dead column": (weight_OI, dead_NTI),
        "dead input": (weight_OI, torch.zeros_like(inputs_NTI)),
        "rank one": (weight_OI, inputs_NTI[..., :1] * inputs_NTI[0, 0]),
        "one token": (weight_OI, inputs_NTI[:1, :1]),
        "scales far apart": (weight_OI, inputs_NTI * torch.logspace(-6, 6, inputs_NTI.shape[-1])),
    }


def forms_of(method):
    """A method over every scope that it has, under patterns, and with options of its own."""
    has_scope = "scope" in (field.name for field in dataclasses.fields(method))
    scopes = [{"scope": scope} for scope in Scope] if has_scope else [{}]
    patterns = [{"pattern": pattern} for pattern in PATTERNS]
    return [method(**options) for options in (*scopes, *patterns, *OWN_FORMS.get(method, []))]


def in_every_form(methods):
    """Each method in a test of its own, which goes through its forms."""

    def decorate(test):
        def go_through(*arguments, method):
            in_turn("pruner", forms_of(method))(test)(*arguments)

        parameters = [p.replace(name="method") if p.name == "pruner" else p for p in inspect.signature(test).parameters.values()]
        go_through.__signature__ = inspect.Signature(parameters)
        return pytest.mark.parametrize("method", methods)(functools.update_wrapper(go_through, test, ("__name__", "__doc__"), ()))

    return decorate


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gathered(pruner, weight_OI, *inputs_of_groups, errors=normal):
    """Statistics of [N, T, I] inputs for each equal group of rows; None for a group that sees nothing.

    Gradients are those of a loss whose derivatives by the outputs [T, O] are `errors`.
    """
    n_sequences = max(len(inputs_NTI) for inputs_NTI in inputs_of_groups if inputs_NTI is not None)
    statistics = pruner.statistics(len(inputs_of_groups), weight_OI.shape[1], n_sequences)
    for n in range(n_sequences):
        seen = [None if inputs_NTI is None else inputs_NTI[n] for inputs_NTI in inputs_of_groups]
        if pruner.needs_gradients:
            statistics.update(
                torch.cat([gradient(group_OI, s, errors) for group_OI, s in zip(weight_OI.chunk(len(seen)), seen, strict=True)])
            )
            continue
        for group, inputs_TI in enumerate(seen):
            if inputs_TI is not None:
                statistics.update(inputs_TI, group)
    return statistics


def gradient(weight_OI, inputs_TI, errors):
    if inputs_TI is None:
        return torch.zeros_like(weight_OI)
    return errors(len(inputs_TI), len(weight_OI)).to(inputs_TI.dtype).T @ inputs_TI


def outcome(pruner, weight_OI, statistics, n_pruned):
    """True where a weight goes, and the weights after that, as a model would hold them; checks that both agree."""
    pruned = pruner.prune(weight_OI, statistics, n_pruned)
    assert pruned.kept.dtype is torch.bool
    assert pruned.kept.shape == weight_OI.shape
    if pruned.weight_OI is None:
        return ~pruned.kept, weight_OI * pruned.kept
    assert (pruned.weight_OI.dtype, pruned.weight_OI.shape) == (weight_OI.dtype, weight_OI.shape)
    assert not pruned.weight_OI[~pruned.kept].any()
    assert pruned.weight_OI.isfinite().all()
    return ~pruned.kept, pruned.weight_OI


def removed(pruner, weight_OI, n_pruned, inputs_NTI=None):
    """True where a weight goes."""
    inputs_NTI = normal(3, 5, weight_OI.shape[1], seed=1) if inputs_NTI is None else inputs_NTI
    return outcome(pruner, weight_OI, gathered(pruner, weight_OI, inputs_NTI), n_pruned)[0]


def by_magnitude(pruner, weight_OI, n_pruned):
    """True where a weight goes when the smallest among those that compete go."""
    return lowest_round_robin(pruner._comparison_rows(weight_OI.abs()), n_pruned).reshape(weight_OI.shape)


def levels(pruner, *counts):
    """Those of the counts, 0 and all that the pruner can reach."""
    if pruner.pattern and type(pruner) not in NESTED:
        return [0, round(pruner.level_fraction() * N_ALL)]
    return [0, *counts, N_ALL]


def n_lost(weight_OI, removed_OI, new_OI):
    """How many weights are zero without having been removed, or having been zero before."""
    return int(((new_OI == 0) & (weight_OI != 0) & ~removed_OI).sum())


class TestEveryPruner:
    @in_every_form(PRUNERS)
    @in_turn("dtype", DTYPES)
    def test_exactly_as_many_weights_are_zero_as_are_asked_for(self, pruner, dtype):
        weight_OI = normal(N_OUT, N_IN).to(dtype)
        assert (weight_OI != 0).all()
        statistics = gathered(pruner, weight_OI, normal(3, 5, N_IN, seed=1).to(dtype))
        for n_pruned in levels(pruner, 1, 2, 47, 48, 97, 144, 200, N_ALL - 1):
            removed_OI, new_OI = outcome(pruner, weight_OI, statistics, n_pruned)
            assert removed_OI.sum() == n_pruned
            assert torch.equal(new_OI == 0, removed_OI)
            assert n_pruned > 0 or torch.equal(new_OI, weight_OI)

    @in_every_form(PRUNERS)
    def test_the_ranks_are_a_permutation(self, pruner):
        weight_OI = normal(N_OUT, N_IN)
        ranks_OI = pruner.ranks(weight_OI, gathered(pruner, weight_OI, normal(3, 5, N_IN, seed=1)))
        assert (ranks_OI.dtype, ranks_OI.shape) == (torch.int32, weight_OI.shape)
        assert torch.equal(ranks_OI.flatten().sort().values, torch.arange(N_ALL, dtype=torch.int32))

    @in_every_form(PRUNERS)
    def test_weights_and_statistics_stay_as_they_are(self, pruner):
        weight_OI, inputs_NTI = normal(N_OUT, N_IN), normal(3, 5, N_IN, seed=1)
        copies = weight_OI.clone(), inputs_NTI.clone()
        statistics = gathered(pruner, weight_OI, inputs_NTI)
        first = outcome(pruner, weight_OI, statistics, 144)
        ranks_OI = pruner.ranks(weight_OI, statistics)
        for n_pruned in levels(pruner, 30, 144):
            outcome(pruner, weight_OI, statistics, n_pruned)
        again = outcome(pruner, weight_OI, statistics, 144)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert torch.equal(pruner.ranks(weight_OI, statistics), ranks_OI)
        assert torch.equal(weight_OI, copies[0])
        assert torch.equal(inputs_NTI, copies[1])

    @in_every_form(PRUNERS)
    def test_a_transposed_view_is_pruned_like_its_copy(self, pruner):
        weight_OI = normal(N_IN, N_OUT).T
        statistics = gathered(pruner, weight_OI, normal(3, 5, N_IN, seed=1))
        of_view = outcome(pruner, weight_OI, statistics, 144)
        of_copy = outcome(pruner, weight_OI.contiguous(), statistics, 144)
        assert torch.equal(of_view[0], of_copy[0])
        assert torch.equal(of_view[1], of_copy[1])

    @in_every_form(PRUNERS)
    @in_turn("dtype", [torch.float32, torch.bfloat16])
    def test_degenerate_weights_and_inputs_prune_exactly(self, pruner, dtype):
        wrong = []
        for case, of_case in degenerate(normal(N_OUT, N_IN), normal(3, 5, N_IN, seed=1)).items():
            weight_OI, inputs_NTI = (tensor.to(dtype) for tensor in of_case)
            statistics = gathered(pruner, weight_OI, inputs_NTI)
            for n_pruned in levels(pruner, 1, 100, 144):
                removed_OI, new_OI = outcome(pruner, weight_OI, statistics, n_pruned)
                if removed_OI.sum() != n_pruned or n_lost(weight_OI, removed_OI, new_OI):
                    wrong.append((case, n_pruned))
        assert wrong == []

    @in_every_form(PRUNERS)
    def test_weights_that_are_not_finite_are_refused(self, pruner):
        weight_OI = normal(N_OUT, N_IN)
        statistics = gathered(pruner, weight_OI, normal(3, 5, N_IN, seed=1))
        for value, n_pruned in itertools.product((math.nan, math.inf, -math.inf), (0, 144)):
            weight_OI[2, 5] = value
            with pytest.raises(PruningError, match="not finite"):
                pruner.prune(weight_OI, statistics, n_pruned)

    @in_every_form(PRUNERS)
    def test_inputs_that_are_not_finite_are_refused_however_often(self, pruner):
        if pruner.sees_weights_alone():
            return  # it looks at no inputs
        for value in (math.nan, math.inf):
            inputs_NTI = normal(3, 5, N_IN)
            inputs_NTI[1, 2, 3] = value
            statistics = gathered(pruner, normal(N_OUT, N_IN), inputs_NTI)
            for _ in range(2):
                with pytest.raises(PruningError, match="not finite"):
                    pruner.prune(normal(N_OUT, N_IN), statistics, 144)
                with pytest.raises(PruningError, match="not finite"):
                    pruner.ranks(normal(N_OUT, N_IN), statistics)

    @in_every_form(PRUNERS)
    def test_a_count_out_of_range_is_refused(self, pruner):
        for n_pruned in (-1, N_ALL + 1):
            with pytest.raises(PruningError, match=f"288 weights cannot lose {n_pruned}; ask for 0 to 288"):
                removed(pruner, normal(N_OUT, N_IN), n_pruned)

    @in_every_form(PRUNERS)
    def test_every_group_of_rows_is_pruned_by_the_inputs_that_it_saw(self, pruner):
        has_own_order = type(pruner).ranks is not WeightPruner.ranks
        if isinstance(pruner, ScorePruner) and pruner.scope is Scope.MATRIX and not (pruner.pattern or has_own_order):
            return  # over the whole matrix its groups of rows compete with each other
        weight_EOI, inputs_ENTI = normal(3, 4, N_IN), normal(3, 2, 30, N_IN, seed=1) * torch.linspace(0.5, 2, N_IN)
        fused = gathered(pruner, weight_EOI.flatten(0, 1), *inputs_ENTI)
        removed_OI, new_OI = outcome(pruner, weight_EOI.flatten(0, 1), fused, 144)
        for weight_OI, inputs_NTI, part_OI, new_part_OI in zip(
            weight_EOI, inputs_ENTI, removed_OI.chunk(3), new_OI.chunk(3), strict=True
        ):
            alone_OI, new_alone_OI = outcome(pruner, weight_OI, gathered(pruner, weight_OI, inputs_NTI), 48)
            assert torch.equal(part_OI, alone_OI)
            torch.testing.assert_close(new_part_OI, new_alone_OI)

    @in_every_form(PRUNERS)
    def test_a_group_of_rows_that_saw_nothing_loses_its_smallest_weights(self, pruner):
        weight_OI = normal(N_OUT, N_IN)
        statistics = gathered(pruner, weight_OI, normal(3, 5, N_IN, seed=1), None, normal(3, 2, N_IN, seed=2))
        ranks_OI = pruner.ranks(weight_OI, statistics)
        assert torch.equal(ranks_OI.flatten().sort().values, torch.arange(N_ALL, dtype=torch.int32))
        for n_pruned in levels(pruner, 1, 2, 144, 200):
            removed_OI, new_OI = outcome(pruner, weight_OI, statistics, n_pruned)
            assert removed_OI.sum() == n_pruned
            assert n_lost(weight_OI, removed_OI, new_OI) == 0
            for goes_OI in (removed_OI, ranks_OI < n_pruned):
                unseen_OI, of_unseen_OI = weight_OI[4:8], goes_OI[4:8]
                assert torch.equal(of_unseen_OI, by_magnitude(pruner, unseen_OI, int(of_unseen_OI.sum())))
            assert torch.equal(new_OI[4:8][~removed_OI[4:8]], weight_OI[4:8][~removed_OI[4:8]])
        # no group is emptied before the others, whatever competes with what
        n_half = round(0.5 * N_ALL)
        for goes_OI in (outcome(pruner, weight_OI, statistics, n_half)[0], ranks_OI < n_half):
            assert 20 <= goes_OI[4:8].sum() <= 76

    @in_every_form(PRUNERS)
    def test_a_unit_that_saw_nothing_loses_its_smallest_weights(self, pruner):
        weight_OI = normal(N_OUT, N_IN)
        statistics = gathered(pruner, weight_OI, torch.zeros(3, 5, N_IN))
        ranks_OI = pruner.ranks(weight_OI, statistics)
        for n_pruned in levels(pruner, 1, 2, 144, 200):
            removed_OI, new_OI = outcome(pruner, weight_OI, statistics, n_pruned)
            assert torch.equal(removed_OI, by_magnitude(pruner, weight_OI, n_pruned))
            assert torch.equal(ranks_OI < n_pruned, removed_OI)
            assert torch.equal(new_OI, weight_OI.masked_fill(removed_OI, 0))


class TestNestedPruners:
    @in_every_form(NESTED)
    @in_turn("dtype", DTYPES)
    def test_each_level_contains_the_one_below_and_the_masks_follow_the_ranks(self, pruner, dtype):
        weight_OI = normal(N_OUT, N_IN).to(dtype)
        statistics = gathered(pruner, weight_OI, normal(3, 5, N_IN, seed=1).to(dtype))
        ranks_OI = pruner.ranks(weight_OI, statistics)
        for n_pruned in levels(pruner, *range(0, N_ALL, 37)):
            pruned = pruner.prune(weight_OI, statistics, n_pruned)
            assert pruned.weight_OI is None
            assert torch.equal(pruned.kept, ranks_OI >= n_pruned)

    @in_every_form(NESTED)
    def test_ties_go_by_index(self, pruner):
        weight_OI = torch.ones(N_OUT, N_IN)
        statistics = gathered(pruner, weight_OI, torch.ones(3, 5, N_IN), errors=torch.ones)
        removed_OI = outcome(pruner, weight_OI, statistics, 144)[0]
        index_OI = torch.arange(N_ALL).view(N_OUT, N_IN)
        if pruner.pattern:
            width = int(pruner.pattern[2:])
            expected_OI = index_OI % width < width // 2
        else:
            expected_OI = index_OI < 144 if pruner.scope is Scope.MATRIX else index_OI % N_IN < N_IN // 2
        assert torch.equal(removed_OI, expected_OI)

    @in_every_form(NESTED)
    def test_a_zero_weight_goes_before_any_other_of_its_row(self, pruner):
        weight_OI = normal(N_OUT, N_IN)
        weight_OI[:, ::8] = 0
        assert torch.equal(removed(pruner, weight_OI, N_ALL // 8), weight_OI == 0)


@in_every_form([method for method in PRUNERS if not method().sees_weights_alone()])
def test_of_columns_whose_inputs_were_zero_the_smallest_weights_go_first(pruner):
    if getattr(pruner, "permute_channels", False):
        return  # its groups are not of columns side by side
    weight_OI, inputs_NTI = normal(N_OUT, N_IN), normal(3, 5, N_IN, seed=1)
    dead = slice(0, 16)
    inputs_NTI[..., dead] = 0
    weight_OI[0, 1] = 0
    statistics = gathered(pruner, weight_OI, inputs_NTI)
    n_pruned = round(pruner.level_fraction() * N_ALL) if pruner.pattern else 97
    seen_last_OI = weight_OI.abs()
    seen_last_OI[:, 16:] += 100
    expected_OI = by_magnitude(pruner, seen_last_OI, n_pruned)[:, dead]
    assert torch.equal(pruner.ranks(weight_OI, statistics)[:, dead] < n_pruned, expected_OI)
    if isinstance(pruner, ALPS):  # damping tells its iterations of these columns too, which they move a little
        return
    removed_OI, new_OI = outcome(pruner, weight_OI, statistics, n_pruned)
    assert torch.equal(removed_OI[:, dead], expected_OI)
    torch.testing.assert_close(new_OI[:, dead], weight_OI[:, dead] * ~expected_OI, rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", PRUNERS)
def test_a_pattern_keeps_n_of_every_m_at_its_level(method):
    for pattern in ("2:4", "4:8", "1:4", "3:4", "1:3", "3:8"):
        n_kept, width = map(int, pattern.split(":"))
        pruner = method(pattern=pattern)
        assert pruner.level_fraction() == (width - n_kept) / width
        kept_OI = ~removed(pruner, normal(N_OUT, N_IN), N_ALL // width * (width - n_kept))
        assert (kept_OI.view(-1, width).sum(dim=1) == n_kept).all(), pattern


@pytest.mark.parametrize("method", [method for method in PRUNERS if method not in NESTED])
def test_a_count_that_is_no_level_of_the_pattern_is_refused_where_levels_do_not_nest(method):
    for pattern, level in (("2:4", 144), ("1:4", 216)):
        for n_pruned in (1, level - 1, level + 1, N_ALL):
            expected = f"under the pattern {pattern} a unit of 288 weights loses 0 or {level}, got {n_pruned}"
            with pytest.raises(PruningError, match=expected):
                removed(method(pattern=pattern), normal(N_OUT, N_IN), n_pruned)


@pytest.mark.parametrize("method", NESTED)
def test_the_rows_take_turns(method):
    pruner, weight_OI = method(scope=Scope.ROW), normal(N_OUT, N_IN)
    for n_pruned in range(0, N_ALL, 5):
        per_row = removed(pruner, weight_OI, n_pruned).sum(dim=1)
        assert per_row.max() - per_row.min() <= 1
    assert pruner.level_fraction() is None


@pytest.mark.parametrize("method", NESTED)
def test_the_remainder_goes_to_the_rows_with_the_lowest_scores(method):
    pruner, weight_OI = method(scope=Scope.ROW), normal(N_OUT, N_IN)
    statistics = gathered(pruner, weight_OI, normal(3, 5, N_IN, seed=1))
    fourth_O = pruner.scores(weight_OI, statistics).sort(dim=1).values[:, 3]
    per_row = (~pruner.prune(weight_OI, statistics, 3 * N_OUT + 5).kept).sum(dim=1)
    assert set((per_row == 4).nonzero().flatten().tolist()) == set(fourth_O.argsort()[:5].tolist())


@pytest.mark.parametrize("method", NESTED)
def test_the_reference_threshold_takes_what_lies_on_it_over_the_whole_matrix_only(method):
    weight_OI, inputs_NTI = normal(N_OUT, N_IN), normal(3, 5, N_IN, seed=1)
    for options, n_more in [({"scope": Scope.MATRIX}, 1), ({"scope": Scope.ROW}, 0), ({"pattern": "2:4"}, 0)]:
        for n_pruned in (0, 100, N_ALL - 1):
            assert (
                removed(method(reference_threshold=True, **options), weight_OI, n_pruned, inputs_NTI).sum() == n_pruned + n_more
            )
    all_OI = removed(method(reference_threshold=True, scope=Scope.MATRIX), weight_OI, N_ALL, inputs_NTI)
    assert all_OI.all()


@pytest.mark.parametrize("method", PRUNERS)
def test_a_width_that_the_pattern_does_not_divide_is_refused(method):
    permuting = [options for options in OWN_FORMS.get(method, []) if options.get("pattern") == "4:8"]
    for options in ({"pattern": "4:8"}, *permuting):
        for n_pruned in (0, 24):
            with pytest.raises(PruningError, match="pattern 4:8 needs an input width divisible by 8, got 12"):
                removed(method(**options), normal(4, 12), n_pruned)


@pytest.mark.parametrize("method", PRUNERS)
def test_a_pattern_that_is_none_is_refused(method):
    for pattern in ("2", "4:2", "2 of 4"):
        with pytest.raises(ConfigError, match=r"must read N:M .* got .*; for example 2:4"):
            method(pattern=pattern)


def matrices(draw, n_groups, n_in):
    """Weights of a few rows for each group, normal or with many ties and zeros, and inputs of some groups."""
    seed, n_out = draw(st.integers(0, 2**31)), draw(st.integers(1, 3)) * n_groups
    weight_OI = normal(n_out, n_in, seed=seed)
    if draw(st.booleans()):
        weight_OI = weight_OI.round()
    dtype, n_tokens = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 9))
    seen = [True, *(draw(st.booleans()) for _ in range(n_groups - 1))]
    inputs = [normal(2, n_tokens, n_in, seed=seed + g).to(dtype) if seen_g else None for g, seen_g in enumerate(seen)]
    return weight_OI.to(dtype), inputs


@pytest.mark.parametrize("method", PRUNERS)
@settings(max_examples=25)
@given(st.data())
def test_counts_are_exact_for_matrices_of_any_shape(method, data):
    draw = data.draw
    n_groups, n_in = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 5, 15, 16, 17, 33, 129]))
    weight_OI, inputs = matrices(draw, n_groups, n_in)
    pruner = method()
    if hasattr(pruner, "scope"):
        pruner.scope = draw(st.sampled_from(Scope))
    statistics = gathered(pruner, weight_OI, *inputs)
    n_pruned = draw(st.integers(0, weight_OI.numel()))
    removed_OI, new_OI = outcome(pruner, weight_OI, statistics, n_pruned)
    assert removed_OI.sum() == n_pruned
    assert n_lost(weight_OI, removed_OI, new_OI) == 0


@pytest.mark.parametrize("method", PRUNERS)
@settings(max_examples=25)
@given(st.data())
def test_any_pattern_is_exact_in_every_group(method, data):
    draw = data.draw
    width, n_groups = draw(st.integers(2, 20)), draw(st.integers(1, 2))
    n_kept = draw(st.integers(1, width - 1))
    weight_OI, inputs = matrices(draw, n_groups, width * draw(st.integers(1, 8)))
    pruner = method(pattern=f"{n_kept}:{width}")
    statistics = gathered(pruner, weight_OI, *inputs)
    n_level = weight_OI.numel() // width * (width - n_kept)
    removed_OI, new_OI = outcome(pruner, weight_OI, statistics, n_level)
    assert (removed_OI.view(-1, width).sum(dim=1) == width - n_kept).all()
    assert n_lost(weight_OI, removed_OI, new_OI) == 0


@in_turn("ratio", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_wanda_equals_a_sort_of_every_row_in_fp64(ratio):
    weight_OI, inputs_NTI = normal(N_OUT, N_IN), normal(3, 5, N_IN, seed=1)
    n_per_row = int(N_IN * ratio)
    expected_OI = torch.zeros(N_OUT, N_IN, dtype=torch.bool)
    squares = [sum(float(x) ** 2 for x in inputs_NTI[..., j].flatten()) / 3 for j in range(N_IN)]
    for i in range(N_OUT):
        metric = [abs(float(weight_OI[i, j])) * math.sqrt(squares[j]) for j in range(N_IN)]
        for j in sorted(range(N_IN), key=metric.__getitem__)[:n_per_row]:
            expected_OI[i, j] = True
    assert torch.equal(removed(Wanda(), weight_OI, n_per_row * N_OUT, inputs_NTI), expected_OI)


@in_turn("n_pruned", [1, 100, 287])
def test_magnitude_equals_a_sort_of_the_whole_matrix(n_pruned):
    weight_OI = normal(N_OUT, N_IN)
    order = sorted(range(N_OUT * N_IN), key=lambda i: abs(float(weight_OI.view(-1)[i])))
    expected = torch.zeros(N_OUT * N_IN, dtype=torch.bool)
    expected[order[:n_pruned]] = True
    assert torch.equal(removed(Magnitude(), weight_OI, n_pruned), expected.view(N_OUT, N_IN))


def test_the_wanda_statistic_is_the_sum_over_tokens_per_sequence_however_it_is_fed():
    inputs_NTI = normal(4, 5, N_IN)
    expected_I = inputs_NTI.double().square().sum(dim=(0, 1)) / 4
    at_once = Wanda().statistics(1, N_IN, 4)
    at_once.update(inputs_NTI)
    for statistics in (at_once, gathered(Wanda(), normal(1, N_IN), inputs_NTI)):
        torch.testing.assert_close(statistics.means()[0].double(), expected_I, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_wanda_statistic_is_kept_in_fp32(dtype):
    statistics = Wanda().statistics(1, 2, 1)
    inputs_NTI = torch.full((1, 4096, 2), 300.0, dtype=dtype)
    statistics.update(inputs_NTI)
    assert statistics.means().dtype is torch.float32
    torch.testing.assert_close(statistics.means(), torch.full((1, 2), 4096 * float(inputs_NTI[0, 0, 0]) ** 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_wanda_refuses_inputs_that_are_not_finite(value):
    inputs_NTI = normal(3, 5, N_IN)
    inputs_NTI[1, 2, 3] = value
    with pytest.raises(PruningError, match="calibration inputs hold NaN or infinity"):
        removed(Wanda(), normal(N_OUT, N_IN), 10, inputs_NTI)


def test_every_expert_is_ranked_by_the_inputs_that_it_saw():
    weight_EOI, inputs_ETI = normal(3, 4, 8), normal(3, 10, 8, seed=1)
    fused = Wanda().statistics(3, 8, 2)
    for e in range(3):
        fused.update(inputs_ETI[e, :5], e)
        fused.update(inputs_ETI[e, 5:], e)
    metric_EOI = wanda_metric(weight_EOI.view(12, 8), fused.means()).view(3, 4, 8)
    for e in range(3):
        own = Wanda().statistics(1, 8, 2)
        own.update(inputs_ETI[e])
        torch.testing.assert_close(metric_EOI[e], wanda_metric(weight_EOI[e], own.means()), rtol=1e-6, atol=0)
        mask_OI = Wanda().prune(weight_EOI.view(12, 8), fused, 36).kept
        assert torch.equal(mask_OI.view(3, 4, 8)[e], Wanda().prune(weight_EOI[e], own, 12).kept)


def test_an_expert_that_saw_nothing_is_pruned_like_the_others():
    statistics = Wanda().statistics(2, 8, 1)
    statistics.update(normal(6, 8), 1)
    removed_OI = ~Wanda().prune(normal(8, 8), statistics, 32).kept
    assert removed_OI.sum(dim=1).tolist() == [4] * 8
    assert torch.equal(removed_OI[:4], removed(Magnitude(scope=Scope.ROW), normal(8, 8)[:4], 16))
