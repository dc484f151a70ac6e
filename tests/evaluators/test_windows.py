import math
from statistics import fmean

import pytest
import torch
from torch import nn

from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics import base
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.window_metrics.perplexity import Perplexity
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.blocks import calls
from selfprune.models.units import find_blocks, list_units, weight_view

V = 300
WINDOWS_NT = torch.randint(V, (10, 12), generator=torch.Generator().manual_seed(0))
DENSE = ["dense"] * 2


@pytest.fixture
def model(make_tiny_model):
    """A tiny Llama whose distributions are as uneven as those of real models."""
    model = make_tiny_model("llama")
    model.lm_head.weight.mul_(30)
    return model


def prune(model, fraction=0.5):
    for unit in list_units(model):
        weight_OI = weight_view(model, unit)
        weight_OI[weight_OI.abs() < weight_OI.abs().quantile(fraction)] = 0


def logprobs(model, windows_NT=WINDOWS_NT):
    with torch.no_grad():
        return model(input_ids=windows_NT).logits.double().log_softmax(dim=-1)


def build(model, metric, **settings):
    return WindowEvaluator({"score": metric}, model, find_blocks(model)[1], WINDOWS_NT, **({"batch_size": 4} | settings))


def coarse_kl(p_NTV, q_NTV, n_top):
    """KL per window in fp64 from log-probabilities, all outcomes but p's likeliest merged into one."""
    top_NTK = p_NTV.topk(n_top, dim=-1).indices
    merged = []
    for logs_NTV in (p_NTV, q_NTV):
        top_probs_NTK = logs_NTV.exp().gather(-1, top_NTK)
        rest_NT1 = logs_NTV.exp().scatter(-1, top_NTK, 0).sum(dim=-1, keepdim=True)
        merged.append(torch.cat([top_probs_NTK, rest_NT1], dim=-1))
    return torch.special.xlogy(merged[0], merged[0] / merged[1]).nan_to_num(0).sum(dim=-1).mean(dim=-1)


def scores(evaluator):
    return torch.tensor(evaluator.evaluate(["pruned"] * 2)["score"], dtype=torch.float64)


@pytest.mark.parametrize("n_top", [V, 512])
def test_kl_over_the_whole_vocabulary_equals_the_definition(n_top, model):
    evaluator = build(model, KLDivergence(n_top))
    p_NTV = logprobs(model)
    prune(model)
    q_NTV = logprobs(model)
    expected_N = (p_NTV.exp() * (p_NTV - q_NTV)).sum(dim=-1).mean(dim=-1)
    assert expected_N.min() > 0.01
    torch.testing.assert_close(scores(evaluator), expected_N, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_top", [1, 32, V - 1])
def test_kl_of_the_top_compares_the_tail_as_one_outcome(n_top, model):
    evaluator = build(model, KLDivergence(n_top))
    p_NTV = logprobs(model)
    prune(model)
    torch.testing.assert_close(scores(evaluator), coarse_kl(p_NTV, logprobs(model), n_top), rtol=1e-4, atol=1e-5)


def test_kl_of_the_top_is_a_lower_bound_that_grows_towards_the_whole(model):
    evaluators = [build(model, KLDivergence(n_top)) for n_top in (4, 32, 128, V)]
    prune(model)
    kl_DN = torch.stack([scores(evaluator) for evaluator in evaluators])
    assert (kl_DN.diff(dim=0) >= -1e-6).all()
    assert (kl_DN[2] > 0.9 * kl_DN[3]).all()


@pytest.mark.parametrize("n_top", [1, 32, 512])
def test_kl_of_the_dense_model_is_zero(n_top, model):
    assert scores(build(model, KLDivergence(n_top))).abs().max() <= 1e-6


@pytest.mark.parametrize("sharpness", [1e3, 1e5])
def test_kl_stays_finite_where_the_tail_has_no_mass(sharpness, model):
    model.lm_head.weight.mul_(sharpness)
    evaluator = build(model, KLDivergence(32))
    assert scores(evaluator).abs().max() <= 1e-5
    prune(model)
    assert scores(evaluator).isfinite().all()


def test_kl_compares_with_the_model_as_it_was_at_construction(model):
    p_NTV = logprobs(model)
    prune(model)
    evaluator = build(model, KLDivergence())
    assert scores(evaluator).abs().max() <= 1e-6
    assert (p_NTV - logprobs(model)).abs().max() > 0.1


@pytest.mark.parametrize("n_top", [0, -5])
def test_a_top_of_nothing_is_refused(n_top):
    with pytest.raises(ConfigError, match=rf"evaluator\.n_top must be at least 1, got {n_top}; 512 is a good value"):
        KLDivergence(n_top)


def test_perplexity_is_the_loss_of_the_library(model):
    evaluator = build(model, Perplexity())
    with torch.no_grad():
        expected_N = torch.stack([model(input_ids=w_NT, labels=w_NT).loss for w_NT in WINDOWS_NT.split(1)]).double()
        whole = model(input_ids=WINDOWS_NT, labels=WINDOWS_NT).loss.item()
    torch.testing.assert_close(scores(evaluator), expected_N, rtol=1e-6, atol=1e-6)
    assert fmean(evaluator.evaluate(DENSE)["score"]) == pytest.approx(whole, rel=1e-6)


def test_several_metrics_are_measured_in_one_pass_and_the_first_is_the_score(model):
    blocks = find_blocks(model)[1]
    metrics = {"kl": KLDivergence(), "nll": Perplexity()}
    both = WindowEvaluator(metrics, model, blocks, WINDOWS_NT, batch_size=4)
    n_passes = 0

    def count(*_):
        nonlocal n_passes
        n_passes += 1

    prune(model)
    single = {name: WindowEvaluator({name: metric}, model, blocks, WINDOWS_NT, 4) for name, metric in metrics.items()}
    nll = single["nll"].evaluate(DENSE)
    blocks[0].mlp.register_forward_pre_hook(count)
    evaluation = both.evaluate(["pruned"] * 2)
    assert n_passes == 3
    assert evaluation["nll"] == nll["nll"]
    assert next(iter(evaluation)) == "kl"


@pytest.mark.parametrize("metric", [KLDivergence(32), Perplexity()], ids=["kl", "perplexity"])
def test_parts_add_up_to_the_whole(metric, model):
    evaluator = build(model, metric)
    prune(model)
    parts = [evaluator.evaluate(["pruned"] * 2, windows) for windows in (range(3), range(3, 8), range(8, 10))]
    whole = evaluator.evaluate(["pruned"] * 2)
    assert [len(part["score"]) for part in parts] == [3, 5, 2]
    assert [score for part in parts for score in part["score"]] == whole["score"]


def test_windows_come_in_the_order_in_which_they_are_asked_for(model):
    evaluator = build(model, Perplexity(), batch_size=3)
    prune(model)
    whole = evaluator.evaluate(["pruned"] * 2)["score"]
    assert len(set(whole)) == 10
    wanted = [9, 1, 4, 0, 7]
    assert evaluator.evaluate(["pruned"] * 2, wanted)["score"] == [whole[window] for window in wanted]


@pytest.mark.parametrize("n_top", [32, 512, None])
def test_the_loss_of_windows_is_the_sum_of_their_scores_and_has_their_gradient(n_top, model):
    metric = Perplexity() if n_top is None else KLDivergence(n_top)
    evaluator = build(model, metric)
    p_NTV = logprobs(model, WINDOWS_NT[[6, 2, 9]])
    prune(model)
    tokens_NT, loss = evaluator.loss([6, 2, 9])
    assert torch.equal(tokens_NT, WINDOWS_NT[[6, 2, 9]])
    with torch.no_grad():
        logits_NTV = model(input_ids=tokens_NT).logits
    expected = math.fsum(evaluator.evaluate(["pruned"] * 2, [6, 2, 9])["score"])
    logits_NTV.requires_grad_()
    wide_NTV = logits_NTV.detach().double().requires_grad_()
    with torch.enable_grad():
        ours = loss(slice(0, 3), logits_NTV)
        if n_top is None:
            plain = nn.functional.cross_entropy(wide_NTV[:, :-1].flatten(0, 1), tokens_NT[:, 1:].flatten()) * len(tokens_NT)
        else:
            plain = coarse_kl(p_NTV, wide_NTV.log_softmax(dim=-1), min(n_top, V)).sum()
        (gradient_NTV,) = torch.autograd.grad(ours, logits_NTV)
        (expected_NTV,) = torch.autograd.grad(plain, wide_NTV)
    assert ours.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient_NTV.double(), expected_NTV, rtol=1e-3, atol=1e-5 * float(expected_NTV.abs().max()))


def test_scores_do_not_depend_on_how_many_windows_share_a_pass_nor_on_which(model):
    evaluators = [build(model, KLDivergence(), batch_size=size, prefix_bytes=10**7) for size in (1, 3, 10)]
    assert len({evaluator.dense_nll_per_token for evaluator in evaluators}) == 1
    prune(model)
    for windows in (range(10), [9, 2, 5, 0], [2, 9]):
        first, *others = (evaluator.evaluate(["pruned"] * 2, windows) for evaluator in evaluators)
        assert others == [first, first]


def test_prefix_reuse_changes_no_score(model):
    with_reuse, without = (build(model, KLDivergence(), prefix_bytes=n_bytes) for n_bytes in (10**7, 0))
    units = list_units(model)
    for step in range(4):
        block = 0 if step == 2 else 1
        weight_view(model, next(unit for unit in units if unit.block == block))[step] = 0
        versions = [step >= 2, step]
        assert with_reuse.evaluate(versions) == without.evaluate(versions)
    assert with_reuse.forward.n_blocks_run < without.forward.n_blocks_run


@pytest.mark.parametrize("metric", [KLDivergence(32), KLDivergence(), Perplexity()], ids=["top", "whole", "perplexity"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_broken_weights_give_a_score_that_is_not_finite_and_no_exception(broken, metric, model):
    evaluator = build(model, metric)
    weight_view(model, list_units(model)[-1])[:] = broken
    assert not math.isfinite(fmean(evaluator.evaluate(["broken"] * 2)["score"]))


@pytest.mark.parametrize("metric", [KLDivergence(32), KLDivergence(V), Perplexity()], ids=["kl", "all of kl", "perplexity"])
def test_neither_scores_nor_gradients_depend_on_how_many_logits_are_worked_on_at_once(metric, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    tokens_NT = torch.randint(V, (2, 37), generator=generator)
    dense_NTV, pruned_NTV = (3 * torch.randn(2, 37, V, generator=generator) for _ in range(2))
    found = []
    for n_at_once in (2**20, 1):
        monkeypatch.setattr(base, "N_LOGITS_IN_CACHE", n_at_once)
        logits_NTV = pruned_NTV.clone().requires_grad_()
        with torch.enable_grad():
            scores_N = metric.window_scores(logits_NTV, tokens_NT, metric.prepare(dense_NTV, tokens_NT))
            found.append((scores_N, torch.autograd.grad(scores_N.sum(), logits_NTV)[0]))
    (whole_N, of_whole_NTV), (parts_N, of_parts_NTV) = found
    assert torch.equal(whole_N, parts_N)
    assert of_whole_NTV.any()
    assert torch.equal(of_whole_NTV, of_parts_NTV)


def test_the_logits_of_a_large_vocabulary_are_held_for_one_window_at_a_time(model, monkeypatch):
    evaluator = build(model, KLDivergence(32))
    prune(model)
    together = evaluator.evaluate(["pruned"] * 2)
    sizes = []
    monkeypatch.setattr(calls, "N_LOGITS_TOGETHER", 1)
    model.lm_head.register_forward_hook(lambda *seen: sizes.append(seen[2].shape[0]))
    assert evaluator.evaluate(["pruned"] * 2) == together
    assert set(sizes) == {1}
