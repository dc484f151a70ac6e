import json

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import register_schemas
from selfprune.errors import ConfigError, SelfpruneError
from selfprune.runs.run_folder import hold_run_folder, opened
from selfprune.storage import lock

CONFIG = OmegaConf.create({"seed": 1, "run_folder": "", "resume": ""})
OTHER_SEED = OmegaConf.create({"seed": 2, "run_folder": "", "resume": ""})


def composed(*overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def start(folder, config=CONFIG, overrides=("seed=1",)):
    """A run in a folder that the command line names."""
    held = hold_run_folder(OmegaConf.merge(config, {"run_folder": str(folder)}), folder)
    return opened(held, config, list(overrides))


def begin(folder):
    """A run that was broken off before anything was measured."""
    with pytest.raises(KeyboardInterrupt), start(folder):
        raise KeyboardInterrupt


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


needs_locks = pytest.mark.skipif(lock.fcntl is None, reason="this system has no such locks")


@needs_locks
def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(tmp_path):
    with start(tmp_path / "run"):
        before = contents(tmp_path / "run")
        for config in (CONFIG, OTHER_SEED):
            with pytest.raises(ConfigError, match="is in use by another process"), start(tmp_path / "run", config):
                pytest.fail("the folder was opened")
        resume = OmegaConf.create({"resume": str(tmp_path / "run"), "run_folder": ""})
        with pytest.raises(ConfigError, match="is in use by another process"):
            hold_run_folder(resume, tmp_path)
        assert contents(tmp_path / "run") == before
    with start(tmp_path / "run"):
        pass


@needs_locks
def test_a_run_that_came_second_to_a_new_folder_finds_the_first_ones_config(tmp_path):
    held = hold_run_folder(OmegaConf.merge(CONFIG, {"run_folder": str(tmp_path / "run")}), tmp_path)
    with pytest.raises(ConfigError, match="is in use by another process"), start(tmp_path / "run", OTHER_SEED):
        pytest.fail("both seeds have one folder")
    with opened(held, CONFIG, ["seed=1"]):
        pass
    with pytest.raises(ConfigError, match="belongs to another config"), start(tmp_path / "run", OTHER_SEED):
        pytest.fail("both seeds have one folder")
    assert "seed: 1" in (tmp_path / "run/config.yaml").read_text()
    assert json.loads((tmp_path / "run/environment.json").read_text())["overrides"] == ["seed=1"]


def test_a_run_that_this_version_composes_otherwise_is_not_told_to_be_resumed_once_more(tmp_path):
    register_schemas()
    with start(tmp_path / "run"):
        pass
    resume = OmegaConf.create({"resume": str(tmp_path / "run"), "run_folder": ""})
    with (
        initialize_config_dir(str(conf_folder()), version_base="1.3"),
        pytest.raises(ConfigError, match=r"cannot be continued: .* or begin anew in another run_folder$"),
        opened(hold_run_folder(resume, tmp_path), resume, []),
    ):
        pytest.fail("the folder was opened")


def test_runs_without_a_name_get_folders_of_their_own(tmp_path):
    folders = []
    for _ in range(3):
        held = hold_run_folder(CONFIG, tmp_path / "runs/now")
        folders.append(held.folder)
        with opened(held, CONFIG, []):
            pass
    assert [folder.name for folder in folders] == ["now", "now_2", "now_3"]


def test_a_mistake_takes_a_new_folder_away_and_leaves_an_older_one(tmp_path):
    with pytest.raises(SelfpruneError, match="a mistake"), start(tmp_path / "a/new"):
        raise SelfpruneError("a mistake")
    assert list(tmp_path.iterdir()) == []
    begin(tmp_path / "older")
    before = contents(tmp_path / "older")
    with pytest.raises(SelfpruneError, match="a mistake"), start(tmp_path / "older"):
        raise SelfpruneError("a mistake")
    assert contents(tmp_path / "older") == before
    assert sorted(before) == [".lock", "config.yaml", "environment.json"]


def test_a_mistake_after_something_was_measured_takes_nothing_away(tmp_path):
    def mistaken():
        (tmp_path / "run/evaluations.jsonl").write_text("{}\n")
        raise SelfpruneError("a mistake")

    with pytest.raises(SelfpruneError), start(tmp_path / "run"):
        mistaken()
    assert sorted(contents(tmp_path / "run")) == [".lock", "config.yaml", "environment.json", "evaluations.jsonl"]


def test_a_run_that_was_killed_before_its_config_was_written_is_begun_anew(tmp_path):
    begin(tmp_path / "run")
    expected = contents(tmp_path / "run")
    (tmp_path / "run/config.yaml").rename(tmp_path / "run/.config.yaml.partial")
    (tmp_path / "run/environment.json").write_text("of a run that never was")
    begin(tmp_path / "run")
    assert contents(tmp_path / "run") == expected


def test_an_interrupt_before_a_run_was_begun_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("selfprune.runs.run_folder.describe_environment", interrupt)
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "a/run"):
        pytest.fail("it was begun")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/run", "n" * 300])
@pytest.mark.parametrize("option", ["run_folder", "resume"])
def test_what_cannot_be_a_run_folder_is_told_in_one_paragraph(option, name, tmp_path):
    (tmp_path / "file").write_text("x")
    config = OmegaConf.create({"run_folder": "", "resume": "", option: str(tmp_path / name)})
    with pytest.raises(SelfpruneError, match=r"could not be written|resume must name the folder of a run"):
        hold_run_folder(config, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_place_of_the_config_is_refused(tmp_path):
    (tmp_path / "run/config.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read back: Is a directory"), start(tmp_path / "run"):
        pytest.fail("it was begun")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_two_configs_that_differ_in_a_method_alone_are_told_apart(tmp_path):
    register_schemas()
    wanda, taylor = (composed(f"pruner={name}", "run_folder=unused") for name in ("wanda", "taylor"))
    with start(tmp_path / "run", wanda):
        pass
    with pytest.raises(ConfigError, match="belongs to another config"), start(tmp_path / "run", taylor):
        pytest.fail("another pruner went on")
    config = tmp_path / "run/config.yaml"
    recorded = config.read_text()
    assert "\nmethods:\n  pruner: Wanda\n" in recorded
    # a folder from before the methods were recorded is continued
    config.write_text(recorded[: recorded.index("methods:\n")])
    with start(tmp_path / "run", wanda):
        pass
