"""The zeros of a checkpoint on disk as tables, as aligned text, or as plain values."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from selfprune.checkpoints.census import Census, Count, add
from selfprune.checkpoints.reader import Checkpoint
from selfprune.checkpoints.widths import block_widths, is_per_layer

HEADER = ("weights", "zeros", "sparsity", "N:M")


def to_json(checkpoint: Checkpoint, census: Census) -> dict[str, Any]:
    """The census as an object of plain values.

    Args:
        checkpoint: what was counted.
        census: its zeros.

    Returns:
        the keys `folder`, `export`, `widths`, `units`, `kinds`, `blocks`, `other`, `tied` and `total`.
    """
    places = [{"list": place.path, "block": place.block, "kind": place.kind} for place in census.units]
    units = [place | _plain(count) for place, count in zip(places, census.units.values(), strict=True)]
    units_total, other_total, total = _totals(census)
    return {
        "folder": str(checkpoint.folder),
        "export": "per-layer" if is_per_layer(checkpoint.config) else "plain",
        "widths": [asdict(width) for width in block_widths(checkpoint.config)],
        "units": units,
        "kinds": [_plain(count) for count in census.kinds()],
        "blocks": [_plain(count) for count in census.blocks()],
        "other": [_plain(count) for count in census.other],
        "tied": census.tied,
        "total": {"units": _plain(units_total), "other": _plain(other_total), "checkpoint": _plain(total)},
    }


def _plain(count: Count) -> dict[str, Any]:
    patterns = None if count.patterns is None else list(count.patterns)
    return {
        "name": count.name,
        "n_items": count.n_items,
        "n_zeros": count.n_zeros,
        "sparsity": count.sparsity,
        "patterns": patterns,
    }


def _totals(census: Census) -> tuple[Count, Count, Count]:
    units, other = add("units", census.units.values()), add("other weights", census.other)
    return units, other, add("whole checkpoint", [units, other])


def show(checkpoint: Checkpoint, census: Census) -> None:
    """Prints tables for a terminal, aligned text for a file or a pipe.

    Args:
        checkpoint: what was counted.
        census: its zeros.
    """
    folder, widths = checkpoint.folder, _width_table(checkpoint)
    counted = {
        "unit": list(census.units.values()),
        "type": census.kinds(),
        "block": census.blocks(),
        "other weights": census.other,
        "total": list(_totals(census)),
    }
    sections = [[(title, *HEADER), *map(_cells, counts)] for title, counts in counted.items() if counts]
    sections[-1:-1] = [widths] if widths else []
    tied = f"Counted once, since tied: {', '.join(census.tied)}" if census.tied else ""
    if not sys.stdout.isatty():
        lines = [line for section in sections for line in (*_align(section), "")]
        sys.stdout.write("\n".join([str(folder), "", *lines, *([tied] if tied else [])]).rstrip() + "\n")
        return
    console = Console()
    console.print(str(folder), highlight=False, markup=False)
    for (title, *header), *rows in sections:
        table = Table()
        table.add_column(title, overflow="fold")
        for name in header:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if tied:
        console.print(tied, highlight=False, markup=False)


def _cells(count: Count) -> tuple[str, ...]:
    patterns = "" if count.patterns is None else ", ".join(count.patterns) or "none"
    return count.name, f"{count.n_items:,}", f"{count.n_zeros:,}", f"{count.sparsity:.2%}", patterns


def _width_table(checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    """The widths of a model whose blocks were cut to different ones; a model of one width has it in its config.json."""
    if not is_per_layer(checkpoint.config):
        return []
    widths = block_widths(checkpoint.config)
    rows = [(str(w.block), f"{w.n_heads:,}", f"{w.n_kv_heads:,}", f"{w.n_channels:,}", f"{w.n_experts:,}") for w in widths]
    n_columns = 5 if any(width.n_experts for width in widths) else 4
    header = "block (loads with trust_remote_code=True)", "heads", "KV heads", "channels", "experts"
    return [row[:n_columns] for row in (header, *rows)]


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
