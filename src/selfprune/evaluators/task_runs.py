"""Runs lm-eval tasks on a model and leaves no trace on the model, the tokenizer, the random generators and the terminal."""

import contextlib
import copy
import io
import logging
import math
import random
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from selfprune.errors import DataError
from selfprune.evaluators.task_memory import n_written

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

N_BOOTSTRAPS = 1000
"""Only for metrics that are not means; the standard error of a mean, such as `acc`, is a formula. lm-eval has none at 0."""


def run_tasks(
    tasks: dict[str, Any],
    groups: dict[str, Any],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch_size: int,
    limit: int | None,
) -> dict[str, Any]:
    """What lm-eval's `evaluate` returns for tasks and the groups of them.

    Args:
        tasks: name -> task.
        groups: name -> group of these tasks.
        model: a causal language model.
        tokenizer: its tokenizer.
        batch_size: requests per forward pass.
        limit: documents per task; None for all.
    """
    from lm_eval.evaluator import evaluate

    from selfprune.evaluators.scored_tokens import ScoredTokensLM

    was_training = model.training
    try:
        with undisturbed():
            # A copy, because lm-eval adds a padding token. In bf16, choices would tie, and lm-eval gives ties to the first.
            lm = ScoredTokensLM(model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, softmax_dtype="float32")
            task_dict = {"tasks": tasks, "groups": groups}
            return dict(evaluate(lm, task_dict, limit=limit, bootstrap_iters=N_BOOTSTRAPS, log_samples=False))
    finally:
        model.train(was_training)


def is_broken(task: "Task") -> bool:
    """Whether a log-likelihood is NaN, which lm-eval would count as a vote for the first choice."""
    answers = chain.from_iterable(instance.resps for instance in task.instances)
    numbers = (answer[0] if isinstance(answer, tuple) else answer for answer in answers)
    return any(isinstance(number, float) and math.isnan(number) for number in numbers)


def request_lengths(task: "Task", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens of context and choice of every request.

    Args:
        task: with its requests.
        tokenizer: the model's.
    """
    texts = ["".join(part for part in instance.args if isinstance(part, str)) for instance in task.instances]
    return [len(tokens) for tokens in tokenizer(texts, verbose=False)["input_ids"]]


def count_cut_prompts(task: "Task", lengths: Sequence[int], n_positions: int) -> int:
    """How many requests lose their beginning because they do not fit; whole texts do not, as lm-eval scores them part by part.

    Args:
        task: with its requests.
        lengths: of these requests.
        n_positions: of the model.

    Raises:
        DataError: when the answers that the model is to write do not fit alone.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return 0
    if task.OUTPUT_TYPE != "generate_until":
        return sum(length > n_positions + 1 for length in lengths)
    written = n_written(task)
    if max(written) >= n_positions:
        raise DataError(
            f"the lm-eval task {task.task_name!r} lets the model write {max(written):,} tokens (max_gen_toks of its "
            f"generation_kwargs), which must be less than the model's {n_positions:,} positions; leave it out of harness.tasks "
            "and harness.search_tasks"
        )
    return sum(length > n_positions - n for length, n in zip(lengths, written, strict=True))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
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
