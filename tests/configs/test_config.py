import dataclasses
import json
import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from selfprune.allocations.archive import Archive
from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import PruneConfig, RunConfig, register_schemas, to_config
from selfprune.configs.methods import METHODS, find_methods
from selfprune.errors import ConfigError
from selfprune.levels.levels_config import LevelKind
from selfprune.models.model_config import Placement
from selfprune.pruners.base import Pruner
from selfprune.pruners.structure_pruner import StructurePruner

GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml"))
    for group in conf_folder().iterdir()
    if group.is_dir() and group.name != "hydra"
}
# What a choice cannot know by itself.
NEEDS = {
    ("model", "local"): ["model.path=somewhere"],
    ("model", "hub"): ["model.path=someone/some-model"],
    ("language_model", "scripted"): ["language_model.path=calls.jsonl"],
    ("proposer", "stored"): ["proposer.run_folder={finished_run}"],
    ("budget", "latency"): [f"budget.latency_table={Path(__file__).parents[1] / 'latency_table.json'}"],
    ("budget", "speedup"): [f"budget.latency_table={Path(__file__).parents[1] / 'latency_table.json'}"],
    ("budget", "memory"): ["budget.context=256"],
    ("proposer", "sensitivity"): ["search.n_sensitivity_windows=8"],
    ("schedule", "iterative"): ["training=distillation"],
    ("schedule", "cubic"): ["training=next_token"],
    ("data", "files"): ["data.calibration=a.txt", "data.search=b.txt", "data.report=c.txt"],
}

ALONE = {"objective", "search", "schedule"}
"""Groups whose choices depend on those of others."""


@pytest.fixture
def composed():
    register_schemas()

    def call(*overrides):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return to_config(compose("config", overrides=list(overrides)), RunConfig)

    return call


@pytest.fixture(scope="module")
def default():
    """The default run's config."""
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return to_config(compose("config"), RunConfig)


@pytest.fixture
def composed_pruning():
    register_schemas()

    def call(*overrides):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return to_config(compose("prune", overrides=["output=somewhere", *overrides]), PruneConfig)

    return call


@pytest.fixture
def finished_run(tmp_path):
    """The folder of a run that has a winner."""
    Archive(tmp_path / "archive.jsonl").extend([Candidate(0, "main", Proposal({"q": 1}, "random"), State.COMPLETE, 0.5, 8, 128)])
    (tmp_path / "report.json").write_text(json.dumps({"search": {"winner": {"id": 0}}}))
    return tmp_path


@pytest.fixture
def in_hydra(monkeypatch):
    """What `${hydra:...}` in a config reads, as the command line would set it."""
    register_schemas()

    def say(*overrides):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            monkeypatch.setattr(
                HydraConfig.instance(), "cfg", compose("config", overrides=list(overrides), return_hydra_config=True)
            )

    return say


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_every_experiment_composes_and_converts(name, composed, default, in_hydra):
    in_hydra(f"+experiment={name}")
    assert composed(f"+experiment={name}") != default


def test_evopress_composes_with_the_published_numbers(composed):
    config = composed("search=evopress")
    search, ladder = config.search, config.search.ladder
    assert type(config.proposer) is find_methods("proposer")["evopress"]
    assert config.proposer.max_swaps == 3
    n_tokens = [n * config.data.n_tokens_per_window for n in ladder.rungs]
    assert (search.n_per_round, ladder.n_survivors, n_tokens) == (64, [8, 2], [2048, 16384, 65536])
    assert (ladder.fresh, ladder.grows, ladder.z_worse) == (True, False, math.inf)
    assert (search.race_yardsticks, search.n_sensitivity_windows) == (False, 0)
    # or else every race would see the same windows
    assert config.data.n_search > ladder.rungs[-1]


def test_self_pruner_paper_composes_with_the_published_numbers_and_may_spend_what_they_cost(composed):
    config = composed("+experiment=self_pruner_paper")
    assert composed("search=self_pruner_paper").search == config.search
    proposer, search, data = config.proposer, config.search, config.data
    assert type(proposer) is find_methods("proposer")["self_pruner_paper"]
    assert type(config.evaluator) is find_methods("evaluator")["perplexity"]
    sizes = (proposer.population, proposer.n_crossovers, proposer.n_mutations, proposer.n_iterations)
    assert sizes == (30, 10, 10, 20)
    assert search.max_candidates == 30 + 20 * (10 + 10)
    assert (search.ladder.rungs, search.ladder.fresh, search.n_finalists) == ([data.n_search], False, 1)
    assert search.max_tokens == search.max_candidates * data.n_search * data.n_tokens_per_window
    assert (search.race_yardsticks, search.n_sensitivity_windows, search.n_per_round) == (False, 0, 20)


def test_evopress_can_be_scaled_and_started_elsewhere(composed):
    assert composed("search=evopress", "search.ladder.scale=0.25").search.ladder.rungs == [2, 16, 64]
    scaled = composed("search=evopress_scaled")
    assert (scaled.search.n_per_round, scaled.search.ladder.rungs, scaled.search.ladder.n_survivors) == (32, [8, 32], [4])
    assert type(scaled.proposer) is find_methods("proposer")["evopress"]
    other = composed("search=evopress", "proposer=evolutionary")
    assert type(other.proposer) is find_methods("proposer")["evolutionary"]


def abreast(*groups):
    """Choices of these groups, one of each, so that all are there with as few configs as the largest group has choices."""
    rows = max(len(GROUPS[group]) for group in groups)
    chosen = [{group: GROUPS[group][i % len(GROUPS[group])] for group in groups} for i in range(rows)]
    # zeros of single weights take as much memory as before
    structured = [row for row in chosen if issubclass(find_methods("pruner").get(row["pruner"], Pruner), StructurePruner)]
    plain = [row if row in structured or row["budget"] != "memory" else row | {"budget": "default"} for row in chosen]
    # of experts that stay nothing is mended, and a token sees as many as before
    own = {"recovery": "none", "budget": "default"}
    return [row | {group: own[group] for group in row if group in own} if row["pruner"] == "reap" else row for row in plain]


def check_choices(config, chosen):
    for group, name in chosen.items():
        if group in METHODS and name in find_methods(group):
            assert type(getattr(config, group)) is find_methods(group)[name]


def test_every_proposer_composes_and_converts_beside_the_others(composed, finished_run):
    names = [name for name in GROUPS["proposer"] if name != "random"]
    needs = [need.format(finished_run=finished_run) for name in names for need in NEEDS.get(("proposer", name), [])]
    needs = [need.replace("proposer.", "controls.stored.") for need in needs]
    alone = ["~yardsticks.uniform", "~yardsticks.owl"]
    # one of them compares heads and channels
    controls = composed("pruner=flap", *alone, *(f"+proposer@controls.{name}={name}" for name in names), *needs).controls
    for name in names:
        if name in find_methods("proposer"):
            assert type(controls[name]) is find_methods("proposer")[name]


@pytest.mark.parametrize("chosen", abreast(*sorted(GROUPS.keys() - ALONE - {"experiment", "proposer"})), ids=str)
def test_every_choice_of_every_group_composes_and_converts(chosen, composed, finished_run):
    needs = [need.format(finished_run=finished_run) for choice in chosen.items() for need in NEEDS.get(choice, [])]
    check_choices(composed(*(f"{group}={name}" for group, name in chosen.items()), *needs), chosen)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in sorted(ALONE) for name in GROUPS[group]])
def test_every_choice_that_depends_on_others_composes_and_converts(group, name, composed):
    composed(f"{group}={name}", *NEEDS.get((group, name), []))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule=iterative"], r"schedule\.n_cuts=4 prunes in steps between which the whole model learns"),
        (["schedule=cubic", "training=blockwise"], r"schedule\.n_cuts=16 prunes in steps"),
        (["schedule=cubic", "training=distillation_hira"], r"training\.trained=HIRA leaves them as they are"),
        (["schedule=iterative", "training=distillation", "recovery=bias_compensation"], r"biases .* would add up"),
        (
            ["schedule=iterative", "training=distillation", "pruner=reap", "model=local", "model.path=x"],
            r"experts do not come back",
        ),
        (
            ["schedule=iterative", "training=distillation", "schedule.share=1"],
            r"schedule\.share above 0 and below 1, got 4, 1 and 1",
        ),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(overrides, message, composed):
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


@pytest.mark.parametrize("chosen", abreast("model", "data", "pruner", "budget"), ids=str)
def test_every_choice_of_a_pruning_composes_and_converts(chosen, composed_pruning):
    needs = [need for choice in chosen.items() for need in NEEDS.get(choice, [])]
    check_choices(composed_pruning(*(f"{group}={name}" for group, name in chosen.items()), *needs), chosen)


def test_the_stored_proposer_needs_the_folder_of_a_finished_run(composed, tmp_path):
    with pytest.raises(ConfigError, match=r"needs a value for proposer\.run_folder"):
        composed("proposer=stored")
    with pytest.raises(ConfigError, match=r"must be the folder of a finished run, got .*nowhere"):
        composed("proposer=stored", f"proposer.run_folder={tmp_path / 'nowhere'}")


def test_the_default_pruning_is_uniform_wanda_of_the_embedded_model_in_memory(composed_pruning):
    config = composed_pruning()
    assert config.model.path == "embedded"
    assert type(config.pruner) is find_methods("pruner")["wanda"]
    assert (config.allocation, config.output, config.seed) == ("uniform", "somewhere", 0)
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
        ("seed=-1", r"seed must not be negative, got -1"),
        ("+tasks=[a]", r"there is no option tasks; the options there, nearest first: "),
        ("+model.where=STREAM", r"there is no option model\.where"),
        ("~pruner", r"the config needs a pruner; choose one of .*wanda"),
    ],
)
def test_a_wrong_pruning_is_refused(override, message, composed_pruning):
    with pytest.raises(ConfigError, match=message):
        composed_pruning(override)


def test_the_objective_is_the_search_text_unless_others_have_a_share(composed):
    assert set(composed().objective.kinds(64)) == {"text"}
    kinds = composed("objective=mixed").objective.kinds(64)
    assert [kinds.count(kind) for kind in ("text", "self_generated", "tasks")] == [32, 16, 16]
    assert composed("objective=mixed", "objective.tasks=0", "harness=none").objective.kinds(3).count("text") == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=mixed", "harness=none"], r"objective\.tasks=0\.25 .* harness\.search_tasks is empty"),
        (["objective.tasks=-1"], r"objective\.tasks must be a finite share of 0 or more, got -1"),
        (["objective.text=0"], r"are all 0"),
        (["objective.tasks=0.005"], r"objective\.tasks is 0\.50% of 64 search windows, which is none of them"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(overrides, message, composed):
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


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


def test_finer_levels_are_given_per_glob_and_do_not_go_with_a_pattern(composed):
    assert composed("+search.finer={self_attn.*:2,mlp.up_proj:4}").search.finer == {"self_attn.*": 2, "mlp.up_proj": 4}
    with pytest.raises(ConfigError, match=r"search\.finer must divide the step by 1 or more, got 0 for mlp\.\*"):
        composed("+search.finer={mlp.*:0}")
    with pytest.raises(ConfigError, match=r"pruner\.pattern=2:4 leaves every unit one level; leave out one of the two"):
        composed("+search.finer={mlp.*:2}", "pruner.pattern=2:4")


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], LevelKind.MASKS),
        (["pruner=dsnot"], LevelKind.MASKS),
        (["pruner=sparsegpt"], LevelKind.BUILT),
        (["pruner=alps"], LevelKind.MASKS),
        (["pruner=sparsegpt", "search.levels.kind=MASKS"], LevelKind.MASKS),
        (["pruner=alps", "search.levels.kind=BUILT"], LevelKind.BUILT),
    ],
)
def test_levels_are_built_for_sparsegpt_unless_another_kind_is_asked_for(overrides, kind, composed):
    assert composed(*overrides).level_kind is kind


@pytest.mark.parametrize(
    ("overrides", "who"),
    [
        (["proposer=sensitivity"], "the proposer"),
        (["+proposer@controls.alone=sensitivity"], "alone"),
        (["+proposer@proposer.arms.sensitivity=sensitivity"], "the proposer"),
    ],
)
def test_who_needs_sensitivities_is_told_the_option_that_measures_them(overrides, who, composed):
    with pytest.raises(ConfigError, match=rf"which {who} must know, are measured only where search\.n_sensitivity_windows"):
        composed(*overrides)
    composed(*overrides, "search.n_sensitivity_windows=8")


def test_an_arm_without_a_share_needs_no_sensitivities(composed):
    composed("+proposer@proposer.arms.sensitivity=sensitivity", "+proposer.shares.sensitivity=0")


@pytest.mark.parametrize("name", ["dense", "main", "winner"])
def test_a_yardstick_cannot_take_a_reserved_name(name, composed):
    with pytest.raises(ConfigError, match="names of their own"):
        composed(f"+proposer@yardsticks.{name}=uniform")


def test_config_files_keep_no_absolute_paths():
    for path in Path(conf_folder()).rglob("*.yaml"):
        assert "/home" not in path.read_text()
        assert "/root" not in path.read_text()


@pytest.mark.parametrize("option", ["max_candidates", "max_seconds"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_of_nothing_is_refused_by_its_name(option, value, composed):
    with pytest.raises(ConfigError, match=rf"search\.{option} must be .*, or null for no limit, got {value}"):
        composed(f"search.{option}={value}")


def test_a_pattern_that_cannot_meet_the_budget_is_told_the_sparsity_that_it_can(composed):
    for pattern, most in (("2:4", "0.5"), ("3:4", "0.25"), ("1:3", "0.666666")):
        with pytest.raises(ConfigError, match=rf"budget\.sparsity is 0\.7; give budget\.sparsity={most} or another pattern"):
            composed(f"pruner.pattern={pattern}")
        composed(f"pruner.pattern={pattern}", f"budget.sparsity={most}")


@pytest.mark.parametrize("overrides", [["search=evopress", "search.ladder.scale=0.25"], ["pruner=sparsegpt"], ["pruner=wanda"]])
def test_the_values_that_are_used_are_those_that_are_recorded(overrides):
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        node = compose("config", overrides=overrides)
    recorded = OmegaConf.to_container(node, resolve=True)
    used = OmegaConf.to_container(OmegaConf.create(dataclasses.asdict(to_config(node, RunConfig))), resolve=True)
    assert {key: used[key] for key in ("search", "budget", "data", "objective")} == {
        key: recorded[key] for key in ("search", "budget", "data", "objective")
    }
