from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from calibrated import statistics_of

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.projection import project
from selfprune.levels.built_levels import BuiltLevels, open_statistics
from selfprune.levels.levels_config import LevelKind, LevelsConfig
from selfprune.levels.mask_levels import MaskLevels
from selfprune.models.units import weight_view
from selfprune.proposers.base import WeightMeasurement
from selfprune.proposers.closed_forms.alphapruning import AlphaPruning, TailExponent, TailStart, tail_exponent
from selfprune.proposers.closed_forms.block_influence import BlockInfluence
from selfprune.proposers.closed_forms.dlp import DLP, MedianMetric
from selfprune.proposers.closed_forms.owl import OWL, OutlierRatio, outlier_ratio
from selfprune.proposers.closed_forms.uniform import Uniform
from selfprune.proposers.searches.evolutionary import Evolutionary
from selfprune.proposers.searches.portfolio import Portfolio
from selfprune.proposers.searches.random import Random
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.pruners.weights.taylor import Taylor
from selfprune.pruners.weights.wanda import Wanda, wanda_metric
from selfprune.pruning import calibration
from selfprune.pruning.calibration import calibrate, calibrate_blocks
from selfprune.pruning.measurements import Measurements, needed_measurements

WINDOWS_NT = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))
PRUNERS = {"wanda": Wanda(), "magnitude": Magnitude(), "sparsegpt": SparseGPT(), "taylor": Taylor()}
ALL = [OutlierRatio(2.0), OutlierRatio(5.0), MedianMetric(), TailExponent(TailStart.PEAK)]


@dataclass(frozen=True)
class Shapes(WeightMeasurement):
    """Keeps the shapes that it is shown."""

    seen: tuple[list, list]

    def of_block(self, weights, metrics):
        self.seen[0].append([tuple(weight.shape) for weight in weights])
        self.seen[1].append([tuple(metric.shape) for metric in metrics])
        return 0.0

    def __hash__(self):
        return id(self)


@dataclass(frozen=True)
class WeightsAlone(Shapes):
    """The same, without inputs."""

    needs_inputs: ClassVar[bool] = False

    def __hash__(self):
        return id(self)


class Consuming(Wanda):
    """Leaves nothing of its statistics when it prepares them."""

    def prepare(self, statistics):
        statistics.sums_GI.zero_()


@pytest.fixture
def load(load_tiny):
    return lambda family="llama": load_tiny(family)


def measure(loaded, pruner, needed):
    """The measurements and the filled level store of a walk."""
    measurements = Measurements(loaded, needed)
    store = MaskLevels(loaded, LevelGrid.with_constant_step(loaded.units, 0.01), pruner)
    calibrate(loaded, WINDOWS_NT, pruner, 2, measurements, store)
    return measurements.of_blocks, store


@pytest.fixture
def walks(monkeypatch):
    """The pruners whose statistics were gathered."""
    walked = []

    def spy(loaded, windows_NT, pruner, batch_size, coverage=None):
        walked.append(type(pruner).__name__)
        return calibrate_blocks(loaded, windows_NT, pruner, batch_size, coverage)

    monkeypatch.setattr(calibration, "calibrate_blocks", spy)
    return walked


@pytest.mark.parametrize("pruner", PRUNERS)
def test_whatever_the_pruner_the_measurements_are_those_of_the_dense_model(pruner, load):
    loaded = load()
    measured, _ = measure(loaded, PRUNERS[pruner], ALL)
    statistics = statistics_of(loaded, WINDOWS_NT, Wanda(), 2)
    assert list(measured) == ALL
    for block in range(2):
        units = [unit for unit in loaded.units if unit.block == block]
        metrics = [wanda_metric(weight_view(loaded.model, unit), statistics[unit.name].means()) for unit in units]
        assert measured[OutlierRatio(2.0)][block] == pytest.approx(outlier_ratio(metrics, 2.0), abs=2e-4)
        assert measured[OutlierRatio(5.0)][block] == pytest.approx(outlier_ratio(metrics, 5.0), abs=2e-4)
        median = torch.cat([metric.flatten() for metric in metrics]).median().item()
        assert measured[MedianMetric()][block] == pytest.approx(median, rel=1e-4)
        exponents = [tail_exponent(weight_view(loaded.model, unit), TailStart.PEAK) for unit in units]
        assert measured[TailExponent(TailStart.PEAK)][block] == pytest.approx(sum(exponents) / len(exponents))
    assert measured[OutlierRatio(2.0)][0] > measured[OutlierRatio(5.0)][0]


def test_the_influence_of_a_block_is_how_far_it_turns_the_hidden_states(load):
    loaded = load()
    states = loaded.model(input_ids=WINDOWS_NT, output_hidden_states=True).hidden_states
    measured, _ = measure(loaded, Magnitude(), [BlockInfluence()])
    cosine = torch.cosine_similarity(states[0], states[1], dim=-1).mean()
    assert measured[BlockInfluence()][0] == pytest.approx(1 - float(cosine), rel=1e-4)
    assert measured[BlockInfluence()].keys() == {0, 1}


@pytest.mark.parametrize("pruner", PRUNERS)
def test_levels_taken_on_the_walk_are_those_of_the_pruners_own_order(pruner, load):
    loaded, method = load(), PRUNERS[pruner]
    dense = {unit.name: weight_view(loaded.model, unit).clone() for unit in loaded.units}
    measured, store = measure(loaded, method, [])
    assert measured == {}
    statistics = statistics_of(loaded, WINDOWS_NT, method, 2)
    halves = project(dict.fromkeys(dense, 0.5), store.grid.levels, store.grid.n_weights() // 2)
    store.load(halves)
    for unit in loaded.units:
        ranks_OI = method.ranks(dense[unit.name], statistics[unit.name])
        assert torch.equal(weight_view(loaded.model, unit), dense[unit.name].where(ranks_OI >= halves[unit.name], 0))


@pytest.mark.parametrize("method", [SparseGPT(), Consuming()], ids=lambda method: type(method).__name__)
def test_the_measurements_are_taken_before_a_store_uses_the_statistics_up(method, load, tmp_path):
    loaded = load()
    grid, config = LevelGrid.with_constant_step(loaded.units, 0.05), LevelsConfig(LevelKind.BUILT)
    statistics = open_statistics(loaded, grid, method, WINDOWS_NT, 2, config, tmp_path)
    measurements, store = Measurements(loaded, ALL), BuiltLevels(loaded, grid, method, statistics, 0)
    calibrate(loaded, WINDOWS_NT, method, 2, measurements, store)
    assert measurements.of_blocks == measure(loaded, method, ALL)[0]


@pytest.mark.parametrize(
    ("pruner", "needed", "expected"),
    [
        ("wanda", ALL, ["Wanda"]),
        ("sparsegpt", ALL, ["SparseGPT"]),
        ("magnitude", [], ["Magnitude"]),
        ("magnitude", ALL[3:], ["Magnitude"]),
        ("magnitude", ALL, ["Magnitude", "Wanda"]),
        ("taylor", ALL[2:], ["Taylor", "Wanda"]),
    ],
)
def test_the_blocks_are_walked_again_only_for_inputs_that_the_pruner_does_not_gather(pruner, needed, expected, load, walks):
    measure(load(), PRUNERS[pruner], needed)
    assert walks == expected


@pytest.mark.parametrize("pruner", ["wanda", "magnitude"])
def test_the_experts_of_a_unit_are_shown_one_by_one(pruner, load):
    loaded = load("mixtral")
    shapes, alone = Shapes(([], [])), WeightsAlone(([], []))
    measure(loaded, PRUNERS[pruner], [shapes, alone])
    for block, (weights, metrics) in enumerate(zip(*shapes.seen, strict=True)):
        assert weights == metrics
        units = [unit for unit in loaded.units if unit.block == block]
        # Four attention matrices, and two stacks of four experts.
        assert (len(units), len(weights)) == (6, 12)
        assert sum(n_out * n_in for n_out, n_in in weights) == sum(unit.n_weights for unit in units)
    assert alone.seen == (shapes.seen[0], [[], []])


def test_each_measurement_is_needed_once_wherever_its_closed_form_stands():
    inner = Portfolio({"a": AlphaPruning(), "m": AlphaPruning(TailStart.MIDDLE)})
    outer = Portfolio({"inner": inner, "owl": OWL(), "e": Evolutionary()})
    needed = needed_measurements([Uniform(), OWL(), OWL(max_deviation=0.1), OWL(outlier_threshold=7.0), Random(), outer, DLP()])
    assert needed == [
        OutlierRatio(5.0),
        OutlierRatio(7.0),
        TailExponent(TailStart.PEAK),
        TailExponent(TailStart.MIDDLE),
        MedianMetric(),
    ]
    assert needed_measurements([Uniform(), Evolutionary(), Portfolio({"r": Random()})]) == []
