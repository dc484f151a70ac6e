"""ADMM and ALPS against explicit solutions in fp64, and on what a model may hold.

Shape suffixes: O out, I in, S in that are kept, N sequences, T tokens, G groups of rows, K tokens.
"""

import itertools
import math

import pytest
import torch
from in_turn import in_turn

from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.weight_pruner import Scope
from selfprune.pruners.weights.admm import ADMM
from selfprune.pruners.weights.alps import ALPS, Penalty, Verdict, conjugate_gradients
from selfprune.pruners.weights.scaled_layer import LEAST_DAMPING, N_TRIES

METHODS = [ADMM, ALPS]
N_OUT, N_IN = 12, 24
BOTH = pytest.mark.parametrize("method", METHODS)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n_in=N_IN, n_tokens=60, seed=1):
    """Inputs [1, K, I] whose channels depend on each other and differ in size."""
    mixing_II = torch.eye(n_in) + 0.5 * normal(n_in, n_in, seed=seed + 100)
    return (normal(n_tokens, n_in, seed=seed) @ mixing_II * torch.linspace(0.2, 3, n_in))[None]


def gathered(pruner, inputs_NTI):
    statistics = pruner.statistics(1, inputs_NTI.shape[-1], len(inputs_NTI))
    for sequence_TI in inputs_NTI:
        statistics.update(sequence_TI)
    return statistics


def prune(pruner, weight_OI, n_pruned, inputs_NTI=None):
    return pruner.prune(
        weight_OI, gathered(pruner, correlated(weight_OI.shape[1]) if inputs_NTI is None else inputs_NTI), n_pruned
    )


def damped_gram(method, inputs_NTI):
    """The Gram matrix that the method minimises with, in fp64 and in the layer's own units."""
    inputs_KI = inputs_NTI.flatten(0, 1).double()
    gram_II = inputs_KI.T @ inputs_KI
    # ADMM damps once every channel has norm 1, ALPS before that.
    added = gram_II.diagonal().clone() if method is ADMM else gram_II.diagonal().mean()
    return gram_II + method().percent_damping * torch.eye(len(gram_II)) * added


def least_squares(weight_OI, mask_OI, gram_II):
    """Row by row, the kept weights that leave the least error."""
    solution_OI = torch.zeros(weight_OI.shape, dtype=torch.float64)
    for row, (weight_I, mask_I) in enumerate(zip(weight_OI.double(), mask_OI, strict=True)):
        target_S = (gram_II @ weight_I)[mask_I]
        solution_OI[row, mask_I] = torch.linalg.solve(gram_II[mask_I][:, mask_I], target_S)
    return solution_OI


def error(weight_OI, updated_OI, gram_II):
    change_OI = weight_OI.double() - updated_OI.double()
    return float((change_OI @ gram_II * change_OI).sum())


@pytest.mark.parametrize("n_pruned", [1, 60, 144, 250])
@pytest.mark.parametrize("pruner", [ADMM(n_iterations=3000), ALPS(n_conjugate_gradient_steps=100)], ids=["admm", "alps"])
def test_with_enough_iterations_the_kept_weights_are_the_least_squares_of_their_mask(pruner, n_pruned):
    weight_OI, inputs_NTI = normal(N_OUT, N_IN), correlated()
    pruned = prune(pruner, weight_OI, n_pruned, inputs_NTI)
    expected_OI = least_squares(weight_OI, pruned.kept, damped_gram(type(pruner), inputs_NTI))
    assert (pruned.weight_OI - expected_OI).norm() < 2e-3 * expected_OI.norm()


@pytest.mark.parametrize("settings", [{}, {"scope": Scope.ROW}, {"pattern": "2:4"}], ids=["matrix", "row", "2:4"])
def test_without_mask_iterations_admm_keeps_the_largest_scaled_magnitudes(settings):
    pruner, weight_OI = ADMM(n_mask_iterations=0, **settings), normal(N_OUT, N_IN)
    statistics = gathered(pruner, correlated())
    mask_OI = pruner.prune(weight_OI, statistics, 144).kept
    assert torch.equal(mask_OI, pruner.ranks(weight_OI, statistics) >= 144)
    settled_OI = type(pruner)(**settings).prune(weight_OI, statistics, 144).kept
    assert not torch.equal(mask_OI, settled_OI), "the iterations that choose the mask should have changed it"


@BOTH
@pytest.mark.parametrize("settings", [{}, {"scope": Scope.ROW}, {"pattern": "2:4"}], ids=["matrix", "row", "2:4"])
def test_the_error_is_less_than_that_of_the_largest_scaled_magnitudes(method, settings):
    weight_OI, inputs_NTI = normal(N_OUT, N_IN), correlated()
    gram_II, pruner = damped_gram(method, inputs_NTI), method(**settings)
    ranks_OI = pruner.ranks(weight_OI, gathered(pruner, inputs_NTI))
    for n_pruned in [144] if "pattern" in settings else [24, 72, 144, 216, 264]:
        plain = error(weight_OI, weight_OI * (ranks_OI >= n_pruned), gram_II)
        refitted = error(weight_OI, least_squares(weight_OI, ranks_OI >= n_pruned, gram_II), gram_II)
        ours = error(weight_OI, prune(pruner, weight_OI, n_pruned, inputs_NTI).weight_OI, gram_II)
        assert ours < plain
        assert n_pruned < 72 or ours < refitted, "the mask should be better, too"


def test_alps_comes_close_to_the_best_of_all_masks():
    n_out, n_in, n_kept = 40, 8, 4
    weight_OI, inputs_NTI = normal(n_out, n_in), correlated(n_in)
    gram_II, pruner = damped_gram(ALPS, inputs_NTI), ALPS(scope=Scope.ROW, n_conjugate_gradient_steps=100)
    best = 0.0
    for row_OI in weight_OI.split(1):
        masks = torch.zeros(math.comb(n_in, n_kept), 1, n_in, dtype=torch.bool)
        for mask_OI, kept in zip(masks, itertools.combinations(range(n_in), n_kept), strict=True):
            mask_OI[0, list(kept)] = True
        best += min(error(row_OI, least_squares(row_OI, mask_OI, gram_II), gram_II) for mask_OI in masks)
    statistics, n_pruned = gathered(pruner, inputs_NTI), n_out * (n_in - n_kept)
    ours = error(weight_OI, pruner.prune(weight_OI, statistics, n_pruned).weight_OI, gram_II)
    kept_OI = pruner.ranks(weight_OI, statistics) >= n_pruned
    by_magnitude = error(weight_OI, least_squares(weight_OI, kept_OI, gram_II), gram_II)
    assert best * (1 - 1e-6) <= ours < (best + by_magnitude) / 2


def test_conjugate_gradients_reach_the_exact_solution_in_as_many_steps_as_a_row_keeps():
    weight_OI, mask_OI = normal(5, 8), normal(5, 8, seed=3) > 0
    mask_OI[0], mask_OI[1] = False, True
    gram_II = damped_gram(ALPS, correlated(8))
    gram_II /= gram_II.diagonal().mean()
    target_OI, start_OI = weight_OI.double() @ gram_II, torch.zeros(5, 8, dtype=torch.float64)
    expected_OI = least_squares(weight_OI, mask_OI, gram_II)
    errors = []
    for n_steps in range(9):
        solution_OI = conjugate_gradients(gram_II, target_OI, mask_OI, start_OI, n_steps)
        assert not solution_OI[~mask_OI].any()
        errors.append(error(weight_OI, solution_OI, gram_II))
    assert errors == sorted(errors, reverse=True)
    torch.testing.assert_close(solution_OI, expected_OI, rtol=1e-3, atol=1e-3)


@in_turn(
    ("is_growing", "n_changed", "factor", "verdict"),
    [
        (False, 101, 1.3, Verdict.GO_ON),
        (False, 100, 1.2, Verdict.GO_ON),
        (False, 6, 1.2, Verdict.GO_ON),
        (False, 5, 1 / 5, Verdict.RESTART),
        (False, 0, 1 / 5, Verdict.GO_ON),
        (True, 5, 1.1, Verdict.GO_ON),
        (True, 0, 1, Verdict.STOP),
    ],
)
def test_the_penalty_grows_while_the_mask_changes_and_shrinks_until_it_does(is_growing, n_changed, factor, verdict):
    penalty = Penalty(0.1, is_growing)
    assert penalty.adapt(n_changed, n_kept=1000) is verdict
    assert penalty.rho == pytest.approx(0.1 * factor)
    assert penalty.is_growing == (factor >= 1)


def test_a_penalty_that_was_too_large_is_followed_by_a_new_start():
    weight_OI, inputs_NTI = normal(40, N_IN), correlated()
    fresh, restarted, first = (
        prune(ALPS(rho=rho, max_iterations=n, n_conjugate_gradient_steps=0), weight_OI, 200, inputs_NTI).weight_OI
        for rho, n in ((0.2, 2), (1.0, 3 + 2), (1.0, 2))
    )
    torch.testing.assert_close(restarted, fresh)
    assert not torch.allclose(first, fresh)


def test_the_penalty_stays_within_what_fp32_can_tell_apart():
    growing, shrinking = Penalty(0.9e6), Penalty(4e-6)
    assert growing.adapt(500, 1000) is Verdict.GO_ON
    assert growing.rho == 1e6
    assert shrinking.adapt(0, 1000) is Verdict.STOP


@BOTH
class TestCounts:
    def test_none_pruned_leaves_the_weights_as_they_are(self, method):
        pruned = prune(method(), normal(N_OUT, N_IN), 0)
        assert pruned.kept.all()
        assert pruned.weight_OI is None

    def test_rows_that_compete_within_themselves_take_turns(self, method):
        per_row = prune(method(scope=Scope.ROW), normal(N_OUT, N_IN), 125).kept.sum(dim=1)
        assert per_row.max() - per_row.min() == 1


@BOTH
class TestLayouts:
    @pytest.mark.parametrize(("n_pruned", "counts"), [(2, [1, 1, 0]), (145, [49, 48, 48]), (288, [96, 96, 96])])
    def test_fused_groups_are_pruned_like_each_alone(self, method, n_pruned, counts):
        weight_OI = normal(N_OUT, N_IN)
        inputs = [correlated(seed=seed) for seed in range(3)]
        fused = method().statistics(3, N_IN, 1)
        for group in range(3):
            fused.update(inputs[group], group)
        together = method().prune(weight_OI, fused, n_pruned)
        for group, part_OI in enumerate(weight_OI.chunk(3)):
            alone = prune(method(), part_OI, counts[group], inputs[group])
            assert torch.equal(together.kept.chunk(3)[group], alone.kept)
            assert torch.equal(together.weight_OI.chunk(3)[group], part_OI if alone.weight_OI is None else alone.weight_OI)

    @pytest.mark.parametrize("settings", [{}, {"scope": Scope.ROW}, {"pattern": "2:4"}], ids=["matrix", "row", "2:4"])
    def test_the_unit_of_the_inputs_does_not_matter(self, method, settings):
        weight_OI, inputs_NTI = normal(N_OUT, N_IN), correlated()
        small, large = (prune(method(**settings), weight_OI, 144, inputs_NTI * unit) for unit in (2.0**-40, 2.0**40))
        assert torch.equal(small.kept, large.kept)
        torch.testing.assert_close(small.weight_OI, large.weight_OI)


@BOTH
class TestDegenerateLayers:
    def test_what_is_kept_of_a_dead_column_stays_as_it_is(self, method):
        weight_OI, inputs_NTI = normal(N_OUT, N_IN), correlated()
        inputs_NTI[..., 7] = 0
        pruned = prune(method(), weight_OI, 5, inputs_NTI)
        kept_O = pruned.kept[:, 7]
        assert kept_O.any()
        torch.testing.assert_close(pruned.weight_OI[kept_O, 7], weight_OI[kept_O, 7], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("settings", [{}, {"scope": Scope.ROW}, {"pattern": "2:4"}], ids=["matrix", "row", "2:4"])
    def test_ties_at_the_threshold_go_by_index(self, method, settings):
        index_OI = torch.arange(N_OUT * N_IN).view(N_OUT, N_IN)
        place_OI, n_each = (
            (index_OI % 4, 2) if "pattern" in settings else (index_OI, 144) if not settings else (index_OI % N_IN, 12)
        )
        assert torch.equal(method(**settings).lowest(-torch.ones(N_OUT, N_IN), 144), place_OI < n_each)

    def test_a_broken_gram_matrix_is_given_up_with_a_message(self, method, caplog):
        statistics = gathered(method(), correlated())
        statistics.sums()[0, 1, 2] = math.nan
        with pytest.raises(PruningError, match=r"not finite even with a damping of .* check its calibration inputs"):
            method().prune(normal(N_OUT, N_IN), statistics, 100)
        assert len(caplog.records) == N_TRIES - 1


def indefinite(statistics):
    """Statistics of which two channels correlate by more than one; no inputs have such a Gram matrix."""
    gram_II = statistics.sums()[0]
    gram_II.fill_diagonal_(1)
    gram_II[0, 1] = gram_II[1, 0] = 1.001
    return statistics


def test_damping_is_raised_until_the_layer_can_be_solved_and_said_so(caplog):
    weight_OI, pruner = normal(4, 2), ADMM(percent_damping=0.0, rho=1e-5)
    pruned = pruner.prune(weight_OI, indefinite(pruner.statistics(1, 2, 1)), 3)
    assert (~pruned.kept).sum() == 3
    assert torch.isfinite(pruned.weight_OI).all()
    dampings = [float(record.args[0]) for record in caplog.records]
    assert dampings == pytest.approx([LEAST_DAMPING * 10**i for i in range(len(dampings))])
    assert dampings[-2] < 0.001 <= dampings[-1], "the first that exceeds the excess correlation"
    assert "damping is raised to" in caplog.text


@pytest.mark.parametrize("method", [ADMM, ALPS])
def test_no_kept_weight_vanishes_in_the_weights_own_dtype(method):
    smallest = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    weight_OI = (2 * smallest * normal(400, 24)).half()
    pruned, in_fp32 = (prune(method(scope=Scope.ROW), w_OI, 6000, correlated(24)) for w_OI in (weight_OI, weight_OI.float()))
    assert ((in_fp32.weight_OI.half() == 0) & in_fp32.kept & (weight_OI != 0)).any()
    assert not ((pruned.weight_OI == 0) & pruned.kept & (weight_OI != 0)).any()
    assert pruned.kept.sum() == 400 * 24 - 6000


def test_weights_that_overflow_their_dtype_are_given_more_damping(caplog):
    # Both channels carry the same, so the one that stays must do the work of both: 80000, which fp16 does not hold.
    inputs_NTI, weight_OI = torch.ones(1, 3, 2), torch.tensor([[4e4, 4e4]])
    solved = prune(ALPS(), weight_OI, 1, inputs_NTI)
    assert solved.weight_OI.max() > torch.finfo(torch.float16).max
    assert not caplog.records
    pruned = prune(ALPS(), weight_OI.half(), 1, inputs_NTI)
    assert torch.isfinite(pruned.weight_OI).all()
    assert pruned.kept.sum() == 1
    assert caplog.records


@BOTH
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("percent_damping", -0.1, r"must lie in \[0, 1\], got -0.1"),
        ("percent_damping", 1.5, r"must lie in \[0, 1\], got 1.5"),
        ("percent_damping", math.nan, r"must lie in \[0, 1\], got nan"),
        ("rho", 0.0, "must be positive and finite, got 0.0"),
        ("rho", math.inf, "must be positive and finite, got inf"),
        ("rho", math.nan, "must be positive and finite, got nan"),
        ("pattern", "4:2", "must read N:M"),
    ],
)
def test_options_out_of_range_are_refused(method, option, value, message):
    with pytest.raises(ConfigError, match=f"pruner.{option} {message}"):
        method(**{option: value})


@in_turn(
    ("method", "options", "message"),
    [
        (ADMM, {"n_iterations": 0}, "pruner.n_iterations must be at least 1, got 0"),
        (ADMM, {"n_mask_iterations": -1}, "pruner.n_mask_iterations must lie between 0 and pruner.n_iterations, got -1 of 20"),
        (ADMM, {"n_mask_iterations": 21}, "got 21 of 20; lower the one or raise the other"),
        (ALPS, {"max_iterations": 0}, "pruner.max_iterations must be at least 1, got 0"),
        (ALPS, {"support_check_every": 0}, "pruner.support_check_every must be at least 1, got 0"),
        (ALPS, {"switch_iteration": -1}, "pruner.switch_iteration must be at least 0, got -1"),
        (ALPS, {"n_conjugate_gradient_steps": -1}, "pruner.n_conjugate_gradient_steps must be at least 0, got -1"),
    ],
)
def test_iterations_out_of_range_are_refused(method, options, message):
    with pytest.raises(ConfigError, match=message):
        method(**options)
