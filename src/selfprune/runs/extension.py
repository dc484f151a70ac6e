"""Raises the limits of a search that was begun: everything recorded stays, and the search goes on from where its limit ended.

A run is a list of stages, each with its limits. The first is that of its config; every extension appends one to
`extensions.jsonl`. A later process repeats them in their order: it takes every stage's search up to that stage's own limits, with
the proposers that the stage before left, so that all records are met again, and new ones follow.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from typing_extensions import TypedDict

from selfprune.errors import ConfigError
from selfprune.search.search_config import SearchConfig
from selfprune.storage.journal import Journal
from selfprune.storage.recorded_files import Count, Seconds

EXTENSIONS = "extensions.jsonl"


class Limits(TypedDict):
    """What a stage may spend in all; a line of the file."""

    max_tokens: Count
    max_candidates: Count | None
    max_seconds: Seconds | None


NAMES = tuple(Limits.__annotations__)


def asked_limits(composed: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """The limits that a command line gives beside `resume`.

    Args:
        composed: what Hydra composed of it.
        overrides: its config overrides.

    Raises:
        ConfigError: when it gives anything else.
    """
    asked: dict[str, Any] = {}
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        group, _, name = override.key_or_group.rpartition(".")
        if override.key_or_group == "resume":
            continue
        if group != "search" or name not in NAMES or override.is_delete():
            raise ConfigError(
                f"{text} cannot be given beside resume={composed.resume}, since a run goes on with the options that it was begun "
                f"with; only {', '.join(f'search.{each}' for each in NAMES)} may be given, to raise them; leave it out, or begin "
                "another run"
            )
        asked[name] = OmegaConf.select(composed, override.key_or_group)
    return asked


def open_stages(folder: Path, first: SearchConfig, asked: dict[str, Any]) -> list[SearchConfig]:
    """The search's config in every stage of a run, the last of which is still to be finished; records an extension.

    Args:
        folder: of the run.
        first: the config that the run was begun with.
        asked: from `asked_limits`.

    Raises:
        ConfigError: when a limit would be lowered, or the record of the extensions holds something else.
        SelfpruneError: when it cannot be written.
    """
    journal = Journal(folder / EXTENSIONS)
    stages = [first]
    for _ in range(journal.n_recorded):
        stages.append(replace(first, **journal.once({}, dict, Limits)))
    extended = replace(stages[-1], **asked)
    for name, limit in asked.items():
        before = getattr(stages[-1], name)
        if limit is not None and (before is None or limit < before):
            raise ConfigError(
                f"search.{name} of {folder} is {'without a limit' if before is None else before} and can only be raised, got "
                f"{limit}; what was spent stays spent"
            )
    if extended != stages[-1]:
        journal.once({}, lambda: {name: getattr(extended, name) for name in NAMES}, Limits)
        stages.append(extended)
    return stages


def extending_overrides(stages: Sequence[SearchConfig]) -> list[str]:
    """What the extensions of a run changed, as overrides, for who reads its options."""
    changed = {name: getattr(stages[-1], name) for name in NAMES if getattr(stages[-1], name) != getattr(stages[0], name)}
    return [f"search.{name}={'null' if limit is None else limit}" for name, limit in changed.items()]
