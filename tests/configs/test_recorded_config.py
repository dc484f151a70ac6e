"""What is recorded of a config, and the config that is composed from it again."""

import json

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import RunConfig, register_schemas, to_config
from selfprune.configs.recorded_config import recompose, settled_overrides, to_record
from selfprune.errors import ConfigError
from selfprune.storage.environment import describe_environment


@pytest.fixture
def configs():
    """Hydra, set up to compose configs."""
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def record(folder, composed, overrides):
    folder.mkdir()
    (folder / "environment.json").write_text(json.dumps(describe_environment(settled_overrides(overrides, composed))))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(to_record(composed, ("run_folder", "resume")))))


def test_a_value_that_was_interpolated_is_recorded_as_what_it_came_to(configs, monkeypatch, tmp_path):
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("FOLDER", "it's [a] path, = so")
    overrides = [
        "seed=${oc.env:SEED}", "pruner=magnitude", "model.path=${oc.env:FOLDER}", "+search.finer={self_attn.*:2}",
        "data.n_calibration=4", "search.ladder.n_windows=[1,${oc.env:SEED}]", "search.ladder.n_survivors=[1]", "~controls.random",
        "run_folder=runs/${seed}",
    ]  # fmt: skip
    composed = compose("config", overrides=overrides)
    record(tmp_path / "run", composed, overrides)
    monkeypatch.delenv("SEED")
    monkeypatch.delenv("FOLDER")
    again, settled = recompose(tmp_path / "run")
    assert settled[:4] == ["seed=7", "pruner=magnitude", r"model.path='it\'s [a] path, = so'", "+search.finer={self_attn.*:2}"]
    assert settled[5] == "search.ladder.n_windows=[1,7]"
    config = to_config(again, RunConfig)
    assert (config.seed, config.model.path, config.search.ladder.rungs) == (7, "it's [a] path, = so", [1, 7])
    assert config.run_folder == str(tmp_path / "run")


def test_an_interpolation_that_a_sweep_escapes_is_recorded_as_what_it_came_to(configs, monkeypatch):
    monkeypatch.setenv("SEED", "7")
    overrides = [r"seed=$\{oc.env\:SEED\}", r"search.ladder.n_windows=[1,$\{oc.env\:SEED\}]", "search.ladder.n_survivors=[1]"]
    settled = settled_overrides(overrides, compose("config", overrides=overrides))
    assert settled == ["seed=7", "search.ladder.n_windows=[1,7]", "search.ladder.n_survivors=[1]"]


def test_an_interpolation_within_a_config_file_has_its_recorded_value(configs, monkeypatch, tmp_path):
    composed = compose("config", overrides=[])
    composed.seed, composed.data.n_calibration = "${oc.env:SEED}", "${seed}"
    monkeypatch.setenv("SEED", "5")
    record(tmp_path / "run", composed, [])
    monkeypatch.delenv("SEED")
    monkeypatch.setattr("hydra.compose", lambda *_, **__: composed.copy())
    again, _ = recompose(tmp_path / "run")
    assert (again.seed, again.data.n_calibration) == (5, 5)


def test_a_record_names_the_class_of_every_method(configs):
    overrides = ["pruner=obd", "proposer=evolutionary", "~yardsticks", "proposer@controls.random=evopress"]
    assert to_record(compose("config", overrides=overrides), ())["methods"] == {
        "pruner": "OBD",
        "recovery": "NoRecovery",
        "training": "NoTraining",
        "proposer": "Evolutionary",
        "controls.random": "EvoPress",
        "language_model": "SelfLanguageModel",
        "evaluator": "KLDivergence",
    }


@pytest.mark.parametrize("content", ["", "{", "[]", '{"versions": {}}'])
def test_a_damaged_record_of_the_overrides_is_told(content, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("seed: 1\n")
    (tmp_path / "run/environment.json").write_text(content)
    with pytest.raises(ConfigError, match=r"environment\.json (cannot be read back|must hold the overrides)"):
        recompose(tmp_path / "run")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"seed: [1", b"x: y: z"])
def test_a_damaged_record_of_the_values_is_told(content, configs, tmp_path):
    record(tmp_path / "run", compose("config", overrides=["seed=3"]), ["seed=3"])
    (tmp_path / "run/config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml (cannot be read back|must hold the values that the run was begun with)"):
        recompose(tmp_path / "run")
