import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from selfprune import lock
from selfprune.allocation import LevelGrid
from selfprune.conf_path import conf_folder
from selfprune.config import RunConfig, register_schemas, to_config
from selfprune.errors import ConfigError, SelfpruneError
from selfprune.models import ModelConfig, load_model
from selfprune.run_folder import opened, preflight, recompose

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


def test_built_levels_are_expected_to_take_their_bounds_or_all_of_them_where_that_is_less(tiny_model_folder, tmp_path):
    register_schemas()
    folder = tiny_model_folder("llama")

    def expected(*overrides):
        given = ["model=local", f"model.path={folder}", "model.device=cpu", *overrides]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            found = preflight(to_config(compose("config", overrides=given), RunConfig), tmp_path)
        return torch.tensor([found.peak_memory_bytes, found.disk_bytes])

    units = load_model(ModelConfig(str(folder), device="cpu")).units
    grid = LevelGrid.with_constant_step(units, 0.05)
    of_levels = sum(4 * unit.n_weights * grid.n_levels[unit.name] for unit in units)
    # per block six units of width 32 and one of 48
    of_statistics = 2 * 4 * (6 * 32**2 + 48**2)
    masks = expected("pruner=sparsegpt", "search.levels.kind=MASKS")
    # twenty levels of the smallest units and thirty of the MLP's: a byte a weight
    numbers = torch.tensor([sum(unit.n_weights for unit in units), 0])
    built = ["pruner=sparsegpt"]
    assert (expected(*built) - masks + numbers).tolist() == [of_levels + of_statistics] * 2
    bounds = ["search.levels.memory_gb=0.0001", "search.levels.statistics_gb=0.00001", "search.levels.cache_gb=0.0002"]
    assert (expected(*built, *bounds) - masks + numbers).tolist() == [110_000, 200_000]
    spread = [expected("model.placement=SPREAD", f"search.levels.kind={kind}", *built) for kind in ("BUILT", "MASKS")]
    assert (spread[0] - spread[1]).tolist() == [of_levels + of_statistics] * 2
    elsewhere = expected(*built, f"search.levels.folder={tmp_path / 'levels'}") - masks + numbers
    assert elsewhere.tolist() == [of_levels + of_statistics, 0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"versions": {}}'])
def test_a_damaged_record_of_the_overrides_is_told(content, tmp_path):
    begin(tmp_path / "run")
    (tmp_path / "run/environment.json").write_text(content)
    with pytest.raises(ConfigError, match=r"environment\.json (cannot be read back|must hold the overrides)"):
        recompose(tmp_path / "run")
