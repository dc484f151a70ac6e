"""Accuracies on lm-eval tasks: the embedded ones, those that lm-eval ships, and a user's own YAML files."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfprune.data.data_config import Bos
from selfprune.data.window_start import start_tokens
from selfprune.errors import ConfigError
from selfprune.evaluators.harness_config import HarnessConfig, check_apart
from selfprune.evaluators.pairs import NAME as PAIRS
from selfprune.evaluators.pairs import pairs_task
from selfprune.evaluators.task_documents import answered_documents, build_requests, set_num_fewshot
from selfprune.evaluators.task_loading import load_tasks
from selfprune.evaluators.task_memory import cache_bytes
from selfprune.evaluators.task_metrics import DocumentScores, check_right_or_wrong, named_metrics, primary_metric
from selfprune.evaluators.task_runs import count_cut_prompts, is_broken, request_lengths, run_tasks, undisturbed
from selfprune.models.loading import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_POSITIONS = 2048
"""What lm-eval takes for the positions of a model that does not say."""


class Harness:
    """Runs lm-eval tasks; they and their requests are built once, whatever the number of models.

    Attributes:
        config: what was asked for.
        tasks: name -> every task of the report and of the search, with its requests.

    Example:
        >>> harness = Harness(HarnessConfig())
        >>> harness.evaluate(model, tokenizer)["selfprune_sums_report"]["acc"]
        >>> harness.evaluate(model, tokenizer, harness.config.search_tasks)
    """

    def __init__(self, config: HarnessConfig) -> None:
        """Builds the tasks of the report and of the search.

        Raises:
            ConfigError: when lm-eval knows no task of that name, or a group of the report shares a task with the search.
            DataError: when the documents of a task cannot be loaded, or a task does not fit them.
        """
        # Imported here and below because it takes seconds, and this module is also imported for its config.
        import lm_eval

        self.config, self._version = config, lm_eval.__version__
        with undisturbed():
            own = {PAIRS: pairs_task(Path(config.pairs), config.pairs_tokens)} if config.pairs else {}
            self._loaded = load_tasks([*config.report_tasks, *config.search_tasks], config.include_path, own)
            self.tasks = {name: task for loaded in self._loaded.values() for name, task in loaded["tasks"].items()}
            report, search = (
                [task for n in part for task in self._loaded[n]["tasks"]] for part in (config.report_tasks, config.search_tasks)
            )
            check_apart(report, search)
            for task in self.tasks.values():
                set_num_fewshot(task, config.num_fewshot)
                build_requests(task, config.limit)
            self._scores = {name: DocumentScores(task) for name, task in self.tasks.items()}
        self._encoded: dict[str, tuple[Any, list[int]]] = {}
        check_right_or_wrong({name: self._scores[name] for name in search})

    def check(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
        """Compares the prompts with the model's positions; takes as long as encoding them, which is then not done again.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer.

        Returns:
            a paragraph on each task of which lm-eval will cut prompts.

        Raises:
            DataError: when a task lets the model write more tokens than it has positions for.
        """
        n_positions = max_positions(model) or DEFAULT_POSITIONS
        cut = {name: count_cut_prompts(task, self._lengths(name, tokenizer), n_positions) for name, task in self.tasks.items()}
        return [
            f"{n_cut:,} of {len(self.tasks[name].instances):,} prompts of the lm-eval task {name!r} are longer than the model's "
            f"{n_positions:,} positions, so that lm-eval cuts off their beginning, and solved examples with it; give a lower "
            "harness.num_fewshot, or leave the task out"
            for name, n_cut in cut.items()
            if n_cut
        ]

    def cache_bytes(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
        """The memory that keys and values take while tasks let the model write; 0 where none does.

        Args:
            model: as of `check`.
            tokenizer: as of `check`.
        """
        tasks = [(task, self._lengths(name, tokenizer)) for name, task in self.tasks.items()]
        n_positions = max_positions(model) or DEFAULT_POSITIONS
        return cache_bytes(tasks, self.config.batch_size, model.config.get_text_config(), n_positions, model.dtype.itemsize)

    def n_request_tokens(self, names: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> int:
        """The tokens of all requests of some tasks, without what these let the model write.

        Args:
            names: of the configured tasks or groups.
            tokenizer: as of `check`.
        """
        tasks = {name for each in names for name in self._configured(each)["tasks"]}
        return sum(sum(self._lengths(name, tokenizer)) for name in tasks)

    def describe(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
        """How the tasks are asked, for the report: lm-eval's version, what every prompt begins with, and each task's numbers.

        Args:
            tokenizer: the model's; lm-eval lets it put its own tokens before a prompt, and applies no chat template.
        """
        start = start_tokens(tokenizer, Bos.AUTO, sys.maxsize)
        of_tasks = {
            name: {"version": task.VERSION, "num_fewshot": task.get_config("num_fewshot")} for name, task in self.tasks.items()
        }
        return {"lm_eval": self._version, "prompt_start": tokenizer.convert_ids_to_tokens(list(start)), "tasks": of_tasks}

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
            single document gives no error), all NaN when a log-likelihood was; `n_documents`; `version`; `num_fewshot`: solved
            examples; `n_tokens`: context and choice of every request, without what a generative task samples; `primary`: which
            metric stands for the task; `higher_is_better`: of that metric, as lm-eval has it; `is_accuracy`: whether it is the
            share of documents that were answered right; and, for a group, `members`: the names of its tasks.

        Raises:
            ConfigError: when a task is not among the configured ones.
        """
        loaded = [self._configured(name) for name in (self.config.report_tasks if names is None else names)]
        tasks = {name: task for each in loaded for name, task in each["tasks"].items()}
        groups = {name: group for each in loaded for name, group in each["groups"].items()}
        if not tasks:
            return {}
        results = self._run(tasks, groups, model, tokenizer)
        broken = {name for name, task in tasks.items() if is_broken(task)}
        found = {}
        for name, raw in results["results"].items():
            members = [task.task_name for task in groups[name].get_all_tasks()] if name in groups else []
            metrics = named_metrics(raw, bool(broken & {name, *members}))
            primary = primary_metric(metrics)
            better = results["higher_is_better"].get(name, {})
            found[name] = metrics | {
                "n_documents": raw.get("sample_len", 0),
                "version": results["versions"].get(name),
                "n_tokens": sum(self._lengths(name, tokenizer)) if name in tasks else 0,
                "num_fewshot": results["n-shot"].get(name),
                "primary": primary,
                "higher_is_better": better.get(primary.partition(",")[0]) if primary else None,
                "is_accuracy": all(self._scores[task].is_right_or_wrong for task in members or [name]),
                **({"members": members} if name in groups else {}),
            }
        return found

    def score_documents(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", names: Sequence[str]
    ) -> dict[str, list[float]]:
        """Runs tasks on a model and tells document by document what came of it, so that models can be compared in pairs.

        Args:
            model: as of `evaluate`.
            tokenizer: as of `evaluate`.
            names: which of the configured tasks or groups.

        Returns:
            Task -> its primary metric for each document: 1.0 for right and 0.0 for wrong, for tasks of the search. The documents
            are the same for every model, in the same order. A group gives its tasks. A model whose log-likelihoods are NaN
            answers nothing right.
        """
        tasks = {name: task for each in names for name, task in self._configured(each)["tasks"].items()}
        if not tasks:
            return {}
        self._run(tasks, {}, model, tokenizer)
        found = {name: self._scores[name].values() for name in tasks}
        return {name: [0.0] * len(found[name]) if is_broken(task) else found[name] for name, task in tasks.items()}

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
        for name in tasks:
            self._scores[name].clear()
        return run_tasks(tasks, groups, model, tokenizer, self.config.batch_size, self.config.limit)

    def _lengths(self, name: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        known_by, lengths = self._encoded.get(name, (None, []))
        if known_by is not tokenizer:
            lengths = request_lengths(self.tasks[name], tokenizer)
            self._encoded[name] = tokenizer, lengths
        return lengths

    def _configured(self, name: str) -> dict[str, Any]:
        if name not in self._loaded:
            raise ConfigError(f"the harness was built without the task {name!r}; it has {', '.join(self._loaded)}")
        return self._loaded[name]
