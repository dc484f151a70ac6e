"""Accuracies on lm-eval tasks: the embedded ones, those that lm-eval ships, and a user's own YAML files."""

import contextlib
import copy
import difflib
import io
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfprune.embedded.tasks import TASK_FOLDER, TASKS
from selfprune.errors import ConfigError, DataError
from selfprune.evaluators.task_documents import answered_documents, build_requests_once

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

N_BOOTSTRAPS = 1000
"""Only for metrics that are not means; the standard error of a mean, such as `acc`, is a formula. lm-eval has none at 0."""


@dataclass
class HarnessConfig:
    """Which lm-eval tasks to run, and how.

    Attributes:
        tasks: tasks or groups of the report.
        search_tasks: tasks or groups for the search's finalists; none may be among `tasks`.
        limit: documents per task; None for all.
        batch_size: requests per forward pass.
        include_path: a folder of further task YAML files; the embedded tasks are always there.
        num_fewshot: solved examples before each document; lm-eval keeps a task's own 0.
    """

    tasks: list[str] = field(default_factory=lambda: [f"{task}_report" for task in TASKS])
    search_tasks: list[str] = field(default_factory=lambda: [f"{task}_search" for task in TASKS])
    limit: int | None = None
    batch_size: int = 32
    include_path: str | None = None
    num_fewshot: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("limit", 1), ("batch_size", 1), ("num_fewshot", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"harness.{name} must be at least {lowest}, got {value}")
        _check_apart(self.tasks, self.search_tasks)
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ConfigError(
                f"harness.include_path must be a folder of lm-eval YAML files, got {self.include_path!r}; correct it"
            )


class Harness:
    """Runs lm-eval tasks; they and their requests are built once, whatever the number of models.

    Attributes:
        config: what was asked for.
        versions: `lm_eval` -> its version, and each task's name -> the task's version.

    Example:
        >>> harness = Harness(HarnessConfig())
        >>> harness.evaluate(model, tokenizer)["selfprune_sums_report"]["acc"]
        >>> harness.evaluate(model, tokenizer, harness.config.search_tasks)
    """

    def __init__(self, config: HarnessConfig) -> None:
        """Builds the tasks of the report and of the search.

        Raises:
            ConfigError: when lm-eval knows no task of that name, or a group of the report shares a task with the search.
            DataError: when the documents of a task cannot be loaded.
        """
        # Imported here and below because it takes seconds, and this module is also imported for its config.
        import lm_eval

        self.config = config
        names = [*config.tasks, *config.search_tasks]
        with _undisturbed():
            manager = _find_tasks(names, config)
            self._loaded = {name: _load(name, manager) for name in names}
        report, search = (
            [task for n in part for task in self._loaded[n]["tasks"]] for part in (config.tasks, config.search_tasks)
        )
        _check_apart(report, search)
        self.versions: dict[str, Any] = {"lm_eval": lm_eval.__version__}
        for name, task in chain.from_iterable(loaded["tasks"].items() for loaded in self._loaded.values()):
            self.versions[name] = task.VERSION
            if task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=config.num_fewshot)
            build_requests_once(task)

    def evaluate(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", names: Sequence[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Runs tasks on a model.

        Args:
            model: a causal language model; neither it nor the tokenizer is changed.
            tokenizer: its tokenizer.
            names: which of the configured tasks; None for those of the report.

        Returns:
            Task or group -> its metrics: each metric and `<metric>_stderr` (such as `acc`, `acc_stderr`, `acc_norm`; None where a
            single document gives no error), all NaN when a log-likelihood was; `n_documents`; `version`; and `n_tokens`: context
            and choice of every request, without what a generative task samples.

        Raises:
            ConfigError: when a task is not among the configured ones.
        """
        loaded = [self._configured(name) for name in (self.config.tasks if names is None else names)]
        tasks = {name: task for each in loaded for name, task in each["tasks"].items()}
        groups = {name: group for each in loaded for name, group in each["groups"].items()}
        if not tasks:
            return {}
        results = self._run(tasks, groups, model, tokenizer)
        broken = {name for name, task in tasks.items() if _is_broken(task)}
        broken |= {name for name, group in groups.items() if broken & {task.task_name for task in group.get_all_tasks()}}
        n_tokens = {name: _count_tokens(task, tokenizer) for name, task in tasks.items()}
        return {
            name: _metrics(metrics, name in broken)
            | {"version": results["versions"].get(name), "n_tokens": n_tokens.get(name, 0)}
            for name, metrics in results["results"].items()
        }

    def search_documents(self, seed: int) -> Iterator[str]:
        """The documents of the search tasks with their right answers, each once, whatever `limit` says.

        Args:
            seed: of their order.
        """
        tasks = {name: task for each in self.config.search_tasks for name, task in self._loaded[each]["tasks"].items()}
        return answered_documents(list(tasks.values()), seed)

    def _run(
        self, tasks: dict[str, Any], groups: dict[str, Any], model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        was_training = model.training
        try:
            with _undisturbed():
                # A copy, because HFLM adds a padding token. In bf16, choices would tie, and lm-eval gives ties to the first.
                lm = HFLM(model, tokenizer=copy.deepcopy(tokenizer), batch_size=self.config.batch_size, softmax_dtype="float32")
                task_dict = {"tasks": tasks, "groups": groups}
                return dict(evaluate(lm, task_dict, limit=self.config.limit, bootstrap_iters=N_BOOTSTRAPS, log_samples=False))
        finally:
            model.train(was_training)

    def _configured(self, name: str) -> dict[str, Any]:
        if name not in self._loaded:
            raise ConfigError(f"the harness was built without the task {name!r}; it has {', '.join(self._loaded)}")
        return self._loaded[name]


def _check_apart(report: Sequence[str], search: Sequence[str]) -> None:
    for name in sorted({*report} & {*search}):
        raise ConfigError(
            "harness.tasks and harness.search_tasks must not share a task, or the search would choose on what the report "
            f"measures; both hold {name!r}, so leave it out of one of them"
        )


def _find_tasks(names: Sequence[str], config: HarnessConfig) -> "TaskManager":
    """A task manager that knows all names; lm-eval's own thousands, which take ten seconds to index, only if needed."""
    from lm_eval.tasks import TaskManager

    folders = [str(TASK_FOLDER), *([config.include_path] if config.include_path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
    for name in names:
        if name not in manager.all_tasks:
            nearest = difflib.get_close_matches(name, manager.all_tasks, n=10, cutoff=0.0)
            raise ConfigError(
                f"harness.tasks and harness.search_tasks must name lm-eval tasks, got {name!r}, which is none of the "
                f"{len(manager.all_tasks):,} known; nearest first: {', '.join(nearest)}; add your own by harness.include_path"
            )
    return manager


def _load(name: str, manager: "TaskManager") -> dict[str, Any]:
    try:
        return dict(manager.load([name]))
    # What `datasets` raises out of reach of the hub: ConnectionError, DatasetNotFoundError, or ValueError when half in the cache.
    except (OSError, ValueError) as error:
        raise DataError(
            f"the documents of the lm-eval task {name!r} must come from the Hugging Face hub or its cache, got "
            f"{type(error).__name__}: {' '.join(str(error).split())}; run it once with a network (without HF_HUB_OFFLINE), or "
            f"name other tasks in harness.tasks and harness.search_tasks: the selfprune_ ones need no network"
        ) from error


def _metrics(raw: dict[str, Any], is_broken: bool) -> dict[str, Any]:
    """lm-eval's `acc,none` as `acc` (a filter other than `none` stays in the name), and its `N/A` as None."""
    metrics = {key.removesuffix(",none"): None if value == "N/A" else value for key, value in raw.items() if "," in key}
    if is_broken:
        metrics = dict.fromkeys(metrics, math.nan)
    return metrics | {"n_documents": raw.get("sample_len", 0)}


def _is_broken(task: "Task") -> bool:
    """Whether a log-likelihood is NaN, which lm-eval would count as a vote for the first choice."""
    answers = chain.from_iterable(instance.resps for instance in task.instances)
    return any(isinstance(answer, tuple) and math.isnan(answer[0]) for answer in answers)


def _count_tokens(task: "Task", tokenizer: "PreTrainedTokenizerBase") -> int:
    texts = ["".join(part for part in instance.args if isinstance(part, str)) for instance in task.instances]
    return sum(map(len, tokenizer(texts)["input_ids"]))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Gives lm-eval the global seeds of its own command line, then puts the states back; sends its chatter to the debug log."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    chatty = logging.getLogger("lm_eval")
    level, chatter = chatty.level, io.StringIO()
    random.seed(0)
    np.random.seed(1234)
    torch.default_generator.manual_seed(1234)
    chatty.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(chatter), contextlib.redirect_stdout(chatter):
            yield
    finally:
        chatty.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        logger.debug("lm-eval wrote: %s", chatter.getvalue())
