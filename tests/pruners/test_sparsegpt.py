"""SparseGPT and its Hessian against Optimal Brain Surgeon with explicit inverses in fp64.

Shape suffixes: O out, I in, F remaining columns, N sequences, T tokens, G groups of rows, K tokens of all sequences.
"""

import logging
import math

import pytest
import torch
from in_turn import in_turn

from selfprune.errors import ConfigError, PruningError
from selfprune.pruners import updates
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.statistics import hessian_factor
from selfprune.statistics.hessian_factor import HessianFactor
from selfprune.statistics.input_gram import InputGram

N_OUT = 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n_in, n_tokens=120, seed=1):
    """Inputs [1, T, I] whose channels depend on each other and differ in size."""
    mixing_II = torch.eye(n_in) + 0.3 * normal(n_in, n_in, seed=seed + 100)
    return (normal(n_tokens, n_in, seed=seed) @ mixing_II * torch.linspace(0.5, 3, n_in))[None]


@pytest.fixture(params=[512, 8, 4])
def panel_width(request, monkeypatch):
    """Factorises as many columns at a time."""
    monkeypatch.setattr(hessian_factor, "PANEL_WIDTH", request.param)
    return request.param


def gathered(pruner, inputs_NTI):
    statistics = pruner.statistics(1, inputs_NTI.shape[-1], len(inputs_NTI))
    for sequence_TI in inputs_NTI:
        statistics.update(sequence_TI)
    return statistics


def damped(inputs_NTI, percent_damping=0.01):
    """Σ x xᵀ with damping, in fp64; dead inputs get half the number of sequences before it."""
    inputs_KI = inputs_NTI.flatten(0, 1).double()
    hessian_II = inputs_KI.T @ inputs_KI
    diagonal_I = hessian_II.diagonal()
    diagonal_I[diagonal_I == 0] = len(inputs_NTI) / 2
    diagonal_I += percent_damping * diagonal_I.mean()
    return hessian_II


def lowest(scores_IO, n_pruned):
    """True for the `n_pruned` lowest."""
    goes = torch.zeros(scores_IO.numel(), dtype=torch.bool)
    goes[scores_IO.flatten().argsort()[:n_pruned]] = True
    return goes.view(scores_IO.shape)


def surgeon(weight_OI, hessian_II, block_width, n_pruned, n_kept=0, width=0):
    """Optimal Brain Surgeon from left to right: each column that goes is made up for by all columns to its right.

    The remaining Hessian is inverted anew for every column. What goes is chosen block by block, or group by group under a
    pattern, by the error that removing one weight leaves when the columns to its left are fixed.
    """
    weight_OI, n_in = weight_OI.double().clone(), weight_OI.shape[1]
    inverses = [torch.linalg.inv(hessian_II[j:, j:]) for j in range(n_in)]
    pivots_I = torch.stack([inverse_FF[0, 0] for inverse_FF in inverses])
    goes_OI = torch.zeros(weight_OI.shape, dtype=torch.bool)
    together = width or block_width
    for j in range(n_in):
        if j % together == 0:
            stop = min(j + together, n_in)
            scores_OI = weight_OI[:, j:stop].square() / pivots_I[j:stop]
            if width:
                goes_OI[:, j:stop] = torch.stack([lowest(scores_I, width - n_kept) for scores_I in scores_OI])
            else:
                goes_OI[:, j:stop] = lowest(scores_OI, n_pruned * stop // n_in - n_pruned * j // n_in)
        removed_O = torch.where(goes_OI[:, j], weight_OI[:, j], 0)
        weight_OI[:, j:] -= removed_O[:, None] * inverses[j][0] / pivots_I[j]
        weight_OI[goes_OI[:, j], j] = 0
    return ~goes_OI, weight_OI


def assert_equals_surgeon(pruner, weight_OI, inputs_NTI, n_pruned, block_width, *pattern):
    pruned = pruner.prune(weight_OI, gathered(pruner, inputs_NTI), n_pruned)
    mask_OI, expected_OI = surgeon(weight_OI, damped(inputs_NTI), block_width, n_pruned, *pattern)
    assert (~mask_OI).sum() == n_pruned
    assert torch.equal(pruned.kept, mask_OI)
    torch.testing.assert_close(pruned.weight_OI.double(), expected_OI, rtol=1e-4, atol=1e-4)
    return pruned


@in_turn("n_pruned", [1, 29, 66, 100, 131])
@in_turn("block_width", [1, 4, 21, 128])
def test_pruning_equals_optimal_brain_surgeon_with_explicit_inverses(block_width, n_pruned):
    weight_OI, inputs_NTI = normal(N_OUT, 22), correlated(22)
    assert_equals_surgeon(SparseGPT(block_width=block_width), weight_OI, inputs_NTI, n_pruned, block_width)


@in_turn("n_in", [1, 2, 15, 16, 17, 40, 133])
def test_blocks_and_strips_may_end_anywhere(n_in):
    assert_equals_surgeon(SparseGPT(), normal(N_OUT, n_in), correlated(n_in, 400), N_OUT * n_in // 2, 128)


@in_turn(("pattern", "n_kept", "width"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("3:4", 3, 4), ("1:3", 1, 3)])
@in_turn("block_width", [2, 10, 128])
def test_under_a_pattern_every_group_is_chosen_from_the_weights_as_updated_so_far(block_width, pattern, n_kept, width):
    weight_OI, inputs_NTI = normal(N_OUT, 48), correlated(48)
    pruner, n_pruned = SparseGPT(pattern, block_width=block_width), N_OUT * 48 // width * (width - n_kept)
    pruned = assert_equals_surgeon(pruner, weight_OI, inputs_NTI, n_pruned, 0, n_kept, width)
    assert (pruned.kept.view(-1, width).sum(dim=1) == n_kept).all()


def test_what_is_chosen_together_makes_a_difference():
    weight_OI, inputs_NTI = normal(N_OUT, 24), correlated(24)
    pruners = [SparseGPT(block_width=1), SparseGPT(block_width=4), SparseGPT(), SparseGPT("2:4"), SparseGPT("4:8")]
    masks = [pruner.prune(weight_OI, gathered(pruner, inputs_NTI), 72).kept for pruner in pruners]
    assert len({tuple(mask_OI.flatten().tolist()) for mask_OI in masks}) == 5


@in_turn("pruner", [SparseGPT(), SparseGPT(block_width=4), SparseGPT("2:4")], ids=["128", "4", "2:4"])
def test_the_error_lies_between_those_of_the_best_and_of_no_update_for_the_same_mask(pruner):
    weight_OI, inputs_NTI = normal(N_OUT, 24), correlated(24)
    hessian_II = damped(inputs_NTI)

    def error(updated_OI):
        change_OI = weight_OI.double() - updated_OI.double()
        return float((change_OI @ hessian_II * change_OI).sum())

    for n_pruned in [72] if pruner.pattern else [12, 36, 72, 108, 132]:
        pruned = pruner.prune(weight_OI, gathered(pruner, inputs_NTI), n_pruned)
        best_OI = torch.zeros(N_OUT, 24, dtype=torch.float64)
        for row, kept_I in enumerate(pruned.kept):
            target_I = (hessian_II @ weight_OI[row].double())[kept_I]
            best_OI[row, kept_I] = torch.linalg.solve(hessian_II[kept_I][:, kept_I], target_I)
        assert error(best_OI) <= error(pruned.weight_OI) * (1 + 1e-6) < error(weight_OI * pruned.kept)


def test_the_scores_are_the_errors_that_removing_one_weight_leaves():
    weight_OI, inputs_NTI = normal(N_OUT, 7), correlated(7)
    hessian_II, scores_OI = damped(inputs_NTI), SparseGPT().scores(weight_OI, gathered(SparseGPT(), inputs_NTI))
    for i in range(N_OUT):
        for j in range(7):
            others = [k for k in range(7) if k != j]
            w_I, rest_II = weight_OI[i].double(), hessian_II[others][:, others]
            change_F = torch.linalg.solve(rest_II, hessian_II[others, j] * w_I[j])
            error = w_I[j] ** 2 * hessian_II[j, j] - change_F @ rest_II @ change_F
            assert float(scores_OI[i, j]) == pytest.approx(float(error), rel=1e-4)


def test_weights_of_dead_inputs_go_first_and_the_others_of_them_stay():
    weight_OI, inputs_NTI = 0.1 + normal(N_OUT, 24).abs(), correlated(24)
    inputs_NTI[..., [3, 20]] = 0
    statistics = gathered(SparseGPT(), inputs_NTI)
    assert statistics.dead()[0].nonzero().flatten().tolist() == [3, 20]
    assert not SparseGPT().scores(weight_OI, statistics)[:, [3, 20]].any()
    assert set(SparseGPT().ranks(weight_OI, statistics)[:, [3, 20]].flatten().tolist()) == set(range(12))
    pruned = SparseGPT().prune(weight_OI, statistics, 8)
    assert int((~pruned.kept[:, [3, 20]]).sum()) == 8
    torch.testing.assert_close(pruned.weight_OI, weight_OI * pruned.kept, rtol=1e-6, atol=0)


def test_groups_of_rows_share_the_count_and_the_first_take_what_is_left_over():
    weight_OI, statistics = normal(12, 24), SparseGPT().statistics(3, 24, 1)
    for group in range(3):
        statistics.update(correlated(24, seed=group)[0], group)
    for n_pruned, expected in [(0, [0, 0, 0]), (1, [1, 0, 0]), (101, [34, 34, 33]), (102, [34, 34, 34]), (287, [96, 96, 95])]:
        removed_OI = ~SparseGPT().prune(weight_OI, statistics, n_pruned).kept
        assert [int(part_OI.sum()) for part_OI in removed_OI.chunk(3)] == expected


def test_the_reference_threshold_takes_one_weight_more_of_every_block_and_minds_no_pattern():
    weight_OI, inputs_NTI = normal(N_OUT, 24), correlated(24)

    def n_removed(n_pruned, **options):
        pruner = SparseGPT(reference_threshold=True, **options)
        return int((~pruner.prune(weight_OI, gathered(pruner, inputs_NTI), n_pruned).kept).sum())

    assert [n_removed(n, block_width=8) for n in (0, 72, 144)] == [3, 75, 144]
    assert [n_removed(n, pattern="2:4") for n in (0, 72)] == [0, 72]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk_elements", [1, 100, 2**20])
def test_no_kept_weight_vanishes_in_the_weights_own_dtype(chunk_elements, dtype, monkeypatch):
    monkeypatch.setattr(updates, "CHUNK_ELEMENTS", chunk_elements)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    weight_OI, inputs_NTI = (3 * smallest * normal(40, 24)).to(dtype), correlated(24)
    pruned, in_fp32 = (SparseGPT().prune(w_OI, gathered(SparseGPT(), inputs_NTI), 300) for w_OI in (weight_OI, weight_OI.float()))
    assert torch.equal(pruned.kept, in_fp32.kept)
    small_OI = pruned.kept & (in_fp32.weight_OI.to(dtype) == 0) & (weight_OI != 0)
    assert small_OI.any()
    assert torch.equal(pruned.weight_OI[small_OI].float(), smallest * in_fp32.weight_OI[small_OI].sign())
    assert torch.equal(pruned.weight_OI[~small_OI], in_fp32.weight_OI[~small_OI].to(dtype))


def test_no_kept_weight_overflows_in_the_weights_own_dtype():
    weight_OI, inputs_NTI = torch.full((4, 24), 6e4).half(), torch.ones(3, 5, 24) + 0.01 * normal(3, 5, 24)
    updated_OI = SparseGPT().prune(weight_OI.float(), gathered(SparseGPT(), inputs_NTI), 48).weight_OI
    assert updated_OI.abs().max() > torch.finfo(torch.float16).max
    pruned = SparseGPT().prune(weight_OI, gathered(SparseGPT(), inputs_NTI), 48)
    assert pruned.weight_OI.isfinite().all()
    assert (~pruned.kept).sum() == 48


def test_updates_that_are_no_numbers_are_refused():
    weight_OI, inputs_NTI = 3e38 * torch.ones(2, 24), torch.ones(1, 5, 24)
    weight_OI[:, ::2] *= -1
    with pytest.raises(PruningError, match="the updated weights of a unit are not finite"):
        SparseGPT(percent_damping=1e-6).prune(weight_OI, gathered(SparseGPT(percent_damping=1e-6), inputs_NTI), 40)


def pairs(n_tokens):
    """Inputs of which each token reaches two channels alike; powers of two, so that pivots are exactly zero."""
    inputs_NTI = torch.zeros(1, n_tokens, 24)
    for token in range(n_tokens):
        inputs_NTI[0, token, 2 * token : 2 * token + 2] = 2.0**token
    return inputs_NTI


@pytest.mark.parametrize(
    "inputs_NTI",
    [pairs(1), pairs(3), pairs(12), correlated(24, 12), correlated(24, 20)],
    ids=["1", "3", "12", "rank 12", "rank 20"],
)
@pytest.mark.usefixtures("panel_width")
def test_damping_is_raised_until_a_singular_hessian_can_be_factorised(inputs_NTI, caplog):
    pruner, weight_OI = SparseGPT(percent_damping=0), normal(N_OUT, 24)
    statistics = gathered(pruner, inputs_NTI)
    with caplog.at_level(logging.WARNING):
        pruned = pruner.prune(weight_OI, statistics, 72)
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0] == "a Hessian is not positive definite; its damping is raised to 1e-06 of the mean diagonal"
    assert pruned.weight_OI.isfinite().all()
    assert (~pruned.kept).sum() == 72
    found = float(warnings[-1].split("raised to ")[1].split()[0])
    asked = SparseGPT(percent_damping=found)
    same = asked.prune(weight_OI, gathered(asked, inputs_NTI), 72)
    assert torch.equal(same.kept, pruned.kept)
    assert torch.equal(same.weight_OI, pruned.weight_OI)


@in_turn("value", [math.nan, math.inf, 1e30, 6e18])
def test_a_hessian_that_is_not_finite_is_refused_however_often(value):
    inputs_NTI = correlated(24)
    inputs_NTI[0, 2, :6] = value
    factor = gathered(SparseGPT(), inputs_NTI)
    for _ in range(2):
        for ask in (lambda: factor.block(0, 0, 24), factor.inverse_diagonal):
            with pytest.raises(PruningError, match="the scores of a unit are not finite"):
                ask()


@in_turn(
    ("options", "message"),
    [
        ({"block_width": 0}, "block_width must be at least 1, got 0"),
        ({"percent_damping": -0.1}, r"percent_damping must lie in \[0, 1\], got -0.1"),
        ({"percent_damping": math.nan}, r"percent_damping must lie in \[0, 1\], got nan"),
        ({"pattern": "4:2"}, "must read N:M"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SparseGPT(**options)


def factor_of(*inputs_of_groups, n_sequences=1, percent_damping=0.01):
    factor = HessianFactor(len(inputs_of_groups), inputs_of_groups[0].shape[-1], n_sequences, percent_damping)
    for group, inputs_NTI in enumerate(inputs_of_groups):
        factor.update(inputs_NTI, group)
    return factor


@in_turn(("n_in", "percent_damping"), [(1, 0.01), (5, 0.1), (16, 1.0), (25, 0.01), (25, 1.0), (130, 0.1), (300, 0.01)])
@pytest.mark.usefixtures("panel_width")
def test_the_factor_is_the_inverse_of_that_of_the_published_three_steps(n_in, percent_damping):
    groups = [correlated(n_in, 2 * n_in + 3, seed=seed) for seed in (1, 2)]
    groups[1][..., 0] = 0
    factor = factor_of(*groups, percent_damping=percent_damping)
    for group, inputs_NTI in enumerate(groups):
        hessian_II = damped(inputs_NTI, percent_damping).float()
        inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(hessian_II))
        expected_II = torch.linalg.inv(torch.linalg.cholesky(inverse_II, upper=True))
        atol = 1e-5 * float(expected_II.abs().max())
        torch.testing.assert_close(factor.block(group, 0, n_in), expected_II, rtol=1e-3, atol=atol)
        for width in (n_in, 7, 1)[: 2 if n_in == 300 else 3]:
            for start in range(0, n_in, width):
                stop = min(start + width, n_in)
                block_BF = factor.block(group, start, stop)
                assert block_BF.shape == (stop - start, n_in - start)
                torch.testing.assert_close(block_BF, expected_II[start:stop, start:], rtol=1e-3, atol=atol)


@pytest.mark.parametrize("n_in", [1, 5, 16, 25, 130])
@pytest.mark.usefixtures("panel_width")
def test_the_inverse_diagonal_is_that_of_the_explicit_inverse(n_in):
    groups = [correlated(n_in, 2 * n_in + 3, seed=seed) for seed in (1, 2, 3)]
    expected_GI = torch.stack([torch.linalg.inv(damped(inputs_NTI)).diagonal() for inputs_NTI in groups])
    torch.testing.assert_close(factor_of(*groups).inverse_diagonal().double(), expected_GI, rtol=1e-4, atol=0)


@pytest.mark.parametrize("ask", [lambda factor: factor.block(0, 0, 1), HessianFactor.inverse_diagonal])
def test_once_the_factor_is_taken_it_takes_no_more_inputs_and_has_no_sums(ask):
    inputs_NTI = correlated(5)
    factor = factor_of(inputs_NTI)
    expected_GI = factor.means()
    ask(factor)
    with pytest.raises(AssertionError, match="the factor was taken already"):
        factor.update(inputs_NTI)
    with pytest.raises(AssertionError, match="the factor took the place of the sums"):
        factor.sums()
    assert torch.equal(factor.means(), expected_GI)
    assert not factor.dead().any()


@in_turn("n_in", [1, 7, 8, 100, 129])
@in_turn("make", [InputGram, HessianFactor])
def test_the_gram_matrix_is_the_sum_over_all_inputs_however_they_come(make, n_in):
    inputs_NTI = normal(4, 9, n_in).to(torch.bfloat16)
    gram = make(3, n_in, n_sequences=4)
    expected_GII = torch.zeros(3, n_in, n_in, dtype=torch.float64)
    # asked between batches, and for batches of sequences, sequences, tokens and none at all
    for group, part in [
        (0, inputs_NTI[:2]),
        (2, inputs_NTI[2]),
        (0, inputs_NTI[3]),
        (0, inputs_NTI[0, 0]),
        (2, inputs_NTI[0, :0]),
    ]:
        gram.update(part, group)
        part_KI = part.reshape(-1, n_in).double()
        expected_GII[group] += part_KI.T @ part_KI
        assert torch.equal(gram.sums(), gram.sums().mT)
        torch.testing.assert_close(gram.sums().double(), expected_GII, rtol=1e-5, atol=1e-5)
        means_GI = expected_GII.diagonal(dim1=1, dim2=2) / 4
        torch.testing.assert_close(gram.means().double(), means_GI, rtol=1e-5, atol=0)
    assert gram.sums().dtype is torch.float32
    assert not gram.sums()[1].any()


@pytest.mark.parametrize("make", [InputGram, HessianFactor])
def test_where_nothing_was_seen_sums_and_means_are_zero(make):
    gram = make(2, 5, n_sequences=4)
    assert torch.equal(gram.means(), torch.zeros(2, 5))
    assert torch.equal(gram.sums(), torch.zeros(2, 5, 5))
