"""The forecast of a pruning's seconds. How near it comes stands in experiments/LOG.md; here is what must hold on any machine."""

import pytest
import torch

from selfprune.configs.methods import find_methods
from selfprune.pruners.weight_pruner import WeightPruner
from selfprune.pruners.weights.alps import ALPS
from selfprune.pruners.weights.wanda import Wanda
from selfprune.timing import pruning_seconds

WINDOWS_NT = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def loaded(load_tiny):
    return load_tiny("llama")


@pytest.mark.parametrize("name", find_methods("pruner"))
def test_every_pruner_has_a_forecast_that_leaves_model_and_generator_as_they_are(name, loaded):
    before, state = {n: t.clone() for n, t in loaded.model.state_dict().items()}, torch.get_rng_state()
    method = find_methods("pruner")[name]
    for options in [{"pattern": pattern} for pattern in ("", "2:4", "1:3")] if issubclass(method, WeightPruner) else [{}]:
        assert 0 < pruning_seconds.pruning_seconds(loaded, WINDOWS_NT, method(**options)) < 600
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[n]) for n, tensor in loaded.model.state_dict().items())


def test_a_pruner_that_solves_is_known_to_take_longer(loaded):
    of_scores = pruning_seconds.solve_seconds(loaded, Wanda())
    assert pruning_seconds.solve_seconds(loaded, ALPS()) > 5 * of_scores


def test_what_is_probed_small_is_read_off_large():
    def law(n_out, n_in):
        return 1e-4 + 3e-10 * n_out * n_in**2 + 5e-10 * n_in**3

    probes = [(n_out, n_in, law(n_out, n_in)) for n_in in (64, 128, 256) for n_out in (n_in, 3 * n_in)]
    fitted = pruning_seconds._fit(probes)
    for n_out, n_in in ((4096, 4096), (4096, 11008), (11008, 4096)):
        assert fitted(n_out, n_in) == pytest.approx(law(n_out, n_in), rel=1e-3)


def test_probes_end_after_a_second_however_slow_the_pruner(loaded, monkeypatch):
    probed = []

    def slow(self, n_out, n_in):
        probed.append((n_out, n_in))
        clock[0] += n_in**3 / 64**3 * 0.02
        return 0.0, 1e-3

    clock = [0.0]
    monkeypatch.setattr(pruning_seconds.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pruning_seconds._Probes, "_probe", slow)
    pruning_seconds._Probes(Wanda(), loaded.device, torch.float32, 4096)
    # two of 64 take 0.04 s and two of 128 take 0.32; two of 256 would take 2.6
    assert probed[1:] == [(64, 64), (192, 64), (128, 128), (384, 128)]
