"""The table of many runs on the standard output, in the form that is asked for."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from selfprune.configs.plain_command import PlainParser, exit_code
from selfprune.errors import ConfigError
from selfprune.reports.comparisons.comparison import WINNER, Comparison, compare
from selfprune.reports.comparisons.finished_runs import find_runs
from selfprune.reports.markdown import table_lines
from selfprune.reports.report_table import latex

ARGUMENTS = "FOLDER... [--rows NAME,NAME] [--against ROW] [--format table|markdown|latex|csv]"


def tell_comparison(name: str, arguments: Sequence[str]) -> int:
    """Prints the table of the runs that folders are or hold.

    Args:
        name: how the command is called.
        arguments: its command line.

    Returns:
        the exit code: 0, or 2 for a user's mistake.
    """
    return exit_code(lambda: _tell(name, arguments))


def _tell(name: str, arguments: Sequence[str]) -> None:
    parser = PlainParser(name, ARGUMENTS, "Finished runs in one table: means over seeds, plus or minus the standard deviation.")
    parser.add_argument("folders", type=Path, nargs="+", help="of runs or of sweeps")
    parser.add_argument("--rows", default="", help="rows of the reports, as in winner,uniform; all when left out")
    parser.add_argument(
        "--against",
        default="",
        help="a row whose KL is subtracted seed by seed, as in uniform, or winner,pruner=Wanda for that row of another group",
    )
    parser.add_argument("--format", default="table", choices=("table", "markdown", "latex", "csv"))
    parsed = parser.parse_args(arguments)
    comparison = compare(*find_runs(parsed.folders))
    against = comparison.chosen(parsed.against) if parsed.against else []
    wanted = parsed.rows.split(",") if parsed.rows else []
    there = dict.fromkeys(line.name for line in comparison.lines)
    if unknown := [row for row in wanted if row not in there]:
        raise ConfigError(f"--rows names {unknown[0]}, but the rows of these runs are {', '.join(there)}")
    kept = [i for i, line in enumerate(comparison.lines) if line.name in (wanted or there)]
    shown = Comparison(comparison.keys, [comparison.lines[i] for i in kept], comparison.notes)
    header, rows = shown.cells([against[i] for i in kept] if against else [])
    if parsed.format == "csv":
        sys.stdout.write(shown.csv())
    elif parsed.format == "markdown":
        sys.stdout.write("\n".join([*table_lines(header, rows), "", *shown.notes]).rstrip() + "\n")
    elif parsed.format == "latex":
        notes = "".join(f"% {note}\n" for note in shown.notes)
        bold = [line.name == WINNER and wanted != [WINNER] for line in shown.lines]
        sys.stdout.write(notes + latex(header, rows, bold, len(shown.keys) + 1))
    else:
        _print(header, rows, shown)


def _print(header: Sequence[str], rows: Sequence[Sequence[str]], comparison: Comparison) -> None:
    console, n_names = Console(), len(comparison.keys) + 1
    table = Table(title="Mean over seeds ± standard deviation")
    for i, column in enumerate(header):
        table.add_column(column, justify="left" if i < n_names else "right", no_wrap=True)
    for i, row in enumerate(rows):
        is_last = i + 1 == len(rows) or rows[i + 1][: n_names - 1] != row[: n_names - 1]
        table.add_row(*row, end_section=is_last)
    # lines that a narrow terminal breaks can still be read, cells that are broken cannot
    width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(width, console.width)).print(table, soft_wrap=True)
    for note in comparison.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
