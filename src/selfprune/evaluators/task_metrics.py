"""What an lm-eval task measures: its primary metric, whether a document is simply right or wrong, and its value for each."""

import math
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from selfprune.errors import ConfigError
from selfprune.evaluators.task_documents import right_answer
from selfprune.evaluators.task_mistakes import unfit

if TYPE_CHECKING:
    from lm_eval.api.task import Task

N_PROBED_DOCUMENTS = 4
N_PROBES = 4


def primary_metric(names: Iterable[str]) -> str | None:
    """The metric that stands for a task: `acc` where it has it, or the first that lm-eval lists; None where there is none.

    Args:
        names: of the task's metrics in lm-eval's order, such as `acc` or `exact_match,strict-match`.
    """
    listed = [name for name in names if "_stderr" not in name]
    return next((name for name in listed if name.split(",")[0] == "acc"), listed[0] if listed else None)


def named_metrics(raw: dict[str, Any], is_broken: bool) -> dict[str, float | None]:
    """lm-eval's `acc,none` as `acc` (a filter other than `none` stays in the name), and its `N/A` as None.

    Args:
        raw: lm-eval's results of one task or group.
        is_broken: the model's answers were NaN, and so are the metrics.
    """
    metrics = {key.removesuffix(",none"): None if value == "N/A" else value for key, value in raw.items() if "," in key}
    return dict.fromkeys(metrics, math.nan) if is_broken else metrics


class DocumentScores:
    """Notes what a task's own scorer says about each document, in the order of the documents; numbers only.

    Attributes:
        is_right_or_wrong: whether the primary metric is 0 or 1 for every document, as of multiple choice and exact matches.

    Example:
        >>> scores = DocumentScores(task)
        >>> evaluate(lm, {"tasks": {"sums": task}})
        >>> scores.values()
        [1.0, 0.0, 1.0]
    """

    def __init__(self, task: "Task") -> None:
        """Puts itself between lm-eval and the task's scorer.

        Args:
            task: is changed; with its documents loaded.

        Raises:
            ConfigError: when lm-eval knows a metric of the task neither itself nor from the hub.
        """
        functions = getattr(task, "_metric_fn_list", {})
        for name in functions if not task.get_config("process_results") else ():
            if functions[name] is None:
                raise ConfigError(
                    f"the lm-eval task {task.task_name!r} asks for the metric {name!r}, which lm-eval lacks; correct it"
                )
        self._task, self._score = task, task.process_results
        self._noted: list[float] = []
        self.is_right_or_wrong = _is_right_or_wrong(task)
        task.process_results = self._note

    def clear(self) -> None:
        """Forgets the model before."""
        self._noted = []

    def values(self) -> list[float]:
        """The primary metric of each document that the last model answered; 0 for those that got no number."""
        n_filters = len(self._task.instances[0].filtered_resps)
        # lm-eval scores all documents under the first filter, then all under the next; a task is known by its first.
        return self._noted[: len(self._noted) // n_filters]

    def _note(self, document: Any, results: Any) -> Any:
        try:
            scores = self._score(document, results)
        except Exception as error:  # a task's own code raises anything
            number = len(self._noted) % len(self._task.eval_docs) + 1
            raise unfit(self._task.task_name, None, self._task.dump_config(), error, f" with document {number}") from error
        value = scores.get(primary_metric(scores))
        self._noted.append(float(value) if _is_number(value) and not math.isnan(value) else 0.0)
        return scores


def check_right_or_wrong(tasks: dict[str, DocumentScores]) -> None:
    """Checks that finalists can be compared document by document.

    Args:
        tasks: of the search, by name.

    Raises:
        ConfigError: when the primary metric of one is another.
    """
    others = [name for name, scores in tasks.items() if not scores.is_right_or_wrong]
    if others:
        raise ConfigError(
            "harness.search_tasks must be tasks whose documents are answered right or wrong, as of multiple choice or exact "
            f"matches, because finalists are compared document by document; the primary metric of {', '.join(others)} is "
            "another; leave it out of harness.search_tasks, or measure it for the report in harness.tasks"
        )


def _is_number(value: Any) -> bool:
    import numpy as np

    return isinstance(value, bool | int | float | np.number | np.bool_)


def _is_right_or_wrong(task: "Task") -> bool:
    """Asks the task's scorer about made-up answers: its names do not tell, as `acc` of truthfulqa_mc2 is a probability."""
    found = []
    for document in islice(task.eval_docs, N_PROBED_DOCUMENTS):
        for results in _made_up_results(task, document):
            try:
                scores = task.process_results(document, results)
            except Exception:  # a task's own code, which may expect more of an answer than these hold
                continue
            found.append(scores.get(primary_metric(scores)))
    return bool(found) and all(_is_number(value) and value in (0, 1) for value in found)


def _made_up_results(task: "Task", document: Any) -> Iterator[list[Any]]:
    rng = random.Random(0)
    if task.OUTPUT_TYPE == "generate_until":
        right = right_answer(task, document)
        yield from ([answer] for answer in ("", right, f"{right} and more", f"not {right}"))
        return
    context = task.fewshot_context(document, num_fewshot=0, gen_prefix=task.doc_to_prefix(document))
    requests = task.construct_requests(doc=document, ctx=context, metadata=(task.task_name, 0, 1))
    n_requests = len(requests) if isinstance(requests, list) else 1
    for _ in range(N_PROBES):
        values = [-10 * rng.random() for _ in range(n_requests)]
        yield values if task.OUTPUT_TYPE == "loglikelihood_rolling" else [(value, rng.random() < 0.5) for value in values]
