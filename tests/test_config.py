from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from selfprune.conf_path import conf_folder
from selfprune.config import METHODS, PruneConfig, RunConfig, find_methods, register_schemas, to_config
from selfprune.errors import ConfigError
from selfprune.placement import Placement

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
            return to_config(compose("config", overrides=list(overrides)), RunConfig)

    return call


@pytest.fixture
def composed_pruning():
    register_schemas()

    def call(*overrides):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return to_config(compose("prune", overrides=["output=somewhere", *overrides]), PruneConfig)

    return call


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_every_experiment_composes_and_converts(name, composed):
    assert composed(f"+experiment={name}") != composed()


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in GROUPS.items() if g != "experiment" for n in names])
def test_every_choice_of_every_group_composes_and_converts(group, name, composed):
    config = composed(f"{group}={name}", *NEEDS.get((group, name), []))
    if group in METHODS and name in find_methods(group):
        assert type(getattr(config, group)) is find_methods(group)[name]


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in ("model", "data", "pruner", "budget") for name in GROUPS[group]]
)
def test_every_choice_of_a_pruning_composes_and_converts(group, name, composed_pruning):
    config = composed_pruning(f"{group}={name}", *NEEDS.get((group, name), []))
    if group == "pruner":
        assert type(config.pruner) is find_methods("pruner")[name]


def test_the_default_pruning_is_uniform_wanda_of_the_embedded_model_in_memory(composed_pruning):
    config = composed_pruning()
    assert config.model.path == "embedded"
    assert type(config.pruner) is find_methods("pruner")["wanda"]
    assert (config.allocation, config.output, config.batch_size, config.seed) == ("uniform", "somewhere", 4, 0)
    assert config.budget.sparsity == 0.7
    assert config.model.placement is Placement.WHOLE


def test_a_pruning_needs_only_a_calibration_text_where_a_run_needs_three(composed, composed_pruning):
    files = ["data=files", "data.calibration=a.txt"]
    assert composed_pruning(*files).data.calibration == "a.txt"
    with pytest.raises(
        ConfigError, match=r"needs data\.report and data\.calibration and data\.search, but data\.report is empty"
    ):
        composed(*files)


@pytest.mark.parametrize("placement", Placement)
def test_every_placement_can_be_chosen(placement, composed_pruning):
    assert composed_pruning(f"model.placement={placement.name}").model.placement is placement


def test_an_unknown_placement_lists_the_known_ones(composed_pruning):
    with pytest.raises(HydraException) as error:
        composed_pruning("model.placement=SLOW")
    assert all(placement.name in str(error.value.__cause__ or error.value) for placement in Placement)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output=", r"output must name the folder for the pruned model"),
        ("batch_size=0", r"batch_size must be at least 1, got 0"),
        ("seed=-1", r"seed must not be negative, got -1"),
        ("+tasks=[a]", r"there is no option tasks; the options there, nearest first: "),
        ("+model.where=STREAM", r"there is no option model\.where"),
        ("~pruner", r"the config needs a pruner; choose one of .*wanda"),
    ],
)
def test_a_wrong_pruning_is_refused(override, message, composed_pruning):
    with pytest.raises(ConfigError, match=message):
        composed_pruning(override)


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
