"""The typed configs of a run and of a pruning; `methods` finds what they choose from."""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from selfprune.allocations.budget import Budget
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.objective import Objective
from selfprune.allocations.unit import Item, Unit
from selfprune.configs.methods import METHODS, find_methods, register_methods
from selfprune.configs.structure_checks import (
    check_context,
    check_cuts,
    check_experts,
    check_nothing_is_measured_of_items,
    check_nothing_is_plain,
    check_pattern,
)
from selfprune.data.data_config import SPLITS, DataConfig
from selfprune.errors import ConfigError, did_you_mean
from selfprune.evaluators.harness_config import HarnessConfig
from selfprune.levels.levels_config import LevelKind
from selfprune.models.model_config import ModelConfig
from selfprune.proposers.base import ClosedForm, ProposerConfig
from selfprune.pruners.base import Pruner
from selfprune.search.search_config import SearchConfig
from selfprune.storage.path_fields import path_field
from selfprune.training.schedule import Schedule

Config = TypeVar("Config")


class WithMethod:
    """A config that names a pruner and a recovery."""

    pruner: Any
    recovery: Any

    @property
    def method(self) -> Pruner:
        """The pruner, and what repairs at once what it leaves."""
        method: Pruner = self.recovery.around(self.pruner)
        return method


@dataclass
class RunConfig(WithMethod):
    """Everything that decides a run.

    Attributes:
        model: which model is pruned.
        data: the texts and the three splits.
        pruner: decides which weights go.
        recovery: repairs in closed form what the pruner leaves of a unit.
        training: trains pruned models, and reports them once more.
        schedule: whether what goes goes at once, or in cuts between which the model learns.
        proposer: proposes allocations in the main search.
        yardsticks: name -> closed-form allocations that are scored first and reported.
        controls: name -> proposers that search alone, with the tokens that the main search spent, and are reported; they know
            sensitivities, where the main search measured them, for nothing.
        language_model: who is asked by proposers that ask.
        evaluator: what the search minimises.
        objective: on which kinds of text.
        harness: lm-eval tasks.
        search: limits and racing.
        budget: the sparsity target.
        seed: of everything that is drawn.
        trackers: of experiments that are told how the run goes: tensorboard, wandb, mlflow, trackio.
        run_folder: where the run writes; by default `runs/<date and time>`.
        resume: a run folder whose run is continued; everything else is read from it.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pruner: Any = None
    recovery: Any = None
    training: Any = None
    schedule: Schedule = field(default_factory=Schedule)
    proposer: Any = None
    yardsticks: dict[str, Any] = field(default_factory=dict)
    controls: dict[str, Any] = field(default_factory=dict)
    language_model: Any = None
    evaluator: Any = None
    objective: Objective = field(default_factory=Objective)
    harness: HarnessConfig = field(default_factory=HarnessConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    trackers: list[str] = field(default_factory=list)
    run_folder: str = path_field()
    resume: str = path_field()

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        for group in METHODS:
            _check_chosen(self, group)
        self.budget.check()
        self.data.require(*SPLITS)
        wrong = [name for name, method in self.yardsticks.items() if not isinstance(method, ClosedForm)]
        wrong += [name for name, method in self.controls.items() if not isinstance(method, ProposerConfig)]
        if wrong:
            raise ConfigError(f"yardsticks must be closed-form proposers and controls proposers, but {', '.join(wrong)} is none")
        names = [*self.yardsticks, *self.controls]
        taken = [name for name in names if names.count(name) > 1 or name in ("dense", "main", "winner")]
        if taken:
            raise ConfigError(
                f"yardsticks and controls need names of their own, other than dense, main and winner, got {', '.join(taken)}"
            )
        self.training.check(["winner", *names])
        self.training.check_schedule(self.schedule)
        check_cuts(self.schedule, self.method)
        if self.search.finer and self.pruner.level_fraction() is not None:
            raise ConfigError(
                f"search.finer divides the steps of a level grid, but {self.pruner.level_option()} leaves every unit one "
                "level; leave out one of the two"
            )
        check_context(self.budget, self.pruner)
        check_experts(self.budget, self.pruner, self.recovery)
        if Item.WEIGHT in self.pruner.items():
            check_nothing_is_plain(self.search.plain, self.pruner)
            check_nothing_is_measured_of_items(self.pruner, {"the proposer": self.proposer, **self.yardsticks, **self.controls})
        elif self.search.finer:
            raise ConfigError(
                "search.finer divides the steps of single weights, but heads and channels have steps of their own; leave it out"
            )
        check_pattern(self.budget, self.pruner)
        if self.search.ladder.rungs[-1] > self.data.n_search:
            raise ConfigError(
                f"the last rung of search.ladder.n_windows needs {self.search.ladder.rungs[-1]} search windows, "
                f"but data.n_search is {self.data.n_search}; raise the one or lower the other"
            )
        hungry = [name for name, method in {"the proposer": self.proposer, **self.controls}.items() if method.needs_sensitivities]
        if hungry and not self.search.n_sensitivity_windows:
            raise ConfigError(
                f"the sensitivities of the units, which {' and '.join(hungry)} must know, are measured only where "
                f"search.n_sensitivity_windows is above 0; give one of {self.search.ladder.rungs}, the rungs of search.ladder"
            )
        self.objective.check(self.n_search_windows, self.harness.search_tasks)

    def grid(self, units: tuple[Unit, ...]) -> LevelGrid:
        """The levels that the units of a model may have: one under a pattern, else those of the search."""
        grid: LevelGrid = self.method.grid(units, self.search.level_fraction, self.search.max_sparsity, self.search.finer)
        return grid

    @property
    def level_kind(self) -> LevelKind:
        """How units get their weights at a level: as `search.levels.kind` says, or as suits the pruner where it is AUTO."""
        kind = self.search.levels.kind
        return LevelKind.of(self.method) if kind is LevelKind.AUTO else kind

    @property
    def n_search_windows(self) -> int:
        """Windows that candidates may be scored on: those of the last rung, or all where every race draws its own."""
        return self.data.n_search if self.search.ladder.fresh else self.search.ladder.rungs[-1]


@dataclass
class PruneConfig(WithMethod):
    """Everything that decides a pruning without a search.

    Attributes:
        model: which model is pruned; `model.placement=STREAM` prunes it from disk, block by block.
        data: the calibration text.
        pruner: decides which weights go.
        recovery: repairs in closed form what the pruner leaves of a unit.
        budget: the sparsity target.
        allocation: `uniform`, or a run folder whose winner's allocation is taken.
        output: folder of the pruned checkpoint, which must not exist.
        seed: of the choice of windows.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pruner: Any = None
    recovery: Any = None
    budget: Budget = field(default_factory=Budget)
    allocation: str = path_field("uniform", names=("uniform",))
    output: str = path_field()
    seed: int = 0

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        for group in ("pruner", "recovery"):
            _check_chosen(self, group)
        self.budget.check()
        check_context(self.budget, self.pruner)
        check_experts(self.budget, self.pruner, self.recovery)
        if not self.output:
            raise ConfigError("output must name the folder for the pruned model, got nothing; give output=FOLDER")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}")


def _check_chosen(config: Any, group: str) -> None:
    chosen = getattr(config, group)
    if isinstance(chosen, METHODS[group][1]):
        return
    said = f"the config needs a {group}; choose one of {', '.join(find_methods(group))}"
    if isinstance(chosen, dict):
        said += (
            f". What was chosen has options ({', '.join(chosen) or 'none'}) but no method: its YAML file must begin with the "
            'lines "defaults:" and "  - NAME_schema"'
        )
    raise ConfigError(said)


@functools.cache
def register_schemas() -> None:
    """Offers the schema of the run, of a pruning and of every method to Hydra, once a process."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="prune_schema", node=PruneConfig)
    register_methods()


def to_config(composed: DictConfig, kind: type[Config]) -> Config:
    """The typed config of a run or of a pruning; `DictConfig` ends here.

    Raises:
        ConfigError: when a value is out of range, or an option that was added with `+` is none.
        omegaconf.errors.OmegaConfBaseException: when a value is missing or of the wrong type.
    """
    _check_keys(composed, "")
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"the config needs a value for {', '.join(missing)}; give it on the command line as {missing[0]}=VALUE")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, kind)
    return config


def _check_keys(node: DictConfig, path: str) -> None:
    """Refuses keys that a dataclass lacks; Hydra lets `+key=value` add anything."""
    kind = OmegaConf.get_type(node)
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
    for key in map(str, node):
        if fields is not None and key not in fields:
            raise ConfigError(f"there is no option {path}{key}; the options there, nearest first: {did_you_mean(key, fields)}")
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _check_keys(node[key], f"{path}{key}.")
