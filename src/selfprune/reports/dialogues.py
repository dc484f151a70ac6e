"""Sample dialogues with the language model, for a reader: the prompt, the reply, and what became of it."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from selfprune.allocations.candidate import Candidate, State, best
from selfprune.language_models.calls import Call
from selfprune.reports.ledger import answered, without_text

MAX_CHARACTERS = 800
"""What is shown of a reply."""
MAX_OPTIONS = 12
"""What is shown of the options that were scored."""
LINE_WIDTH = 100
MAX_PARSED_CHARACTERS = 4_000


def sample_dialogues(calls: Sequence[Call], candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """At most three dialogues of the first search that asked: a success, another one, and a failure, as far as there are any.

    Args:
        calls: the recorded calls.
        candidates: the whole archive.
    """
    read = answered(calls, candidates)
    found = {candidate.id: (call, i) for candidate, call, i in read}
    ours = [candidate for candidate, _, _ in read if candidate.search == read[0][0].search]
    born = {candidate.id: candidate for candidate in candidates}
    following = {before["call"]: after for before, after in pairwise(calls)}
    dialogues = []
    for why, candidate in choose(ours):
        call, position = found[candidate.id]
        said = _speakers(call, position, following.get(call["call"]))
        dialogues.append({"why": why, **said, **_fate(candidate, call["replies"][position]["text"], born)})
    return dialogues


def choose(candidates: Sequence[Candidate]) -> list[tuple[str, Candidate]]:
    """Why, and which: each of three wishes takes the first that no earlier one took.

    Args:
        candidates: those of one search that were read from replies.
    """
    accepted = [c for c in candidates if c.gain is not None]
    scored = [c for c in candidates if c.score is not None]
    gained = ("The accepted reply that gained most", sorted(accepted, key=lambda c: -(c.gain or 0.0)))
    last = ("The reply that was accepted last", accepted[::-1])
    ranked = best(list(candidates), len(candidates))
    failed = ("A reply that failed", [c for c in candidates if c.state is State.FAILED])
    repaired = ("A reply that had to be repaired", [c for c in candidates if c.proposal.repair])
    # Those that were dropped on the fewest windows did worst, whatever the scores of others on more windows.
    worst = ("The worst-scored reply", sorted(scored, key=lambda c: (c.n_windows, -(c.score or 0.0))))
    rest = ("Another reply", list(candidates))
    taken: dict[int, tuple[str, Candidate]] = {}
    wishes = (
        [gained, ("The best-scored reply", ranked), rest],
        [last, ("The best-scored of the other replies", ranked), rest],
        [failed, repaired, worst, rest],
    )
    for wish in wishes:
        free = ((why, c) for why, some in wish for c in some if c.id not in taken)
        if one := next(free, None):
            taken[one[1].id] = one
    return list(taken.values())


def laid_out(text: str) -> str:
    """A reply as it is shown: JSON on lines of its own, what is too long cut."""
    shown = text
    if len(text) <= MAX_PARSED_CHARACTERS:
        try:
            shown = _lay_out(json.loads(text))
        except (ValueError, RecursionError):
            shown = text
    return _cut(shown, MAX_CHARACTERS)


def _lay_out(value: Any, indent: str = "") -> str:
    """JSON that breaks only containers of containers, and only where a line is too long."""
    line = json.dumps(value, ensure_ascii=False)
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if len(indent) + len(line) <= LINE_WIDTH or not any(isinstance(one, dict | list) for one in inner):
        return line
    deeper = indent + "  "
    names = [f"{json.dumps(name, ensure_ascii=False)}: " for name in value] if isinstance(value, dict) else [""] * len(inner)
    parts = [f"{deeper}{name}{_lay_out(one, deeper)}" for name, one in zip(names, inner, strict=True)]
    return "\n".join([line[0], ",\n".join(parts), indent + line[-1]])


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more characters)"


def _speakers(call: Call, position: int, following: Call | None) -> dict[str, Any]:
    """Who said what: the prompt, and the reply or the likeliest options.

    Where the next call scores the same options without the facts, it counts how much likelier the facts made an option.
    """
    said = {"call": call["call"], "position": position, "n_replies": len(call["replies"]), "prompt": call["prompt"]}
    if "options" not in call:
        return {**said, "reply": laid_out(call["replies"][position]["text"])}
    logprobs = [reply["logprob"] for reply in call["replies"]]
    blanks: Sequence[float | None] = [None] * len(logprobs)
    if following and following.get("options") == call["options"] and len(following["replies"]) == len(logprobs):
        blanks = [reply["logprob"] for reply in following["replies"]]
    options = [
        {
            "text": _cut(reply["text"], LINE_WIDTH),
            "logprob": _finite(logprob),
            "rise": _finite(None if logprob is None or blank is None else logprob - blank),
            "is_chosen": i == position,
        }
        for i, (reply, logprob, blank) in enumerate(zip(call["replies"], logprobs, blanks, strict=True))
    ]
    return {**said, "options": sorted(options, key=_rank)[:MAX_OPTIONS]}


def _rank(option: Mapping[str, Any]) -> tuple[bool, bool, float]:
    """The chosen option first, then the likeliest."""
    likely = option["logprob"] if option["rise"] is None else option["rise"]
    return not option["is_chosen"], likely is None, -(likely or 0.0)


def _finite(number: float | None) -> float | None:
    """JSON has no word for infinities."""
    return number if number is not None and math.isfinite(number) else None


def _fate(candidate: Candidate, text: str, born: Mapping[int, Candidate]) -> dict[str, Any]:
    proposal = candidate.proposal
    return {
        "search": candidate.search,
        "candidate": candidate.id,
        "operator": proposal.operator,
        "repair": proposal.repair,
        "outcome": _outcome(candidate, born),
        "reason": without_text(candidate.reason, text),
        "score": candidate.score,
        "gain": candidate.gain,
    }


def _outcome(candidate: Candidate, born: Mapping[int, Candidate]) -> str:
    """What was made of the reply, and how that ended, in words that quote nobody."""
    if candidate.proposal.allocation is None:
        return f"No allocation came of it, so candidate {candidate.id} failed"
    made = f"It became candidate {candidate.id}{_change(candidate, born)}"
    if candidate.score is None:
        return f"{made}, which failed"
    scored = f"{made}. Score {candidate.score:.4g} on {candidate.n_windows} windows: "
    if candidate.state is State.STOPPED:
        return f"{scored}stopped"
    if candidate.gain is None:
        return f"{scored}raced to the end, but did not beat the incumbent"
    return f"{scored}accepted, and the score fell by {candidate.gain:.4g}"


def _change(candidate: Candidate, born: Mapping[int, Candidate]) -> str:
    """In how many units a candidate differs from its first parent."""
    parent = next((born[i] for i in candidate.proposal.parents if i in born), None)
    if parent is None or parent.proposal.allocation is None:
        return ""
    levels = [(level, parent.allocation.get(unit, level)) for unit, level in candidate.allocation.items()]
    n_more, n_less = sum(new > old for new, old in levels), sum(new < old for new, old in levels)
    return f", with {n_more} of {len(levels)} units pruned more and {n_less} less than in candidate {parent.id}"
