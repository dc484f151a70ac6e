"""The append-only record of every candidate: one JSON line each, the same for the same seed, byte for byte.

`pandas.read_json(path, lines=True)` reads it in one call.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfprune.candidate import Candidate, Proposal, State
from selfprune.journal import Journal

IF_ANY = ("objectives", "reply", "repair")


class Archive:
    """All candidates of a run, in the order of their ids.

    Args:
        path: the file `archive.jsonl`; candidates that it holds already are checked, not written again.

    Example:
        >>> archive = Archive(folder / "archive.jsonl")
        >>> archive.extend(candidates)
        >>> archive.of("main")
    """

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self.candidates: list[Candidate] = []

    def extend(self, candidates: Iterable[Candidate]) -> None:
        """Appends candidates, whose ids must go on where the archive ends."""
        for candidate in candidates:
            assert candidate.id == len(self.candidates)
            self._journal.once(to_record(candidate), dict)
            self.candidates.append(candidate)

    def of(self, search: str) -> list[Candidate]:
        """The candidates of one search."""
        return [candidate for candidate in self.candidates if candidate.search == search]


def to_record(candidate: Candidate) -> dict[str, Any]:
    """A flat dictionary of JSON values; what few candidates have is left out where it is empty."""
    record = asdict(candidate)
    flat = {**record.pop("proposal"), **record, "state": candidate.state.value}
    return {name: value for name, value in flat.items() if value or name not in IF_ANY}


def from_record(record: dict[str, Any]) -> Candidate:
    """The candidate of one line."""
    fields = dict(record)
    proposal = Proposal(
        allocation=fields.pop("allocation"),
        proposer=fields.pop("proposer"),
        operator=fields.pop("operator"),
        parents=tuple(fields.pop("parents")),
        failure=fields.pop("failure"),
        proposal_tokens=fields.pop("proposal_tokens"),
        reply=tuple(fields.pop("reply")) if "reply" in fields else None,
        repair=fields.pop("repair", ""),
    )
    return Candidate(proposal=proposal, **{**fields, "state": State(fields["state"])})


def read_archive(path: Path) -> list[Candidate]:
    """All candidates of an archive file, for reports and notebooks."""
    return [from_record(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
