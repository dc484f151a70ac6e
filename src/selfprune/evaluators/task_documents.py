"""The documents of lm-eval tasks: their requests, which are built once, and their texts with the right answers."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from selfprune.evaluators.task_mistakes import unfit

if TYPE_CHECKING:
    from lm_eval.api.task import Task

FEWSHOT_SEED = 1234


def build_requests(task: "Task", limit: int | None) -> None:
    """Builds the requests of a task, which lm-eval would build at every evaluation anew, and makes the task keep them.

    They depend on neither model nor tokenizer, as no chat template is applied. What the model before answered is forgotten.

    Args:
        task: is changed; must always be evaluated with this limit.
        limit: documents; None for all.

    Raises:
        DataError: when the task does not fit one of its documents.
    """
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    try:
        task.build_all_requests(limit=limit)
    except Exception as error:  # templates and a task's own code raise anything
        raise unfit(task.task_name, None, task.dump_config(), error, _first_unfit(task, limit)) from error

    def clear(**_: Any) -> None:
        for request in task.instances:
            request.resps, request.filtered_resps = [], {}

    task.build_all_requests = clear


def _first_unfit(task: "Task", limit: int | None) -> str:
    """Where a task first fails."""
    for number, document in enumerate(islice(task.eval_docs, limit), start=1):
        try:
            context = task.fewshot_context(document, num_fewshot=0, gen_prefix=task.doc_to_prefix(document))
            task.construct_requests(doc=document, ctx=context, metadata=(task.task_name, 0, 1))
        except Exception:  # the same as before
            return f" with document {number}"
    return f" with num_fewshot={task.get_config('num_fewshot')}"


def set_num_fewshot(task: "Task", num_fewshot: int | None) -> None:
    """Says how many solved examples stand before each document.

    Args:
        task: is changed.
        num_fewshot: for all tasks but those that allow none, as lm-eval has it; None for the task's own number.
    """
    own = task.get_config("num_fewshot")
    allows_none = own == 0 or task.OUTPUT_TYPE == "loglikelihood_rolling"
    task.set_config(key="num_fewshot", value=0 if allows_none else (own or 0) if num_fewshot is None else num_fewshot)


def answered_documents(tasks: Sequence["Task"], seed: int) -> Iterator[str]:
    """The documents of several tasks with their right answers, the tasks in turn; made as they are asked for.

    Each is what lm-eval would show to the model without examples, with the answer that it counts as right, and ends with what
    separates it from the next. Documents without a right answer, as of hidden test sets, are left out.

    Args:
        tasks: with their documents loaded.
        seed: of the order of the documents within a task.
    """
    rng = random.Random(seed)
    waiting = [_shuffled(task, rng.randrange(2**32)) for task in tasks]
    while waiting:
        for documents in list(waiting):
            text = next(documents, None)
            if text is None:
                waiting.remove(documents)
            else:
                yield text


def _shuffled(task: "Task", seed: int) -> Iterator[str]:
    documents = task.eval_docs
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    separator = task.get_config("fewshot_delimiter") or "\n\n"
    texts = (_with_answer(task, documents[index]) for index in order)
    return (text + separator for text in texts if text)


def _with_answer(task: "Task", document: Any) -> str:
    """A document with its right answer; empty where it has none."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return str(task.doc_to_target(document))
    context = task.fewshot_context(document, num_fewshot=0, gen_prefix=task.doc_to_prefix(document))
    if task.OUTPUT_TYPE == "multiple_choice":
        requests = task.construct_requests(doc=document, ctx=context, metadata=(task.task_name, 0, 1))
        right = _right_choice(task, document)
        return "".join(requests[right].args[:2]) if 0 <= right < len(task.doc_to_choice(document)) else ""
    answer = right_answer(task, document)
    delimiter = "" if task.OUTPUT_TYPE == "loglikelihood" else task.get_config("target_delimiter") or ""
    return f"{context}{delimiter}{answer}" if answer.strip() else ""


def right_answer(task: "Task", document: Any) -> str:
    """What a model should write, or the first of several right answers; empty where there is none.

    Args:
        task: whose answers are texts, not choices.
        document: one of its documents.
    """
    answer = task.doc_to_target(document)
    if isinstance(answer, int):
        answer = task.doc_to_choice(document)[answer]
    return str(next(iter(answer), "") if isinstance(answer, list) else answer)


def _right_choice(task: "Task", document: Any) -> int:
    """The index of the right choice, or of the first of several; -1 where there is none."""
    # Where the contexts differ between the choices and not what follows, lm-eval has the index in the place of the text.
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(right, list):
        right = next(iter(right), -1)
    choices = task.doc_to_choice(document)
    if isinstance(right, str):
        return choices.index(right) if right in choices else -1
    return int(right)
