import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from selfprune import lock
from selfprune.errors import ConfigError, SelfpruneError
from selfprune.run_folder import opened, recompose

CONFIG = OmegaConf.create({"seed": 1, "run_folder": "", "resume": ""})


def begin(folder):
    """A run that was broken off before anything was measured."""
    with pytest.raises(KeyboardInterrupt), opened(folder, CONFIG, ["seed=1"]):
        raise KeyboardInterrupt


@pytest.mark.skipif(lock.fcntl is None, reason="this system has no such locks")
def test_no_two_processes_work_in_a_folder_at_once(tmp_path):
    folder = tmp_path / "run"
    begin(folder)
    take = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", take, str(folder / "environment.json")]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="is in use by another process"), opened(folder, CONFIG, ["seed=1"]):
            pytest.fail("the folder was opened")
        other.communicate("\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with opened(folder, CONFIG, ["seed=1"]):
        pass


def test_a_mistake_takes_a_new_folder_away_and_leaves_an_older_one(tmp_path):
    with pytest.raises(SelfpruneError, match="a mistake"), opened(tmp_path / "a/new", CONFIG, []):
        raise SelfpruneError("a mistake")
    assert list(tmp_path.iterdir()) == []
    begin(tmp_path / "older")
    with pytest.raises(SelfpruneError, match="a mistake"), opened(tmp_path / "older", CONFIG, []):
        raise SelfpruneError("a mistake")
    assert sorted(path.name for path in (tmp_path / "older").iterdir()) == ["config.yaml", "environment.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"versions": {}}'])
def test_a_damaged_record_of_the_overrides_is_told(content, tmp_path):
    begin(tmp_path / "run")
    (tmp_path / "run/environment.json").write_text(content)
    with pytest.raises(ConfigError, match="must hold the overrides that the run was begun with"):
        recompose(tmp_path / "run")
