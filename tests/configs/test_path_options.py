"""Any path can be given, quoted or not, and arrives as the absolute path that was meant."""

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import PruneConfig, RunConfig, register_schemas
from selfprune.configs.path_options import path_options, repaired
from selfprune.runs.latency_measurement import LatencyConfig

NAMES = [
    "plain", "with space", "(v2)", "[a]", "{b}", "a,b", "a=b", "it's", 'say "x"', "wow!", "#1", "größe", "模型", "a;b&c|d",
    "a\\b", "100%", "1e5", "true", "choice(a)", "[x", "a'b\"c", "x:y@z", "-dash", "end\\",
]  # fmt: skip


def read(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_any_path_arrives_as_it_was_meant(name, here):
    assert read(repaired(f"run_folder={here}/{name}", RunConfig, False)) == f"{here}/{name}"
    assert read(repaired(f"data.calibration=./{name}", RunConfig, False)) == f"{here}/{name}"
    assert read(repaired(f"++model.path=~/{name}", RunConfig, False)) == f"{here}/home/{name}"
    if "'" not in name and not name.endswith("\\"):
        assert read(repaired(f"output='~/{name}'", PruneConfig, False)) == f"{here}/home/{name}"


def test_an_override_that_is_repaired_stays_as_it_is(here):
    for name in NAMES:
        once = repaired(f"resume={name}", RunConfig, False)
        assert repaired(once, RunConfig, False) == once


def test_the_path_composes_to_the_option(here):
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("config", overrides=[repaired("search.levels.folder=~/a (b), {c}", RunConfig, False)])
    assert composed.search.levels.folder == f"{here}/home/a (b), {{c}}"


def test_names_and_hub_ids_stay_and_folders_that_are_here_become_absolute(here):
    for override in (
        "model.path=embedded", "model.path=meta-llama/Llama-3.2-1B", "data.calibration=c4", "allocation=uniform", "model.path=",
        "data.calibration=allenai/c4:en:train:text", "harness.include_path=null", "seed=3", "pruner=wanda", "~controls.random",
    ):  # fmt: skip
        assert repaired(override, PruneConfig if override.startswith("allocation") else RunConfig, False) == override
    (here / "meta-llama/Llama-3.2-1B").mkdir(parents=True)
    (here / "c4").mkdir()
    assert repaired("model.path=meta-llama/Llama-3.2-1B", RunConfig, False) == f"model.path={here}/meta-llama/Llama-3.2-1B"
    assert repaired("data.calibration=c4", RunConfig, False) == "data.calibration=c4"
    assert repaired("data.calibration=./c4", RunConfig, False) == f"data.calibration={here}/c4"


def test_commas_separate_paths_only_in_a_sweep(here):
    override = "model.path=/m a,'/m, b',/c"
    assert read(repaired("model.path=/a,/b", RunConfig, False)) == "/a,/b"
    swept = OverridesParser.create().parse_override(repaired(override, RunConfig, True))
    assert list(swept.sweep_string_iterator()) == ["'/m a'", "'/m, b'", "/c"]
    assert repaired("seed=1,2", RunConfig, True) == "seed=1,2"
    assert repaired("model.path=glob(*)", RunConfig, True) == "model.path=glob(*)"


def test_interpolations_stay(here):
    assert (
        read(repaired("run_folder=runs/${seed}_(${hydra:job.num})", RunConfig, True))
        == f"{here}/runs/${{seed}}_(${{hydra:job.num}})"
    )
    assert read(repaired("run_folder=${oc.env:HOME}/x", RunConfig, False)) == "${oc.env:HOME}/x"


def test_paths_of_methods_are_known_wherever_the_method_stands(here):
    for key in ("proposer.run_folder", "controls.earlier.run_folder", "yardsticks.earlier.run_folder", "language_model.path"):
        assert repaired(f"{key}=./x", RunConfig, False) == f"{key}={here}/x"


def test_every_option_that_names_a_place_is_a_path():
    found = {name for options in (RunConfig, PruneConfig, LatencyConfig) for name, _ in path_options(options)}
    assert found == {
        "model.path", "data.calibration", "data.search", "data.report", "harness.include_path", "harness.pairs",
        "search.levels.folder", "budget.latency_table", "run_folder", "resume", "allocation", "output",
    }  # fmt: skip


def test_a_user_who_is_not_known_is_a_folder_of_that_name(here):
    assert not Path(os.path.expanduser("~nobody-here")).is_absolute()
    assert read(repaired("run_folder=~nobody-here/x", RunConfig, False)) == f"{here}/~nobody-here/x"
