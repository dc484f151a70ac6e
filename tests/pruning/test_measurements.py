from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from selfprune.allocations.allocation import LevelGrid
from selfprune.levels.level_store import first_levels
from selfprune.models.loading import ModelConfig, load_model
from selfprune.models.units import weight_view
from selfprune.proposers.base import Measurement
from selfprune.proposers.closed_forms.alphapruning import AlphaPruning, TailExponent, TailStart, tail_exponent
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
from selfprune.pruning import measurements
from selfprune.pruning.calibration import calibrate, calibrate_blocks
from selfprune.pruning.measurements import measure_blocks, needed_measurements

WINDOWS_NT = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))
PRUNERS = {"wanda": Wanda(), "magnitude": Magnitude(), "sparsegpt": SparseGPT(), "taylor": Taylor()}
ALL = [OutlierRatio(2.0), OutlierRatio(5.0), MedianMetric(), TailExponent(TailStart.PEAK)]


@dataclass(frozen=True)
class Shapes(Measurement):
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


@pytest.fixture
def load(tiny_model_folder):
    return lambda family="llama": load_model(ModelConfig(str(tiny_model_folder(family)), device="cpu"))


def measure(*arguments):
    return measure_blocks(*arguments, on_block=lambda units, statistics: None)


@pytest.fixture
def walks(monkeypatch):
    """The pruners whose statistics were gathered."""
    walked = []

    def spy(loaded, windows_NT, pruner, batch_size, coverage=None):
        walked.append(type(pruner).__name__)
        return calibrate_blocks(loaded, windows_NT, pruner, batch_size, coverage)

    monkeypatch.setattr(measurements, "calibrate_blocks", spy)
    return walked


@pytest.mark.parametrize("pruner", PRUNERS)
def test_whatever_the_pruner_the_measurements_are_those_of_the_dense_model(pruner, load):
    loaded = load()
    measured = measure(loaded, WINDOWS_NT, PRUNERS[pruner], 2, ALL)
    statistics = calibrate(loaded, WINDOWS_NT, Wanda(), 2)
    assert list(measured) == ALL
    for block in range(2):
        units = [unit for unit in loaded.units if unit.block == block]
        metrics = [wanda_metric(weight_view(loaded.model, unit), statistics[unit.name]) for unit in units]
        assert measured[OutlierRatio(2.0)][block] == pytest.approx(outlier_ratio(metrics, 2.0), abs=2e-4)
        assert measured[OutlierRatio(5.0)][block] == pytest.approx(outlier_ratio(metrics, 5.0), abs=2e-4)
        median = torch.cat([metric.flatten() for metric in metrics]).median().item()
        assert measured[MedianMetric()][block] == pytest.approx(median, rel=1e-4)
        exponents = [tail_exponent(weight_view(loaded.model, unit), TailStart.PEAK) for unit in units]
        assert measured[TailExponent(TailStart.PEAK)][block] == pytest.approx(sum(exponents) / len(exponents))
    assert measured[OutlierRatio(2.0)][0] > measured[OutlierRatio(5.0)][0]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_levels_noted_on_the_walk_are_those_of_the_pruners_own_order(pruner, load):
    loaded, numbers = load(), {}
    grid = LevelGrid.with_constant_step(loaded.units, 0.01)
    method = PRUNERS[pruner]

    def rank(units, statistics):
        numbers.update(first_levels(loaded, grid, units, method, statistics))

    measured = measure_blocks(loaded, WINDOWS_NT, method, 2, [], rank)
    expected = first_levels(loaded, grid, grid.units, method, calibrate(loaded, WINDOWS_NT, method, 2))
    assert measured == {}
    assert numbers.keys() == expected.keys()
    assert all(torch.equal(numbers[name], expected[name]) for name in numbers)


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
    measure(load(), WINDOWS_NT, PRUNERS[pruner], 2, needed)
    assert walks == expected


@pytest.mark.parametrize("pruner", ["wanda", "magnitude"])
def test_the_experts_of_a_unit_are_shown_one_by_one(pruner, load):
    loaded = load("mixtral")
    shapes, alone = Shapes(([], [])), WeightsAlone(([], []))
    measure(loaded, WINDOWS_NT, PRUNERS[pruner], 2, [shapes, alone])
    for block, (weights, metrics) in enumerate(zip(*shapes.seen, strict=True)):
        assert weights == metrics
        units = [unit for unit in loaded.units if unit.block == block]
        # Four attention matrices, and two stacks of four experts.
        assert (len(units), len(weights)) == (6, 12)
        assert sum(n_out * n_in for n_out, n_in in weights) == sum(unit.n_weights for unit in units)
    assert alone.seen == (shapes.seen[0], [[], []])


def test_the_units_and_statistics_of_every_block_are_handed_on_once_and_only_the_pruners(load):
    loaded, seen = load(), []

    def note(units, statistics):
        seen.append((units, set(statistics)))

    measure_blocks(loaded, WINDOWS_NT, Magnitude(), 2, [MedianMetric()], note)
    blocks = [[unit for unit in loaded.units if unit.block == block] for block in range(2)]
    assert seen == [(units, {unit.name for unit in units}) for units in blocks]


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
