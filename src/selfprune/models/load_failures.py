"""Tells why a library could not load a model, and which file is to blame."""

import logging
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TypeVar

import transformers
from huggingface_hub import constants
from transformers.utils.loading_report import log_state_dict_report

from selfprune.checkpoints.reader import INDEX, read_json
from selfprune.checkpoints.source import hub_is_reachable, open_source, out_of_cache_where_out_of_reach
from selfprune.errors import ModelError

Result = TypeVar("Result")


class Step(str, Enum):
    """What is done of loading a model, in the words of an error."""

    CONFIGURATION = "reading the configuration"
    ARCHITECTURE = "building the architecture"
    TOKENIZER = "reading the tokenizer"
    WEIGHTS = "reading the weights"
    DEVICE = "moving to the device"
    FILES = "finding the files"
    TRIAL = "a trial run"


JSON_FILES = {
    Step.CONFIGURATION: ("config.json",),
    Step.ARCHITECTURE: ("config.json",),
    Step.TOKENIZER: ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    Step.WEIGHTS: (INDEX, "generation_config.json"),
}
"""The files that a step reads, which should hold JSON objects."""
REMEDIES = {
    Step.CONFIGURATION: (
        f"transformers {transformers.__version__}, which is installed, does not understand {{folder}}/config.json: compare it "
        "with the one that the model's authors publish, or try another version"
    ),
    Step.ARCHITECTURE: (
        f"transformers {transformers.__version__}, which is installed, cannot build what {{folder}}/config.json describes: "
        "compare it with the one that the model's authors publish, or try another version"
    ),
    Step.TOKENIZER: (
        "{folder} should hold the files of a tokenizer, such as tokenizer.json and tokenizer_config.json; fetch them again"
    ),
    Step.WEIGHTS: (
        "{folder} should hold model.safetensors, or model.safetensors.index.json and its shards, and they should fit its "
        "config.json; fetch them again"
    ),
}


@contextmanager
def without_load_report() -> Iterator[None]:
    """While open, transformers does not log which tensors a checkpoint lacks or has too many of: our own words tell it.

    What it says of a load that fails is logged after all, since the error may refer to it.
    """
    reports: list[logging.LogRecord] = []
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        if record.funcName != log_state_dict_report.__name__:
            return True
        reports.append(record)
        return False

    logger.addFilter(is_other)
    try:
        yield
    except Exception:
        logger.removeFilter(is_other)
        for record in reports:
            logger.handle(record)
        raise
    finally:
        logger.removeFilter(is_other)


def attempt(path: str, folder: Path | None, step: Step, call: Callable[[], Result]) -> Result:
    """Runs a library call; whatever it raises becomes one paragraph that names a broken file, if there is one, and a remedy.

    Args:
        path: the model as the user named it.
        folder: its local folder; None for a hub id.
        step: what is done.
        call: does it.

    Raises:
        ModelError: when it fails.
    """
    try:
        with out_of_cache_where_out_of_reach() if folder is None else nullcontext():
            return call()
    except ModelError:
        raise
    except Exception as error:  # libraries raise anything here, from OSError to KeyError
        if folder is not None:
            _blame_file(folder, step)
            remedy = REMEDIES.get(step, "check that {folder} is a whole checkpoint of a causal language model")
            remedy = remedy.format(folder=folder)
        else:
            remedy = f"there is no such folder here, so it was taken for a hub id; {_hub_remedy()}"
        said = f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"
        raise ModelError(f"{step.value} of model.path={path} failed ({said}); {remedy}") from error


def _hub_remedy() -> str:
    """What to do about a model of the hub that cannot be read, by what is known of the hub."""
    elsewhere = "download it elsewhere and give model.path=<folder>"
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, and the cache holds no whole copy of it; {elsewhere}, or unset HF_HUB_OFFLINE"
    if not hub_is_reachable():
        return f"the hub does not answer, and the cache holds no whole copy of it; check the network, or {elsewhere}"
    return f"check its spelling and access rights, or {elsewhere}"


def _blame_file(folder: Path, step: Step) -> None:
    """Reads the files of a step one by one.

    Raises:
        ModelError: which names the first that is broken.
    """
    for name in JSON_FILES.get(step, ()):
        if (folder / name).exists():
            read_json(folder / name)
    if step is Step.WEIGHTS:
        open_source(folder)
