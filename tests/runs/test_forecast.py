from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from selfprune.allocations.allocation import LevelGrid
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import RunConfig, register_schemas, to_config
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.pruners.weights.wanda import Wanda
from selfprune.runs import forecast
from selfprune.runs.forecast import run_seconds


@pytest.mark.parametrize(("pruner", "n_solves"), [("wanda", 0), ("sparsegpt", 15)])
def test_a_run_counts_its_levels_and_the_pruning_of_every_row(pruner, n_solves, monkeypatch, tiny_model_folder):
    loaded = load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu"))
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base=None):
        config = to_config(compose("config", ["+experiment=smoke", f"pruner={pruner}", "search.max_tokens=6400"]), RunConfig)
    assert isinstance(config.pruner, SparseGPT if n_solves else Wanda)
    monkeypatch.setattr(forecast, "pruning_seconds", lambda *_: 1000.0)
    monkeypatch.setattr(forecast, "solve_seconds", lambda *_: 10.0)
    splits = SimpleNamespace(report_NT=torch.zeros(8, 64), calibration_NT=torch.zeros(8, 64))
    grid = LevelGrid.with_constant_step(loaded.units, 0.05, 1.0, {})
    seconds = run_seconds(config, loaded, grid, splits, tokens_per_second=100.0)
    n_searches, n_pruned = 1 + len(config.controls), 1 + len(config.yardsticks) + len(config.controls)
    n_levels = sum(grid.n_levels.values()) / len(grid.units)
    assert n_searches * 6400 / 128 > 0.75 * n_levels
    expected = (n_searches * 6400 + (1 + n_pruned) * 512) / 100 + 1000 * n_pruned + (10 * 0.75 * n_levels if n_solves else 0)
    assert seconds == pytest.approx(expected)
