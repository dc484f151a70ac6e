"""RIA and DSnoT against what the original implementations produced.

Shape suffixes: O out, I in, N sequences, T tokens.
"""

import json
from pathlib import Path

import pytest
import torch
from in_turn import in_turn
from safetensors.torch import load_file

from selfprune.pruners.weight_pruner import Scope
from selfprune.pruners.weights.dsnot import DSnoT
from selfprune.pruners.weights.ria import RIA

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text()) if GOLDEN.exists() else {"cases": []}
RIA_CASES = [case for case in INDEX["cases"] if case["method"] == "ria"]
DSNOT_CASES = [case for case in INDEX["cases"] if case["method"] == "dsnot"]

pytestmark = pytest.mark.skipif(not RIA_CASES, reason="the golden vectors are not beside this checkout")


@pytest.fixture(scope="module")
def tensors():
    files = ("layer_inputs", "layer_expected")
    return {name: tensor for file in files for name, tensor in load_file(GOLDEN / f"{file}.safetensors").items()}


def case_id(case):
    return case["id"]


def pattern(case):
    n_pruned, width = case["arguments"]["prune_n"], case["arguments"]["prune_m"]
    return f"{width - n_pruned}:{width}" if width else ""


def layer(case, tensors):
    """The weights and inputs of the columns that the case looks at, and the expected mask."""
    weight_OI, inputs_NTI = tensors[case["inputs"]["W"]], tensors[case["inputs"]["X"]]
    columns_I = torch.arange(weight_OI.shape[1])
    if case["inputs"].get("input_columns", "all") != "all":
        dead = INDEX["layers"][case["inputs"]["layer"]]["dead_column"]
        columns_I = columns_I[columns_I != dead][: case["inputs"]["kept_columns_count"]]
    return weight_OI[:, columns_I], inputs_NTI[..., columns_I], tensors[case["outputs"][0]["tensor"]].bool()


def gathered(pruner, inputs_NTI):
    statistics = pruner.statistics(1, inputs_NTI.shape[2], len(inputs_NTI))
    for sequence_TI in inputs_NTI:
        statistics.update(sequence_TI)
    return statistics


def asked_for(case, weight_OI):
    """How many weights the original was asked to remove."""
    ratio = case["arguments"]["sparsity_ratio"]
    if pattern(case) or not case["arguments"].get("per_outneuron", True):
        return int(weight_OI.numel() * ratio)
    return len(weight_OI) * int(weight_OI.shape[1] * ratio)


def ria(case, **options):
    scope = Scope.ROW if case["arguments"]["per_outneuron"] else Scope.MATRIX
    return RIA(pattern=pattern(case), scope=scope, activation_power=case["arguments"]["a"], **options)


def n_allowed(case):
    assert case["tolerance"]["mask"] == "exact; up to 2 entries if min_relative_gap_at_threshold < 1e-5"
    return 2 if case["independent_check"]["min_relative_gap_at_threshold"] < 1e-5 else 0


@in_turn("case", RIA_CASES, ids=case_id)
def test_ria_masks_equal_the_reference(case, tensors):
    weight_OI, inputs_NTI, expected_OI = layer(case, tensors)
    assert float((~expected_OI).float().mean()) == pytest.approx(case["expected_sparsity"], abs=1e-6)
    pruner = ria(case, reference_threshold=True)
    mask_OI = pruner.prune(weight_OI, gathered(pruner, inputs_NTI), asked_for(case, weight_OI)).kept
    assert int((mask_OI != expected_OI).sum()) <= n_allowed(case)


@in_turn("case", RIA_CASES, ids=case_id)
def test_ria_itself_removes_exactly_what_is_asked_for_and_nothing_that_the_reference_keeps(case, tensors):
    weight_OI, inputs_NTI, expected_OI = layer(case, tensors)
    pruner, n_pruned = ria(case), asked_for(case, weight_OI)
    removed_OI = ~pruner.prune(weight_OI, gathered(pruner, inputs_NTI), n_pruned).kept
    assert int(removed_OI.sum()) == n_pruned
    assert int((removed_OI & expected_OI).sum()) <= n_allowed(case)
    is_over_a_matrix = not (pattern(case) or case["arguments"]["per_outneuron"])
    assert int((~expected_OI).sum()) - n_pruned == (1 if is_over_a_matrix else 0)


@in_turn("case", RIA_CASES, ids=case_id)
def test_the_ria_statistic_equals_the_reference(case, tensors):
    _, inputs_NTI, _ = layer(case, tensors)
    expected_I = tensors[case["activation_statistic"][0]["tensor"]]
    torch.testing.assert_close(gathered(ria(case), inputs_NTI).means()[0], expected_I, rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", [case for case in RIA_CASES if case["arguments"]["prune_m"]], ids=case_id)
def test_permuted_channels_keep_more_importance_and_leave_less_error(case, tensors):
    weight_OI, inputs_NTI, expected_OI = layer(case, tensors)
    pruner = ria(case, permute_channels=True)
    statistics = gathered(pruner, inputs_NTI)
    mask_OI = pruner.prune(weight_OI, statistics, asked_for(case, weight_OI)).kept
    scores_OI = pruner.scores(weight_OI, statistics).double()
    assert (scores_OI * mask_OI).sum() > (scores_OI * expected_OI).sum()
    inputs_NTI, weight_OI = inputs_NTI.double(), weight_OI.double()
    error = (inputs_NTI @ (weight_OI * ~mask_OI).T).square().sum() / (inputs_NTI @ weight_OI.T).square().sum()
    assert float(error) < case["expected_rel_output_error"]


def dsnot(case, **options):
    arguments = case["arguments"]
    return DSnoT(
        pattern=pattern(case),
        max_cycles=arguments["max_cycle_time"],
        update_threshold=arguments["update_threshold"],
        regrowing_variance_power=arguments["pow_of_var_regrowing"],
        same_sign=not arguments["without_same_sign"],
        **options,
    )


@in_turn("case", DSNOT_CASES, ids=case_id)
def test_dsnot_with_reference_swaps_equals_the_reference(case, tensors):
    weight_OI, inputs_NTI, expected_OI = layer(case, tensors)
    pruner = dsnot(case, reference_swaps=True)
    mask_OI = pruner.prune(weight_OI, gathered(pruner, inputs_NTI), asked_for(case, weight_OI)).kept
    n_wrong = int((mask_OI != expected_OI).sum())
    assert n_wrong <= case["tolerance"]["mask_mismatch_max_fraction"] * expected_OI.numel()


@in_turn("case", DSNOT_CASES, ids=case_id)
def test_the_dsnot_statistics_equal_the_reference_however_they_are_fed(case, tensors):
    _, inputs_NTI, _ = layer(case, tensors)
    at_once = dsnot(case).statistics(1, inputs_NTI.shape[2], len(inputs_NTI))
    at_once.update(inputs_NTI)
    expected = {output["tensor"].rpartition(".")[2]: tensors[output["tensor"]] for output in case["outputs"][1:]}
    for statistics in (at_once, gathered(dsnot(case), inputs_NTI)):
        ours = {"scaler_row": statistics.means(), "sum_metric_row": statistics.mean_totals(), "var": statistics.variances()}
        assert ours.keys() == expected.keys()
        for name, tensor_GI in ours.items():
            torch.testing.assert_close(tensor_GI[0], expected[name], rtol=case["tolerance"]["stat_rtol"], atol=0)


def test_the_options_of_dsnot_are_those_of_the_published_run():
    assert DSNOT_CASES
    assert all(dsnot(case) == DSnoT(pattern=pattern(case)) for case in DSNOT_CASES)


@in_turn("case", DSNOT_CASES, ids=case_id)
def test_dsnot_itself_keeps_counts_and_groups_and_lowers_the_expected_error_of_the_rows(case, tensors):
    weight_OI, inputs_NTI, _ = layer(case, tensors)
    pruner, n_pruned = dsnot(case), asked_for(case, weight_OI)
    statistics = gathered(pruner, inputs_NTI)
    removed_OI = ~pruner.prune(weight_OI, statistics, n_pruned).kept
    before_OI = ~DSnoT(pattern=pattern(case), max_cycles=0).prune(weight_OI, statistics, n_pruned).kept
    width = case["arguments"]["prune_m"] or weight_OI.shape[1]
    assert torch.equal(removed_OI.view(-1, width).sum(dim=1), before_OI.view(-1, width).sum(dim=1))
    contributions_OI = (weight_OI * statistics.mean_totals()).double()
    ours_O, wandas_O = ((contributions_OI * mask_OI).sum(dim=1).abs() for mask_OI in (removed_OI, before_OI))
    assert (ours_O <= wandas_O).all()
    assert ours_O.mean() < 0.7 * wandas_O.mean()


@in_turn("case", [case for case in DSNOT_CASES if not case["arguments"]["prune_m"]], ids=case_id)
def test_dsnot_itself_leaves_less_error_than_the_reference(case, tensors):
    weight_OI, inputs_NTI, _ = layer(case, tensors)
    pruner = dsnot(case)
    mask_OI = pruner.prune(weight_OI, gathered(pruner, inputs_NTI), asked_for(case, weight_OI)).kept
    inputs_NTI, weight_OI = inputs_NTI.double(), weight_OI.double()
    error = (inputs_NTI @ (weight_OI * ~mask_OI).T).square().sum() / (inputs_NTI @ weight_OI.T).square().sum()
    assert float(error) < case["expected_rel_output_error"]
