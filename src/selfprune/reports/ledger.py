"""The ledger: what every proposer, and the language model above all, cost and gained."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from selfprune.allocations.candidate import Candidate
from selfprune.language_models.calls import Call

CHAMPIONS = "champions again"
"""Where the ledger counts the tokens of incumbents that were scored on further windows."""
N_COMMONEST = 5
"""Repairs and failures that are told apart."""


def count_by_proposer(candidates: Sequence[Candidate]) -> dict[str, dict[str, float]]:
    """Proposer -> how its candidates ended, what they cost, how often one became the incumbent, and what that gained.

    Champions that were scored again, on further windows, stand under a name of their own.
    """
    counts: dict[str, dict[str, float]] = {}
    for candidate in candidates:
        name = CHAMPIONS if candidate.is_champion_again else candidate.proposal.proposer
        ours = counts.setdefault(
            name, {"proposed": 0, "complete": 0, "stopped": 0, "failed": 0, "n_tokens": 0, "won": 0, "gain": 0.0}
        )
        ours["proposed"] += 1
        ours[candidate.state.value.lower()] += 1
        ours["n_tokens"] += candidate.n_tokens
        if candidate.gain is not None:
            ours["won"] += 1
            ours["gain"] += candidate.gain
    for ours in counts.values():
        ours["gain_per_million_tokens"] = 1e6 * ours["gain"] / ours["n_tokens"] if ours["n_tokens"] else 0.0
    return counts


def answered(calls: Sequence[Call], candidates: Iterable[Candidate]) -> list[tuple[Candidate, Call, int]]:
    """The candidates that were read from a reply, each with its call and the reply's place in it."""
    read = [(c, c.proposal.reply) for c in candidates if c.proposal.reply and not c.is_champion_again]
    known = {call["call"]: call for call in calls}
    return [(c, known[call], i) for c, (call, i) in read if call in known and i < len(known[call]["replies"])]


def count_by_search(
    calls: Sequence[Call], candidates: Sequence[Candidate], winners: Mapping[str, Candidate]
) -> dict[str, dict[str, Any]]:
    """Search -> what its calls cost, and what came of the replies; only searches that asked the language model.

    A call of which no proposal came counts for the search whose proposals come next, since it may have chosen their parents; but
    one that scored the options of the call before it belongs to that one.

    Args:
        calls: the recorded calls in their order.
        candidates: the whole archive.
        winners: search -> its winner.
    """
    read = answered(calls, candidates)
    search_of = {call["call"]: candidate.search for candidate, call, _ in read}
    search = search_of[max(search_of)] if search_of else "main"
    for before, call in pairwise(calls):
        if before["call"] in search_of and "options" in call and call["options"] == before.get("options"):
            search_of.setdefault(call["call"], search_of[before["call"]])
    calls_of: dict[str, list[Call]] = {}
    for call in reversed(calls):
        search = search_of.get(call["call"], search)
        calls_of.setdefault(search, []).append(call)
    born = {candidate.id: candidate for candidate in candidates}
    read_in = {search: [one for one in read if one[0].search == search] for search in calls_of}
    return {
        search: {
            **_costs(asked, read_in[search]),
            **_fates(read_in[search]),
            "has_winner": search in winners and _origin(winners[search], born).proposal.reply is not None,
        }
        for search, asked in reversed(calls_of.items())
    }


def without_text(failure: str, text: str) -> str:
    """A reason without the beginning of the reply that it may end with."""
    for cut in re.finditer(": ?", failure):
        if text.startswith(failure[cut.end() :]):
            return failure[: cut.start()]
    return failure


def _costs(calls: Sequence[Call], read: Sequence[tuple[Candidate, Call, int]]) -> dict[str, float]:
    """Calls, tokens, seconds and replies; a call that scores options gives as many replies as were chosen from it."""
    n_chosen = Counter(call["call"] for _, call, _ in read)
    n_replies = [n_chosen[call["call"]] if "options" in call else len(call["replies"]) for call in calls]
    return {
        "calls": len(calls),
        "prompt_tokens": sum(reply["n_prompt_tokens"] for call in calls for reply in call["replies"]),
        "reply_tokens": sum(reply["n_reply_tokens"] for call in calls for reply in call["replies"]),
        "seconds": round(sum(call["seconds"] for call in calls), 3),
        "replies": sum(n_replies),
    }


def _fates(read: Sequence[tuple[Candidate, Call, int]]) -> dict[str, Any]:
    """What became of the replies that proposals were read from, in all and for every operator."""
    ours = [candidate for candidate, _, _ in read]
    reasons = [
        without_text(c.proposal.failure, call["replies"][i]["text"]) for c, call, i in read if c.proposal.allocation is None
    ]
    counts, valid = _count(ours), [c for c in ours if c.proposal.allocation is not None]
    n_tokens = sum(c.n_tokens for c in ours)
    operators = dict.fromkeys(c.proposal.operator for c in ours)
    return {
        **counts,
        "n_tokens": n_tokens,
        "gain_per_thousand_tokens": 1e3 * counts["gain"] / n_tokens if n_tokens else 0.0,
        "repairs": _commonest(repair for c in valid for repair in c.proposal.repair.split("; ") if repair),
        "failures": _commonest(reasons),
        "operators": {
            name: {"replies": len(some), **_count(some)}
            for name in operators
            for some in [[c for c in ours if c.proposal.operator == name]]
        },
    }


def _count(candidates: Sequence[Candidate]) -> dict[str, float]:
    valid = [c for c in candidates if c.proposal.allocation is not None]
    gains = [c.gain for c in valid if c.gain is not None]
    return {
        "valid": len(valid),
        "repaired": sum(c.proposal.repair != "" for c in valid),
        "failed": len(candidates) - len(valid),
        "accepted": len(gains),
        "gain": sum(gains),
    }


def _commonest(reasons: Iterable[str]) -> dict[str, int]:
    """Reason -> how often; what differs from one reply to the next is left out, so that like counts with like."""
    alike = (re.sub(r"(?<!\w)'[^']*'|\"[^\"]*\"", "…", reason) for reason in reasons)
    return dict(Counter(re.sub(r"\b(candidate|got) -?\d\S*", r"\1 …", reason) for reason in alike).most_common(N_COMMONEST))


def _origin(candidate: Candidate, born: Mapping[int, Candidate]) -> Candidate:
    """The candidate that a champion was when it was proposed."""
    while candidate.is_champion_again and candidate.proposal.parents:
        candidate = born[candidate.proposal.parents[0]]
    return candidate
