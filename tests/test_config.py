from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from selfprune.conf_path import conf_folder
from selfprune.config import METHODS, find_methods, register_schemas, to_run_config
from selfprune.errors import ConfigError

GROUPS = {group.name: sorted(path.stem for path in group.glob("*.yaml")) for group in conf_folder().iterdir() if group.is_dir()}
# What a choice cannot know by itself.
NEEDS = {
    ("model", "local"): ["model.path=somewhere"],
    ("model", "hub"): ["model.path=someone/some-model"],
    ("data", "files"): ["data.calibration=a.txt", "data.search=b.txt", "data.report=c.txt"],
}


@pytest.fixture
def composed():
    register_schemas()

    def call(*overrides):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return to_run_config(compose("config", overrides=list(overrides)))

    return call


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_every_experiment_composes_and_converts(name, composed):
    assert composed(f"+experiment={name}") != composed()


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in GROUPS.items() if g != "experiment" for n in names])
def test_every_choice_of_every_group_composes_and_converts(group, name, composed):
    config = composed(f"{group}={name}", *NEEDS.get((group, name), []))
    if group in METHODS and name in find_methods(group):
        assert type(getattr(config, group)) is find_methods(group)[name]


def test_the_default_run_reports_uniform_owl_and_random_beside_the_winner(composed):
    config = composed()
    assert list(config.yardsticks) == ["uniform", "owl"]
    assert list(config.controls) == ["random"]
    assert config.model.path == "embedded"
    assert config.budget.sparsity == 0.7


def test_the_paper_scale_run_is_what_the_readme_says(composed):
    config = composed("+experiment=llama7b")
    assert config.model.path == "huggyllama/llama-7b"
    assert (config.data.calibration, config.data.search, config.data.report) == ("c4", "c4", "wikitext2")
    assert config.data.n_tokens_per_window == 2048
    tasks = ["boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]
    assert config.harness.tasks == tasks
    assert not set(config.harness.search_tasks) & set(tasks)


@pytest.mark.parametrize("name", ["dense", "main", "winner"])
def test_a_yardstick_cannot_take_a_reserved_name(name, composed):
    with pytest.raises(ConfigError, match="names of their own"):
        composed(f"+proposer@yardsticks.{name}=uniform")


def test_config_files_keep_no_absolute_paths():
    for path in Path(conf_folder()).rglob("*.yaml"):
        assert "/home" not in path.read_text()
        assert "/root" not in path.read_text()
