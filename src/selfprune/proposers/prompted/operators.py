"""What a language model is asked for: coefficients of whole allocations, edits of the incumbent, or a choice among moves.

Each operator is a prompt file, a grammar, and a way to read replies into sparsities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfprune.allocations.candidate import Candidate
from selfprune.allocations.unit import Allocation, Unit
from selfprune.proposers.coefficients import Coefficients, fit
from selfprune.proposers.prompted import moves
from selfprune.proposers.prompted.coefficient_replies import coefficients_schema, parse_coefficients, show_coefficients
from selfprune.proposers.prompted.moves import MAX_MOVE_PERCENT, MAX_MOVES, Move
from selfprune.proposers.prompted.prompts import fill
from selfprune.proposers.prompted.replies import ReplyError, object_schema, parse_json_object
from selfprune.proposers.prompted.unit_view import UnitView
from selfprune.proposers.unit_values import UnitValues

QUESTION = "Which moves lower the score most?"


@dataclass(frozen=True)
class PromptContext:
    """What is known when a language model is asked.

    Attributes:
        view: the units.
        here: the incumbent's allocation.
        here_id: its id; None as long as nothing was scored.
        score: its score.
        best: the best candidates so far, the best first.
        worth: what the units' weights are worth there, if known.
        history: how earlier moves fared, one line each.
        n_rows: rows of each table of units.
        n_options: moves to choose from.
        seed: of this call.
    """

    view: UnitView
    here: Allocation
    here_id: int | None = None
    score: float | None = None
    best: Sequence[Candidate] = ()
    worth: UnitValues | None = None
    history: Sequence[str] = ()
    n_rows: int = 6
    n_options: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """A prompt, and how its replies are read.

    Attributes:
        operator: its name.
        prompt: the text to continue.
        schema: the grammar of the replies.
        parents: ids of the candidates that the prompt shows.
        read: turns a reply into sparsities, and says what it had to mend; raises ReplyError.
        moves_of: turns a reply into moves, for operators that make moves.
        options: the replies to choose from, where the choice is the question.
    """

    operator: str
    prompt: str
    schema: dict[str, Any]
    parents: tuple[int, ...]
    read: Callable[[str, list[str]], dict[str, float]]
    moves_of: Callable[[str, list[str]], list[Move]] | None = None
    options: list[str] = field(default_factory=list)


def coefficients(context: PromptContext) -> Request:
    """A whole allocation in 2K + 3 numbers, from the sensitivities and the best so far."""
    view = context.view
    lines = [f"score {c.score:.4g}: {show_coefficients(view, fit(view, c.allocation))}" for c in reversed(context.best)]
    prompt = fill(
        "coefficients",
        n_blocks=len(view.blocks),
        last_block=len(view.blocks) - 1,
        target=_target(view),
        kinds="\n".join(view.kind_rows(context.worth)),
        blocks=view.block_sensitivities(context.worth),
        # Without an example, the uniform allocation at least shows the form.
        examples="\n".join(lines) or f"form: {show_coefficients(view, Coefficients())}",
    )
    schema = coefficients_schema([view.short[kind] for kind in view.kinds])

    def read(text: str, repairs: list[str]) -> dict[str, float]:
        return parse_coefficients(text, view.kinds, repairs).expand(view)

    return Request("coefficients", prompt, schema, tuple(c.id for c in context.best), read)


def edits(context: PromptContext) -> Request:
    """A few zero-sum moves between the units of the incumbent that the tables show; coefficients where nothing can move."""
    view = context.view
    sources, destinations = _tables(context)
    if not (sources and destinations):
        return coefficients(context)
    schema = moves.moves_schema([view.label(unit) for unit in sources], [view.label(unit) for unit in destinations])

    def moves_of(text: str, repairs: list[str]) -> list[Move]:
        return moves.parse_moves(text, view, repairs)

    prompt = fill("edits", **_described(context, sources, destinations), max_moves=MAX_MOVES, max_percent=MAX_MOVE_PERCENT)
    return _of_moves("edits", context, prompt, schema, moves_of)


def choice(context: PromptContext) -> Request:
    """One of several moves between the units that the tables show; coefficients where nothing can move."""
    view = context.view
    sources, destinations = _tables(context)
    found = moves.enumerate_moves(view, sources, destinations, context.n_options, context.seed)
    if not found:
        return coefficients(context)
    options = {moves.phrase(view, option): option for option in found}

    def moves_of(text: str, repairs: list[str]) -> list[Move]:
        chosen = text.strip()
        if chosen.startswith("{"):
            chosen = str(parse_json_object(text, ("choice",))["choice"])
        if chosen in options:
            return options[chosen]
        named = [phrase for phrase in options if phrase in text]
        if len(named) != 1:
            raise ReplyError("none of the moves to choose from" if not named else "more than one of the moves to choose from")
        repairs.append("words around the choice left out")
        return options[named[0]]

    prompt = fill("choice", **_described(context, sources, destinations), question=QUESTION)
    return _of_moves("choice", context, prompt, object_schema({"choice": {"enum": list(options)}}), moves_of, list(options))


OPERATORS: dict[str, Callable[[PromptContext], Request]] = {"coefficients": coefficients, "edits": edits, "choice": choice}


def _of_moves(
    operator: str,
    context: PromptContext,
    prompt: str,
    schema: dict[str, Any],
    moves_of: Callable[[str, list[str]], list[Move]],
    options: Sequence[str] = (),
) -> Request:
    def read(text: str, repairs: list[str]) -> dict[str, float]:
        return moves.apply(context.view, moves_of(text, repairs), context.here)

    parents = () if context.here_id is None else (context.here_id,)
    return Request(operator, prompt, schema, parents, read, moves_of, list(options))


def _tables(context: PromptContext) -> tuple[list[Unit], list[Unit]]:
    """The units that may be pruned less and those that may be pruned more; none is in both."""
    sources, destinations = context.view.promising(context.here, context.worth)
    n_rows = min(context.n_rows, max(1, len(context.view.space.grid.units) // 2))
    shown = sources[:n_rows]
    return shown, [unit for unit in destinations if unit not in shown][:n_rows]


def _described(context: PromptContext, sources: Sequence[Unit], destinations: Sequence[Unit]) -> dict[str, object]:
    view = context.view
    rows = [view.unit_rows(units, context.here, context.worth) for units in (sources, destinations)]
    return {
        "n_blocks": len(view.blocks),
        "target": _target(view),
        "score": "unknown" if context.score is None else f"{context.score:.4g}",
        "columns": ", gain of less, cost of more (0-99)" if context.worth else "",
        "sources": "\n".join(rows[0]),
        "destinations": "\n".join(rows[1]),
        "history": "".join(f"{line}\n" for line in context.history),
    }


def _target(view: UnitView) -> int:
    return round(100 * view.space.target_sparsity)
