"""The append-only record of every candidate: one JSON line each, the same for the same seed, byte for byte.

`pandas.read_json(path, lines=True)` reads it in one call.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.errors import ConfigError
from selfprune.storage.journal import Journal, NothingElse
from selfprune.storage.recorded_files import Count, Score, Text, at_line, read_json_lines

IF_ANY = ("objectives", "reply", "repair")

REMEDY = "restore it from a copy, or resume the run without it, which writes it again"


class CandidateLine(TypedDict):
    """A line of the archive; what few candidates have is left out where it is empty."""

    allocation: dict[str, Count] | None
    proposer: Text
    operator: Text
    parents: list[Count]
    failure: Text
    proposal_tokens: Count
    reply: NotRequired[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    repair: NotRequired[Text]
    id: Count
    search: Text
    state: Literal["COMPLETE", "STOPPED", "FAILED"]
    score: Score | None
    n_windows: Count
    n_tokens: Count
    gain: Score | None
    reason: Text
    objectives: NotRequired[dict[str, Score]]


class Archive:
    """All candidates of a run, in the order of their ids.

    Args:
        path: the file `archive.jsonl`; candidates that it holds already are checked, not written again.

    Example:
        >>> archive = Archive(folder / "archive.jsonl")
        >>> archive.extend(candidates)
    """

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self.candidates: list[Candidate] = []

    def extend(self, candidates: Iterable[Candidate]) -> None:
        """Appends candidates, whose ids must go on where the archive ends."""
        for candidate in candidates:
            assert candidate.id == len(self.candidates)
            self._journal.once(to_record(candidate), dict, NothingElse)
            self.candidates.append(candidate)


def to_record(candidate: Candidate) -> dict[str, Any]:
    """A flat dictionary of JSON values; what few candidates have is left out where it is empty."""
    record = asdict(candidate)
    flat = {**record.pop("proposal"), **record, "state": candidate.state.value}
    return {name: value for name, value in flat.items() if value or name not in IF_ANY}


def from_record(record: CandidateLine) -> Candidate:
    """The candidate of one line."""
    reply = record.get("reply")
    proposal = Proposal(
        allocation=record["allocation"],
        proposer=record["proposer"],
        operator=record["operator"],
        parents=tuple(record["parents"]),
        failure=record["failure"],
        proposal_tokens=record["proposal_tokens"],
        reply=(reply[0], reply[1]) if reply else None,
        repair=record.get("repair", ""),
    )
    return Candidate(
        id=record["id"],
        search=record["search"],
        proposal=proposal,
        state=State(record["state"]),
        score=record["score"],
        n_windows=record["n_windows"],
        n_tokens=record["n_tokens"],
        gain=record["gain"],
        reason=record["reason"],
        objectives=record.get("objectives", {}),
    )


def read_archive(path: Path) -> list[Candidate]:
    """All candidates of an archive file, for reports and notebooks.

    Raises:
        ConfigError: when the file holds something else; the message names the line.
    """
    candidates = [from_record(line) for line in read_json_lines(path, CandidateLine, REMEDY)]
    for i, candidate in enumerate(candidates):
        if fault := _fault(candidate, i):
            raise ConfigError(f"{at_line(path, i)} cannot be read back: {fault}; {REMEDY}")
    return candidates


def _fault(candidate: Candidate, index: int) -> str:
    """What a line says that no search can have written; empty when there is nothing."""
    if candidate.id != index:
        return f"it should be candidate {index}, but its id is {candidate.id}"
    if any(parent >= index for parent in candidate.proposal.parents):
        return f"candidate {index} cannot come of {list(candidate.proposal.parents)}, since parents come first"
    if candidate.state is not State.FAILED and (candidate.proposal.allocation is None or candidate.score is None):
        return f"candidate {index} is {candidate.state.value}, but has no allocation or no score"
    return ""
