"""Pieces of the report's page."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfprune.allocations.candidate import Candidate


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def warning_lines(warnings: Sequence[str]) -> list[str]:
    """The section on what makes the results doubtful; nothing where there is nothing."""
    return ["## Warnings", "", *(f"- {warning}" for warning in warnings), ""] if warnings else []


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


def plain(text: str) -> str:
    """A text without characters that a page or a terminal would not show: they are spelled out, line ends and tabs apart."""
    lines = text.replace("\r\n", "\n").expandtabs(4)
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in lines)


def fenced(text: str) -> list[str]:
    """A block that shows any text as it is."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return [f"{fence}text", plain(text) if text.strip() else "(empty)", fence]


def code_span(text: str) -> str:
    """Any text inside a line."""
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{' '.join(plain(text).split()) or '(empty)'}{pad}{fence}"


def _longest_run(text: str) -> int:
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def language_model_lines(record: Mapping[str, Any]) -> list[str]:
    """The section on what the language model did; nothing where it was not asked.

    Args:
        record: `language_model` of the report.
    """
    if not record["calls"]:
        return []
    searches, dialogues = record["searches"], record["dialogues"]
    counted = ["replies", "valid", "repaired", "failed", "accepted"]
    rows = [
        [search, name, *(f"{ours[column]:,}" for column in counted), f"{ours['gain']:.3g}"]
        for search, totals in searches.items()
        for name, ours in totals["operators"].items()
    ]
    mended = [(f"{n} × repaired", why) for totals in searches.values() for why, n in totals["repairs"].items()]
    failed = [(f"{n} × failed", why) for totals in searches.values() for why, n in totals["failures"].items()]
    return [
        "## What the language model did",
        "",
        *(line for search, totals in searches.items() for line in (ledger_sentence(search, totals), "")),
        *([*table_lines(["search", "operator", *counted, "gain"], rows), ""] if rows else []),
        *(f"- {what}: {code_span(why)}" for what, why in mended + failed),
        *([""] if mended or failed else []),
        *(["Samples follow; every prompt and reply stands in `language_model_calls.jsonl`.", ""] if dialogues else []),
        *(line for i in range(len(dialogues)) for line in _dialogue_lines(dialogues[i], dialogues[:i])),
    ]


def ledger_sentence(search: str, totals: Mapping[str, Any]) -> str:
    """What a search asked the language model, and what came of it."""
    read = totals["valid"] + totals["failed"]
    unread = totals["replies"] - read
    gained = (
        f"{totals['accepted']:,} became the incumbent and lowered the score by {totals['gain']:.3g} in all, which is "
        f"{totals['gain_per_thousand_tokens']:.3g} per thousand tokens that the evaluation of all of them took"
        if totals["accepted"]
        else "None became the incumbent"
    )
    rest = (
        f" The other {_number(unread, 'reply', 'replies')} chose parents, or led to the same question again."
        if unread > 0
        else ""
    )
    return (
        f"The {search} search called the language model {_number(totals['calls'], 'time')} "
        f"({totals['prompt_tokens']:,} prompt and {totals['reply_tokens']:,} reply tokens, {totals['seconds']:.1f} s). "
        f"{_number(read, 'reply was', 'replies were')} read as proposals: {totals['valid']:,} gave an allocation "
        f"({totals['repaired']:,} after a repair), {totals['failed']:,} failed. {gained}. "
        f"The winner {'came' if totals['has_winner'] else 'did not come'} from a reply.{rest}"
    )


def _dialogue_lines(dialogue: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> list[str]:
    """A dialogue as it can be read; a prompt that was shown is not repeated."""
    which = "option" if "options" in dialogue else "reply"
    where = f"call {dialogue['call']}, {which} {dialogue['position'] + 1} of {dialogue['n_replies']}"
    introduced, answer = dialogue_answer(dialogue)
    reason = f": {code_span(dialogue['reason'])}" if dialogue["reason"] else ""
    mended = f" Repaired: {code_span(dialogue['repair'])}." if dialogue["repair"] else ""
    return [
        f"### {dialogue['why']}",
        "",
        *(
            [f"Operator {code_span(dialogue['operator'])} ({where}) asked the same as above."]
            if any(dialogue["prompt"] == other["prompt"] for other in earlier)
            else [f"Operator {code_span(dialogue['operator'])} ({where}) asked:", "", *fenced(dialogue["prompt"])]
        ),
        "",
        f"The language model {introduced}",
        "",
        *fenced(answer),
        "",
        f"{dialogue['outcome']}{reason}.{mended}",
        "",
    ]


def dialogue_answer(dialogue: Mapping[str, Any]) -> tuple[str, str]:
    """How the answer of a dialogue is introduced, as the end of a sentence, and the answer as plain text."""
    if "options" in dialogue:
        introduced = "was read for the log-probabilities of these continuations; this candidate came of the one with the arrow:"
        return introduced, "\n".join(_option_lines(dialogue["options"]))
    return "answered:", dialogue["reply"]


def _option_lines(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of options in plain text: log-probability, its rise, and the text."""
    has_rise = any(option["rise"] is not None for option in options)
    lines = ["   log-prob" + "  rise over the bare question" * has_rise]
    for option in options:
        numbers = [option["logprob"], *([option["rise"]] if has_rise else [])]
        shown = "".join(f"{'unknown' if number is None else f'{number:.3f}':>9}" for number in numbers)
        lines.append(f"{'→' if option['is_chosen'] else ' '} {shown}   {' '.join(option['text'].split())}")
    return lines


def _number(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
