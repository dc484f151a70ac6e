"""ADMM and ALPS against what the original implementations produced.

Shape suffixes: O out, I in, N sequences, T tokens, K tokens of all sequences.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfprune.pruners.weights.admm import ADMM
from selfprune.pruners.weights.alps import ALPS

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"] if GOLDEN.exists() else []
METHODS = {"admm": ADMM, "alps": ALPS}
LAYERS = [case for case in CASES if case["level"] == "layer" and case["method"] in METHODS]
KEPT_OF_GROUP = {"admm": ("prune_n", "prune_m"), "alps": ("nm_n", "nm_m")}

pytestmark = pytest.mark.skipif(not LAYERS, reason="the golden vectors are not beside this checkout")


@pytest.fixture(scope="module")
def tensors():
    files = ("layer_inputs", "layer_expected")
    return {name: tensor for file in files for name, tensor in load_file(GOLDEN / f"{file}.safetensors").items()}


def make_pruner(case):
    arguments = case["arguments"]
    n_kept, width = (arguments[name] for name in KEPT_OF_GROUP[case["method"]])
    pattern = f"{n_kept}:{width}" if width else ""
    if case["method"] == "admm":
        return ADMM(
            pattern,
            percent_damping=arguments["percdamp"],
            n_iterations=arguments["iters"],
            n_mask_iterations=arguments["iterative_prune"],
        )
    return ALPS(
        pattern,
        rho=arguments["rho"],
        max_iterations=arguments["max_iter"],
        support_check_every=arguments["update_iter"],
        switch_iteration=arguments["switch_iter"],
    )


@pytest.fixture(scope="module", params=LAYERS, ids=lambda case: case["id"])
def pruned(request, tensors):
    """A case with its tensors and what we make of it at the reference's own count."""
    case = request.param
    weight_OI, inputs_NTI = tensors[case["inputs"]["W"]], tensors[case["inputs"]["X"]]
    expected_OI, expected_weight_OI = (tensors[output["tensor"]] for output in case["outputs"])
    pruner = make_pruner(case)
    statistics = pruner.statistics(1, inputs_NTI.shape[2], len(inputs_NTI))
    for sequence_TI in inputs_NTI:
        statistics.update(sequence_TI)
    ours = pruner.prune(weight_OI, statistics, int((expected_OI == 0).sum()))
    return case, weight_OI, inputs_NTI.flatten(0, 1).double(), expected_OI.bool(), expected_weight_OI, ours


def relative_error(weight_OI, updated_OI, gram_II):
    change_OI, weight_OI = (weight_OI.double() - updated_OI.double()), weight_OI.double()
    return float((change_OI @ gram_II * change_OI).sum() / (weight_OI @ gram_II * weight_OI).sum())


def test_the_count_is_exact_and_the_mask_nearly_the_reference(pruned):
    case, weight_OI, _, expected_OI, _, ours = pruned
    assert (~expected_OI).sum() / expected_OI.numel() == pytest.approx(case["expected_sparsity"], abs=1e-7)
    assert (~ours.kept).sum() == (~expected_OI).sum()
    assert not ours.weight_OI[~ours.kept].any()
    assert (ours.kept != expected_OI).sum() <= case["tolerance"]["mask_mismatch_max_fraction"] * weight_OI.numel()
    width = case["arguments"][KEPT_OF_GROUP[case["method"]][1]]
    if width:
        assert torch.equal(ours.kept.view(-1, width).sum(dim=1), expected_OI.view(-1, width).sum(dim=1))


def test_the_output_error_equals_the_reference(pruned):
    case, weight_OI, inputs_KI, _, _, ours = pruned
    error = relative_error(weight_OI, ours.weight_OI, inputs_KI.T @ inputs_KI)
    assert error == pytest.approx(case["expected_rel_output_error"], rel=case["tolerance"]["rel_output_error_rtol"])


def test_the_weights_equal_the_reference_where_it_is_reproducible(pruned):
    case, _, _, _, expected_weight_OI, ours = pruned
    if "rel_frobenius_max" not in case["tolerance"]:
        pytest.skip("the reference does not reproduce its own weights here")
    distance = (ours.weight_OI - expected_weight_OI).norm() / expected_weight_OI.norm()
    assert distance <= case["tolerance"]["rel_frobenius_max"]


def test_the_error_that_the_reference_returns_is_ours(pruned):
    case, weight_OI, inputs_KI, _, _, ours = pruned
    if "returned_error" not in case:
        pytest.skip("the reference returns none")
    gram_II = inputs_KI.T @ inputs_KI
    # The reference counts its damping in.
    gram_II.diagonal().add_(make_pruner(case).percent_damping * gram_II.diagonal().mean())
    error = relative_error(weight_OI, ours.weight_OI, gram_II)
    assert error == pytest.approx(case["returned_error"], rel=case["tolerance"]["returned_error_rtol"])
