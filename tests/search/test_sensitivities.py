import pytest
import torch
from calibrated import mask_levels

from selfprune.allocations.level_grid import LevelGrid
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.loading import LoadedModel
from selfprune.models.units import find_blocks, list_units
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.search.bench import Bench
from selfprune.search.scoring import Scorer
from selfprune.search.sensitivities import measure_sensitivities
from selfprune.storage.journal import Journal

WINDOWS_NT = torch.randint(0, 300, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def scorer(make_tiny_model, tmp_path):
    model = make_tiny_model("llama")
    # random logits are nearly flat
    model.lm_head.weight.mul_(50)
    loaded = LoadedModel(model, None, list_units(model), find_blocks(model)[1], torch.device("cpu"))
    store = mask_levels(loaded, LevelGrid.with_constant_step(loaded.units, 0.25, 0.75), WINDOWS_NT, Magnitude(), 4)
    evaluator = WindowEvaluator({"score": KLDivergence()}, model, loaded.blocks, WINDOWS_NT, 2)
    return Scorer(Bench(store, evaluator), Journal(tmp_path / "evaluations.jsonl"))


@pytest.mark.parametrize(("sparsity", "reached"), [(0.3, 0.5), (0.5, 0.5), (0.9, 0.75)])
def test_units_are_pruned_alone_at_the_first_level_that_reaches_the_sparsity_or_else_the_highest(sparsity, reached, scorer):
    units, done, measured = scorer.grid.units, [], []
    load = scorer.bench.store.load
    scorer.bench.store.load = lambda allocation: measured.append(allocation) or load(allocation)
    rises = measure_sensitivities(scorer, sparsity, 2, done.append)
    assert done == list(range(1, len(units) + 1))
    smallest = min(unit.n_items for unit in units)
    for unit, allocation in zip(units, list(measured), strict=True):
        assert [name for name, level in allocation.items() if level] == [unit.name]
        share = allocation[unit.name] / unit.n_items
        # of larger units a step is less than a quarter
        assert share == reached if unit.n_items == smallest else min(sparsity, 0.7) <= share <= reached
        scores = scorer.bench.scores(allocation, range(2))
        assert rises[unit.name] == pytest.approx(sum(scores) / 2 - sum(scorer.bench.dense_scores[:2]) / 2, abs=1e-6)
    assert max(rises.values()) > 0


def test_what_was_measured_is_read_back_with_its_seconds(scorer, tmp_path):
    rises = measure_sensitivities(scorer, 0.5, 2)
    again = Scorer(scorer.bench, Journal(tmp_path / "evaluations.jsonl"))
    again.bench.store.load = None  # nothing may be measured anew
    assert measure_sensitivities(again, 0.5, 2) == rises
    assert again.seconds == scorer.seconds > 0
