"""What the command line chooses wins over what an experiment chooses: every experiment, group and choice."""

import contextlib
import functools
import re

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from selfprune.configs.choices import brought_along
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import RunConfig, find_methods, register_schemas, to_config
from selfprune.errors import ConfigError

CONF = conf_folder()
CHOICES = {
    group.name: sorted(path.stem for path in group.glob("*.yaml"))
    for group in CONF.iterdir()
    if group.is_dir() and group.name != "hydra"
}
EXPERIMENTS = CHOICES.pop("experiment")
SEARCHES, PROPOSERS = CHOICES.pop("search"), CHOICES.pop("proposer")


@pytest.fixture(scope="module", autouse=True)
def in_hydra():
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    """As a command composes it."""
    return compose("config", overrides=[*overrides, *brought_along("config", overrides)])


@functools.cache
def composed_with(search: str, i: int) -> tuple[list[str], list[str], DictConfig]:
    """A search and the i-th choice of every group: as they are given, what they bring along, and composed alone."""
    given = [f"{group}={names[i % len(names)]}" for group, names in CHOICES.items()] + [f"search={search}"]
    return given, brought_along("config", ["+experiment=smoke", f"search={search}"]), composed(*given)


def content(path) -> dict:
    return yaml.safe_load(path.read_text()) or {}


def own_values(experiment: str) -> dict:
    """What an experiment says of options, its parents' values included."""
    said = content(CONF / "experiment" / f"{experiment}.yaml")
    parents = [own_values(name) for name in said.pop("defaults") if name in EXPERIMENTS]
    return OmegaConf.to_container(OmegaConf.merge(*parents, said))


def overridden(path) -> set[str]:
    """The groups that a file chooses for others."""
    entries = [key for entry in content(path).get("defaults", []) if isinstance(entry, dict) for key in entry]
    return {match[1] for key in entries for match in [re.fullmatch(r"override /(\w+)", key)] if match}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_choice_of_the_command_line_wins_over_every_experiment(experiment):
    """Each experiment with a sixth of the searches, and each search with some of the experiments."""
    values, first = own_values(experiment), EXPERIMENTS.index(experiment) % 6
    for i, search in list(enumerate(SEARCHES))[first::6]:
        given, brought, alone = composed_with(search, i)
        # no other search than the default leaves the proposer to the experiment
        assert bool(brought) == (search != "default")
        overrides = [*given, *brought, f"+experiment={experiment}"]
        both = compose("config", overrides=overrides if i % 2 else overrides[::-1])
        for group in (*CHOICES, "search", *(["proposer"] if brought else [])):
            # an experiment's values go over those of any choice; those of a choice that it made itself went with that choice
            assert both[group] == OmegaConf.merge(alone[group], values.get(group, {})), (given, group)


@pytest.fixture(scope="module")
def proposers_alone():
    """Every proposer as its file has it, composed as so many controls of one run."""
    return compose("config", overrides=[f"+proposer@controls.{name}={name}" for name in PROPOSERS if name != "random"]).controls


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_a_proposer_of_the_command_line_wins_over_experiment_and_search(proposer, proposers_alone):
    both = compose("config", overrides=["+experiment=self_pruner_quick", "search=tpe", f"proposer={proposer}"])
    assert both.proposer == proposers_alone[proposer]


def test_nothing_is_brought_along_for_a_group_that_is_given():
    assert brought_along("config", ["+experiment=self_pruner_quick", "search=tpe", "proposer=uniform"]) == []


def test_evopress_beside_the_smoke_experiment_is_evopress_in_its_size():
    config = to_config(composed("+experiment=smoke", "search=evopress"), RunConfig)
    assert type(config.proposer) is find_methods("proposer")["evopress"]
    assert (config.search.ladder.fresh, config.search.ladder.rungs, config.search.max_tokens) == (True, [2, 8], 6000)


def test_no_harness_beside_an_experiment_is_none():
    harness = composed("harness=none", "+experiment=smoke").harness
    assert (harness.tasks, harness.search_tasks) == ([], [])


@pytest.mark.parametrize(
    ("experiment", "search"),
    [("smoke", search) for search in SEARCHES] + [("self_pruner_quick", search) for search in SEARCHES[::4]],
)
def test_a_search_beside_an_experiment_converts_or_is_refused_in_a_sentence(experiment, search):
    brought = composed_with(search, SEARCHES.index(search))[1]
    node = compose("config", overrides=[f"+experiment={experiment}", f"search={search}", *brought])
    fits = node.search.ladder.n_windows[-1] <= node.data.n_search
    assert fits or experiment == "self_pruner_quick"
    with contextlib.nullcontext() if fits else pytest.raises(ConfigError, match="raise the one or lower the other"):
        to_config(node, RunConfig)


def test_swept_choices_bring_nothing_before_they_are_one_each():
    assert brought_along("config", ["+experiment=smoke", "search=evopress,tpe"]) == []
    assert brought_along("config", ["+experiment=smoke", "search=tpe"]) == ["proposer=optuna_sampler_tpe"]
    assert brought_along("config", ["search=tpe"]) == []


def test_a_file_sets_no_values_for_a_group_that_it_chooses():
    """They would stay when the command line chooses otherwise: they belong into a choice of their own."""
    both = {path.relative_to(CONF).as_posix(): overridden(path) & set(content(path)) for path in CONF.rglob("*.yaml")}
    assert {name: groups for name, groups in both.items() if groups} == {}
