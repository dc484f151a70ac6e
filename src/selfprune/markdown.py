"""Pieces of the report's page."""

from collections.abc import Sequence
from typing import Any

from selfprune.candidate import Candidate


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def front_records(front: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Candidates with several objectives, as they stand in `report.json`."""
    return [{"id": c.id, "proposer": c.proposal.proposer, "score": c.score, "objectives": c.objectives} for c in front]


def front_lines(front: Sequence[dict[str, Any]]) -> list[str]:
    """The section on several objectives; nothing where there is one.

    Args:
        front: as of `front_records`.
    """
    if not front:
        return []
    names = list(front[0]["objectives"])
    rows = [
        [str(one["id"]), one["proposer"], f"{one['score']:.4g}", *(f"{one['objectives'][name]:.4g}" for name in names)]
        for one in front
    ]
    return [
        "## Several objectives",
        "",
        "Candidates of the highest rung that no other beats in one objective without losing in another: the mean score on each",
        "kind of search window, whose mean over all windows is the score, and seconds where the budget is a latency. Lower is",
        "better.",
        "",
        *table_lines(["candidate", "proposer", "score", *names], rows),
        "",
        "![The objectives against each other](pareto.png)",
        "",
    ]
