"""Trainings of tiny models: what is zero stays zero, what was broken off goes on alike, and what diverges is undone."""

import math
from functools import partial
from itertools import count

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.models.units import stored_weight, weight_view
from selfprune.training import targets as targets_module
from selfprune.training.base import Lesson, Trained
from selfprune.training.distillation import Distillation
from selfprune.training.hidden_states import hidden_loss
from selfprune.training.next_token import NextToken
from selfprune.training.none import NoTraining
from selfprune.training.targets import Targets, prepare_targets
from selfprune.training.trained_parameters import trained_parameters

WINDOWS_NT = torch.randint(3, 60, (12, 8), generator=torch.Generator().manual_seed(0))
SMALL = {"n_tokens": 12 * 8, "batch_size": 4, "micro_batch": 4, "n_checks": 3, "rank": 2}


class Stopped(Exception):  # noqa: N818 - a kill, and no error
    pass


@pytest.fixture
def pruned(load_sparse):
    return lambda family="llama": load_sparse(family, 0.5)


def lesson_of(loaded, metric=None, check=None):
    metric = metric or NextToken(**SMALL).metric()

    @torch.no_grad()
    def score():
        logits = loaded.model(WINDOWS_NT).logits
        return float(metric.window_scores(logits, WINDOWS_NT, metric.prepare(logits, WINDOWS_NT)).mean())

    return {"targets": Targets(metric, ()), "check": check or score}


def trained(loaded, folder, config=None, lesson=None, on_step=lambda *_: None):
    config = config or NextToken(**SMALL)
    with trained_parameters(loaded.model, loaded.units, config.trained, config.rank, seed=0) as parameters:
        given = lesson or lesson_of(loaded)
        lesson = Lesson(WINDOWS_NT, **given, dense=loaded, seed=0, folder=folder, on_step=on_step)
        return config.train_in_place(loaded, parameters, lesson)


def weights_of(loaded):
    return {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("kind", list(Trained))
def test_zeros_stay_zeros_through_training_and_merging_and_other_weights_learn(kind, family, pruned, tmp_path):
    loaded = pruned(family)
    zeros = {unit.name: weight_view(loaded.model, unit) == 0 for unit in loaded.units}
    before = weights_of(loaded)
    course = trained(loaded, tmp_path, NextToken(**SMALL, trained=kind, learning_rate=1e-2, weight_decay=0.1))
    assert course.scores[course.best] < course.scores[0]
    for unit in loaded.units:
        assert torch.equal(weight_view(loaded.model, unit) == 0, zeros[unit.name]), unit.name
    after = weights_of(loaded)
    assert after.keys() == before.keys(), "nothing is left of what stood beside the weights"
    assert not same(before, after)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    embedding = next(name for name in before if "embed" in name or "wte" in name)
    assert torch.equal(before[embedding], after[embedding]) == (kind is not Trained.FULL)


def test_a_training_that_was_killed_twice_ends_with_the_very_same_weights(pruned, tmp_path):
    config = NextToken(**{**SMALL, "n_tokens": 12 * 8 * 4}, n_epochs=4, learning_rate=1e-2)
    whole = pruned()
    course = trained(whole, tmp_path / "whole", config)

    def killed_after(n):
        def on_step(step, note):
            if step == n:
                raise Stopped

        return on_step

    for n in (5, 10):
        with pytest.raises(Stopped):
            trained(pruned(), tmp_path / "broken", config, on_step=killed_after(n))
    again = pruned()
    resumed = trained(again, tmp_path / "broken", config)
    assert same(weights_of(whole), weights_of(again))
    assert (resumed.scores, resumed.n_tokens, resumed.best) == (course.scores, course.n_tokens, course.best)


def test_a_loss_that_is_not_finite_ends_it_and_the_best_weights_are_back(pruned, tmp_path):
    loaded = pruned()
    before = weights_of(loaded)
    course = trained(loaded, tmp_path, NextToken(**SMALL, learning_rate=1e30))
    assert "not finite" in course.ending
    assert course.best == 0
    assert same(before, weights_of(loaded))


def test_a_loss_that_is_not_finite_ends_it_before_the_step_is_made(pruned, tmp_path, monkeypatch):
    loaded = pruned()
    lesson = lesson_of(loaded)
    seen = []

    def scores(self, logits, tokens, windows):
        seen.append(windows)
        return logits.sum((1, 2)) * (float("nan") if len(seen) == 2 else 1e-6)

    monkeypatch.setattr(Targets, "scores", scores)
    course = trained(loaded, tmp_path, lesson=lesson)
    assert course.ending == "the loss was not finite at step 2 of 3"
    assert course.n_tokens == 4 * 8
    assert all(bool(parameter.isfinite().all()) for parameter in loaded.model.parameters())


def test_checks_without_a_better_score_end_it(pruned, tmp_path):
    loaded, scores = pruned(), iter([1.0, 0.5, 0.6, 0.7, 0.1])
    config = NextToken(**{**SMALL, "n_tokens": 12 * 8 * 4, "n_checks": 4, "patience": 2}, n_epochs=4)
    course = trained(loaded, tmp_path, config, lesson_of(loaded, check=lambda: next(scores)))
    assert (course.scores, course.best) == ([1.0, 0.5, 0.6, 0.7], 1)
    assert course.ending == "2 checks brought no better score"


def test_hidden_states_come_nearer_to_the_dense_models_where_they_have_a_weight(load_tiny, pruned, tmp_path):
    dense = load_tiny("llama")
    metric = Distillation(**SMALL, n_top=8).metric()
    targets = prepare_targets(metric, dense.model, WINDOWS_NT, 4, tmp_path / "targets")

    @torch.no_grad()
    def distance(loaded):
        own, others = (m.model(WINDOWS_NT, output_hidden_states=True).hidden_states for m in (loaded, dense))
        return float(sum((a - b).square().sum() / b.square().sum() for a, b in zip(own, others, strict=True)))

    before, found = distance(pruned()), {}
    for weight in (0.0, 10.0):
        loaded = pruned()
        config = Distillation(**{**SMALL, "n_tokens": 12 * 8 * 4}, n_epochs=4, n_top=8, hidden_weight=weight, learning_rate=3e-3)
        with trained_parameters(loaded.model, loaded.units, config.trained, config.rank, seed=0) as parameters:
            lesson = Lesson(
                WINDOWS_NT, targets, partial(next, count(99, -1)), dense, 0, tmp_path / str(weight)
            )  # the last is kept
            config.train_in_place(loaded, parameters, lesson)
        found[weight] = distance(loaded)
    assert found[10.0] < 0.9 * before
    assert found[10.0] < found[0.0]


def test_hidden_states_need_every_block_and_a_weight_that_is_one(load_tiny):
    hidden = [torch.zeros(1, 8, 4)] * 2
    dense = load_tiny("llama")
    with pytest.raises(ConfigError, match=r"training\.hidden_weight compares .* the pruned model has 1; give"):
        hidden_loss(hidden, dense.model, WINDOWS_NT[:1])
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="hidden_weight must be finite and not negative"):
            Distillation(**SMALL, hidden_weight=weight)


@pytest.mark.parametrize("change", [{"micro_batch": 2}, {"checkpoint_blocks": True}])
def test_passes_that_save_memory_make_the_same_steps(change, pruned, tmp_path):
    one, other = pruned(), pruned()
    trained(one, tmp_path / "one", NextToken(**SMALL))
    trained(other, tmp_path / "other", NextToken(**{**SMALL, **change}))
    for (name, a), b in zip(weights_of(one).items(), weights_of(other).values(), strict=True):
        assert torch.allclose(a, b, atol=2e-6), name
    assert not other.model.training


def test_steps_are_those_of_adamw_by_hand(pruned, tmp_path):
    """A plain loop with torch alone, on the same order of windows and with the same rates."""
    config = NextToken(**{**SMALL, "n_checks": 1}, learning_rate=1e-3)
    loaded, plain = pruned(), pruned()
    zeros = [(weight_view(plain.model, unit), weight_view(plain.model, unit) == 0) for unit in plain.units]
    plain.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(plain.model.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    gradients = [stored_weight(plain.model, unit) for unit in plain.units]
    for step, rate in enumerate([0.0, 1e-3, 1e-3 * 0.5 * (1 + math.cos(math.pi / 2))]):
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens = WINDOWS_NT[order[4 * step : 4 * step + 4]]
        logits = plain.model(tokens).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        for parameter, (_, zero) in zip(gradients, zeros, strict=True):
            parameter.grad[zero] = 0
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    trained(loaded, tmp_path, config, lesson_of(loaded, check=iter([2.0, 1.0]).__next__))
    for (name, a), b in zip(weights_of(loaded).items(), plain.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_a_state_that_is_broken_is_refused_with_what_to_do(pruned, tmp_path):
    trained(pruned(), tmp_path)
    (tmp_path / "state.pt").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=r"state\.pt should hold the state of a training.*the pruned model is as it was"):
        trained(pruned(), tmp_path)


def test_targets_on_disk_are_those_of_the_metric(load_tiny, tmp_path):
    loaded, metric = load_tiny("llama"), KLDivergence(5)
    found = prepare_targets(metric, loaded.model, WINDOWS_NT, 5, tmp_path)
    student = load_tiny("llama").model
    with torch.no_grad():
        student.lm_head.weight.mul_(0.5)
        logits, dense = student(WINDOWS_NT[[7, 2]]).logits, loaded.model(WINDOWS_NT[[7, 2]]).logits
    expected = metric.window_scores(logits, WINDOWS_NT[[7, 2]], metric.prepare(dense, WINDOWS_NT[[7, 2]]))
    assert found.scores(logits, WINDOWS_NT[[7, 2]], [7, 2]).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert len(list(tmp_path.glob("targets-*.npy"))) == 2


def test_a_disk_without_room_for_targets_is_told_with_figures(load_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(targets_module, "free_bytes", lambda _: 100)
    with pytest.raises(
        ConfigError, match=r"answers to 96 tokens of training take .* lower training\.n_tokens or training\.n_top"
    ):
        prepare_targets(KLDivergence(5), load_tiny("llama").model, WINDOWS_NT, 4, tmp_path)


def test_distillation_brings_the_pruned_model_nearer_to_the_dense_one(load_tiny, pruned, tmp_path):
    config = Distillation(**{**SMALL, "n_tokens": 12 * 8 * 10}, n_epochs=10, learning_rate=3e-3, n_top=8)
    targets = prepare_targets(config.metric(), load_tiny("llama").model, WINDOWS_NT, 4, tmp_path)
    loaded = pruned()

    @torch.no_grad()
    def kl():
        return float(targets.scores(loaded.model(WINDOWS_NT).logits, WINDOWS_NT, range(12)).mean())

    course = trained(loaded, tmp_path / "state", config, {"targets": targets, "check": kl})
    assert kl() == course.scores[course.best] < 0.7 * course.scores[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_tokens": 0}, r"training\.n_tokens must be at least 1, got 0"),
        ({"learning_rate": 0.0}, r"training\.learning_rate must be above 0"),
        ({"micro_batch": 3}, r"training\.micro_batch must divide training\.batch_size=8, got 3"),
        ({"weight_decay": -1.0}, r"training\.weight_decay must not be negative"),
        ({"rows": []}, r"training\.rows must name rows of the report"),
        ({"n_top": 0}, r"training\.n_top must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Distillation(**wrong)


def test_windows_come_in_whole_batches():
    assert Distillation(n_tokens=1_000_000).n_windows(256) == 3904
    assert Distillation(n_tokens=1_000_000, n_epochs=4).n_windows(256) == 976
    assert Distillation(n_tokens=1).n_windows(256) == 8


def test_the_merged_model_is_saved_and_read_as_any_other(pruned, tmp_path):
    loaded = pruned()
    trained(loaded, tmp_path / "state", NextToken(**SMALL, trained=Trained.LORA, learning_rate=1e-2))
    loaded.model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again(WINDOWS_NT).logits, loaded.model(WINDOWS_NT).logits)


def test_what_a_training_takes_is_told_before():
    config = Distillation(n_tokens=1_000_000, n_epochs=4, rows=["winner", "uniform"])
    assert config.held_bytes(10) == 160
    # three passes of a million tokens for each row, and a quarter of a million of the dense model
    assert config.n_pass_tokens() == 6_250_000
    # 976 windows of 256 tokens, each with 64 logarithms and ids; weights, the best of them, and two moments
    assert config.disk_bytes(10, 256, 1000) == 976 * 256 * 64 * 8 + 200
    assert NextToken().disk_bytes(10, 256, 1000) == 200
    assert (NoTraining().held_bytes(10), NoTraining().disk_bytes(10, 256, 9), NoTraining().n_pass_tokens()) == (0, 0, 0)
