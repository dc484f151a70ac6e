"""What trackers of experiments are told, read back from their own files."""

import json

import pytest
import yaml

from selfprune.errors import ConfigError
from selfprune.runs.showing.tracking import FOLDER, Trackers, check_trackers
from selfprune.search.loop import Progress

ROWS = [
    {"name": "uniform", "kl": 0.9, "perplexity": 4.0, "sparsity": 0.5, "n_tokens": 0},
    {"name": "winner", "kl": 0.25, "perplexity": 3.0, "sparsity": 0.5, "n_tokens": 700},
]


@pytest.fixture
def tell(tmp_path, monkeypatch):
    """Tells a tracker of a short run, in an empty folder; returns the run folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"seed": 3, "budget": {"sparsity": 0.5}, "methods": {"pruner": "Wanda"}})
    )

    def give(name):
        trackers = Trackers.open([name], tmp_path)
        trackers.round(Progress("main", None, 4, 300, 1.0))
        trackers.round(Progress("main", 0.25, 8, 700, 2.0))
        trackers.round(Progress("random", 0.5, 3, 600, 2.0))
        trackers.finish(ROWS)
        return tmp_path

    return give


def test_tensorboard_has_the_scores_over_the_tokens_and_the_rows(tell, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(tell("tensorboard") / FOLDER / "selfprune"))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["main/score"] == [(700, 0.25)]
    assert found["main/candidates"] == [(300, 4), (700, 8)]
    assert found["random/score"] == [(600, 0.5)]
    assert found["report/winner/kl"] == [(700, 0.25)]
    assert found["report/uniform/perplexity"] == [(700, 4.0)]
    (told,) = (yaml.safe_load(path.read_text()) for path in (tmp_path / FOLDER).rglob("hparams.yml"))
    assert told == {"seed": "3", "budget.sparsity": "0.5", "methods.pruner": "Wanda"}


def test_mlflow_has_them_in_its_local_store(tell, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tell("mlflow")
    (run,) = mlflow.search_runs(experiment_names=["selfprune"], output_format="list")
    assert run.data.metrics["main/score"] == 0.25
    assert run.data.metrics["report/winner/kl"] == 0.25
    assert run.data.params["methods.pruner"] == "Wanda"


def test_wandb_writes_an_offline_run(tell, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (run,) = (tell("wandb") / FOLDER / "wandb").glob("offline-run-*")
    assert any(path.suffix == ".wandb" and path.stat().st_size for path in run.iterdir())


def test_without_trackers_nothing_is_written(tmp_path):
    trackers = Trackers.open([], tmp_path)
    trackers.round(Progress("main", 0.25, 8, 700, 2.0))
    trackers.finish(ROWS)
    assert list(tmp_path.iterdir()) == []
    assert json.dumps(trackers.trackers) == "[]"


def test_unknown_and_missing_trackers_are_told(monkeypatch):
    with pytest.raises(ConfigError, match=r"trackers takes tensorboard, .*, got tensorbord"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("selfprune.runs.showing.tracking.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"trackers=\[wandb\] needs the package wandb, .* pip install wandb"):
        check_trackers(["wandb"])
    check_trackers([])
