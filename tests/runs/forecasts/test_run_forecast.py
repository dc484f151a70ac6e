import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from selfprune.allocations.level_grid import LevelGrid
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import RunConfig, register_schemas, to_config
from selfprune.errors import SelfpruneError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.pruners.weights.wanda import Wanda
from selfprune.runs.forecasts import run_forecast
from selfprune.runs.forecasts.run_forecast import RECORD_BYTES, forecast_loaded, forecast_run, not_counted, run_seconds

DiskUsage = type(shutil.disk_usage("/"))


def configured(*overrides):
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base=None):
        return to_config(compose("config", list(overrides)), RunConfig)


@pytest.fixture
def source(tiny_model_folder, tmp_path):
    """The folder of a checkpoint with a file besides, which every pruned copy gets."""
    folder = Path(shutil.copytree(tiny_model_folder("llama"), tmp_path / "source"))
    (folder / "notes.bin").write_bytes(bytes(300_000))
    return folder


@pytest.mark.parametrize(("pruner", "n_solves"), [("wanda", 0), ("sparsegpt", 15)])
def test_a_run_counts_its_levels_and_the_pruning_of_every_row(pruner, n_solves, monkeypatch, tiny_model_folder):
    loaded = load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu"))
    tasks = ["harness.tasks=[selfprune_sums_report]", "harness.search_tasks=[selfprune_sums_search]", "harness.limit=3"]
    config = configured("+experiment=smoke", f"pruner={pruner}", "search.max_tokens=6400", "search.n_finalists=4", *tasks)
    harness = Harness(config.harness)
    assert isinstance(config.pruner, SparseGPT if n_solves else Wanda)
    monkeypatch.setattr(run_forecast, "pruning_seconds", lambda *_: 1000.0)
    monkeypatch.setattr(run_forecast, "solve_seconds", lambda *_: 10.0)
    splits = SimpleNamespace(report_NT=torch.zeros(8, 64), calibration_NT=torch.zeros(8, 64))
    grid = LevelGrid.with_constant_step(loaded.units, 0.05, 1.0, {})
    seconds = run_seconds(config, loaded, grid, splits, harness, tokens_per_second=100.0)
    n_searches, n_pruned = 1 + len(config.controls), 1 + len(config.yardsticks) + len(config.controls)
    n_levels = sum(levels.n_steps for levels in grid.levels.values()) / len(grid.units)
    assert n_searches * 6400 / 128 > 0.75 * n_levels
    of_report, of_finalist = (
        harness.evaluate(loaded.model, loaded.tokenizer, [name])[name]["n_tokens"] for name in harness.tasks
    )
    assert min(of_report, of_finalist) > 0
    n_tokens = n_searches * 6400 + (1 + n_pruned) * (512 + of_report) + 4 * of_finalist
    expected = n_tokens / 100 + 1000 * n_pruned + (10 * 0.75 * n_levels if n_solves else 0)
    assert seconds == pytest.approx(expected)


def test_a_loaded_run_counts_what_its_checkpoint_takes_from_the_source_and_is_refused_where_that_does_not_fit(
    source, tmp_path, monkeypatch
):
    config = configured("model=local", f"model.path={source}", "model.device=cpu", "harness=none", "search.levels.kind=MASKS")
    before, _ = forecast_run(config, tmp_path / "run")
    loaded = load_model(config.model)
    n_bytes = PrunedCheckpoint(loaded, tmp_path / "run" / "model", by_block=False).n_bytes
    expected = forecast_loaded(before, config, loaded, Harness(config.harness), n_bytes, tmp_path / "run")
    assert n_bytes > before.disk_bytes - RECORD_BYTES + 300_000
    assert expected == replace(before, disk_bytes=n_bytes + RECORD_BYTES)
    free = n_bytes + RECORD_BYTES - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 10**9 - free, free))
    forecast_run(config, tmp_path / "run")
    with pytest.raises(SelfpruneError, match=r"the run takes about 0\.05 GB more in .*run, but the disk has 0\.05 GB free"):
        forecast_loaded(before, config, loaded, Harness(config.harness), n_bytes, tmp_path / "run")


def test_tasks_that_let_the_model_write_are_said_to_be_left_out_of_the_seconds(tmp_path):
    assert not_counted(Harness(HarnessConfig(["selfprune_sums_report"], []))) == ""
    (tmp_path / "recite.yaml").write_text(
        "task: recite\noutput_type: generate_until\ndataset_path: json\ndataset_kwargs: {data_files: "
        f"{{test: {tmp_path}/recite.jsonl}}}}\ntest_split: test\ndoc_to_text: a\ndoc_to_target: b\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "recite.jsonl").write_text('{"a": "one two", "b": "three"}\n')
    harness = Harness(HarnessConfig(["selfprune_sums_report", "recite"], [], include_path=str(tmp_path)))
    assert not_counted(harness) == ", besides what recite let the model write"
