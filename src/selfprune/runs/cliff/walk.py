"""`selfprune cliff`: runs at few sparsities, each begun from the winner below it, until the edge of what is safe is known."""

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from selfprune.configs.plain_command import PlainParser, exit_code
from selfprune.errors import ConfigError
from selfprune.reports.insight.edge import Edge, Point, crossing, edge_sentence, find_edge
from selfprune.reports.insight.knee import Knee, find_knee, knee_sentence
from selfprune.reports.markdown import table_lines
from selfprune.reports.pictures import COLOURS, save_figure
from selfprune.runs.library.calls import search_allocation
from selfprune.runs.library.results import Run
from selfprune.storage.whole_files import write_whole

ARGUMENTS = "FOLDER [--max-kl KL] [--from SPARSITY] [--to SPARSITY] [--tolerance SHARE] [OPTION=VALUE ...]"
INNER = 0.2
"""The next point lies at least this share of the way from both ends of what is still open."""
Search = Callable[[float, Run | None], Run]
"""Runs at a sparsity, begun from the winner of another run."""


def tell_cliff(name: str, arguments: Sequence[str]) -> int:
    """Runs what is needed, and prints the answer; `cliff.md`, `cliff.png` and `cliff.json` hold it.

    Args:
        name: how the command is called.
        arguments: its command line.

    Returns:
        the exit code: 0, or 2 for a user's mistake.
    """
    return exit_code(lambda: _tell(name, arguments))


def walk(search: Search, low: float, high: float, tolerance: float, max_kl: float) -> list[Point]:
    """Measured points by rising sparsity: both ends, and more between the last safe point and the first that is not.

    Args:
        search: makes the runs.
        low: the lowest sparsity.
        high: the highest.
        tolerance: how near the two may lie when it ends.
        max_kl: what is safe, in nats per token.
    """
    runs: dict[float, tuple[Point, Run]] = {}

    def measure(sparsity: float) -> Point:
        below = [at for at in runs if at < sparsity]
        run = search(sparsity, runs[max(below)][1] if below else None)
        runs[sparsity] = Point.of(sparsity, run.rows, run.window_kl()["winner"]), run
        return runs[sparsity][0]

    if measure(low).is_safe(max_kl) and not measure(high).is_safe(max_kl):
        while True:
            points = [runs[at][0] for at in sorted(runs)]
            above = next(point for point in points if not point.is_safe(max_kl))
            below = points[points.index(above) - 1]
            width = above.sparsity - below.sparsity
            if width <= tolerance + 1e-9:
                break
            # where a task decides, the KL tells nothing of the place
            middle = (below.sparsity + above.sparsity) / 2
            by_kl = above.kl > max_kl
            guess = crossing(below.sparsity, below.kl, above.sparsity, above.kl, max_kl) if by_kl else middle
            guess = min(max(guess, below.sparsity + INNER * width), above.sparsity - INNER * width)
            at = round(guess, 3)
            if at in runs:
                break
            measure(at)
    return [runs[at][0] for at in sorted(runs)]


def _tell(name: str, arguments: Sequence[str]) -> None:
    parser = PlainParser(name, ARGUMENTS, "The highest sparsity that is safe, from few runs.")
    parser.add_argument("folder", type=Path, help="for the runs and the answer; given again, it goes on")
    parser.add_argument("--max-kl", type=float, default=0.05, help="report KL that is still safe, in nats per token")
    parser.add_argument("--from", dest="low", type=float, default=0.3, help="the lowest sparsity that is tried")
    parser.add_argument("--to", dest="high", type=float, default=0.9, help="the highest")
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="how near the last safe sparsity and the first unsafe one lie"
    )
    parser.add_argument("options", nargs="*", help="of the runs, as on the command line of selfprune")
    parsed = parser.parse_intermixed_args(arguments)
    _check(parsed.low, parsed.high, parsed.tolerance, parsed.max_kl, parsed.options)
    parsed.folder.mkdir(parents=True, exist_ok=True)

    def search(sparsity: float, before: Run | None) -> Run:
        sys.stderr.write(f"at {sparsity:.1%}\n")
        warm = [] if before is None else ["+proposer@yardsticks.below=stored", f"yardsticks.below.run_folder='{before.folder}'"]
        place = parsed.folder.resolve() / f"at_{sparsity:g}"
        with contextlib.redirect_stdout(io.StringIO()):  # every run's own table
            found = search_allocation(sparsity=sparsity, options=[*parsed.options, *warm], folder=place, quiet=False)
        sys.stderr.write(f"at {sparsity:.1%}: KL {found.rows['winner']['kl']:.4g}\n")
        return found

    points = walk(search, parsed.low, parsed.high, parsed.tolerance, parsed.max_kl)
    edge, knee = find_edge(points, parsed.max_kl), find_knee(points)
    told = " ".join([edge_sentence(edge, points, parsed.max_kl), *([knee_sentence(knee)] if knee else [])])
    _write(parsed.folder, points, edge, knee, parsed.max_kl, told)
    sys.stdout.write(f"{told}\n{parsed.folder / 'cliff.md'}\n")


def _check(low: float, high: float, tolerance: float, max_kl: float, options: Sequence[str]) -> None:
    if not 0 < low < high < 1:
        raise ConfigError(f"--from and --to must be sparsities with 0 < from < to < 1, got {low:g} and {high:g}")
    if not 0 < tolerance < 1:
        raise ConfigError(f"--tolerance must lie between 0 and 1, got {tolerance:g}; 0.05 is a good value")
    if not (max_kl > 0 and math.isfinite(max_kl)):
        raise ConfigError(f"--max-kl must be above 0, in nats per token, got {max_kl:g}; 0.05 is a good value")
    taken = [option for option in options if option.lstrip("+").split("=")[0] in ("budget.sparsity", "run_folder", "resume")]
    if taken:
        raise ConfigError(f"cliff chooses the sparsities and folders of its runs itself, but was given {taken[0]}; leave it out")


def _write(folder: Path, points: Sequence[Point], edge: Edge, knee: Knee | None, max_kl: float, told: str) -> None:
    """The answer as a page, a picture, and for machines."""
    rows = [
        [
            f"{point.sparsity:.1%}",
            f"{point.kl:.4g}",
            "" if point.uniform_kl is None else f"{point.uniform_kl:.4g}",
            f"{point.perplexity:.4g}",
            "; ".join(f"{task} by {drop:.1f} standard errors" for task, drop in point.worse_tasks.items()),
            "yes" if point.is_safe(max_kl) else "no",
        ]
        for point in points
    ]
    header = ["sparsity", "KL", "KL of uniform", "perplexity", "tasks that are worse", "safe"]
    lines = ["# How far this model can be pruned", "", told, "", *table_lines(header, rows), ""]
    lines += ["KL to the dense model in nats per token and perplexity are the winner's on the report split.", ""]
    lines += ["![KL over sparsity](cliff.png)", ""]
    save_figure(_figure(points, edge, knee, max_kl), folder / "cliff.png")
    measured = [asdict(point) | {"kl": point.kl} for point in points]
    record = {"max_kl": max_kl, "edge": asdict(edge), "knee": asdict(knee) if knee else None, "points": measured}
    write_whole(folder / "cliff.json", json.dumps(record, indent=2) + "\n")
    write_whole(folder / "cliff.md", "\n".join(lines))


def _figure(points: Sequence[Point], edge: Edge, knee: Knee | None, max_kl: float) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    at = [100 * point.sparsity for point in points]
    axes.plot(at, [max(point.kl, 1e-6) for point in points], "o-", color=COLOURS[0], label="winner of the search")
    uniform = [(100 * point.sparsity, point.uniform_kl) for point in points if point.uniform_kl]
    if uniform:
        axes.plot(*zip(*uniform, strict=True), "s--", color=COLOURS[1], label="uniform")
    axes.axhline(max_kl, linestyle=":", color="black", label=f"safe up to {max_kl:g}")
    if edge.sparsity is not None and not edge.is_open:
        axes.axvspan(100 * edge.low, 100 * edge.high, color=COLOURS[2], alpha=0.25, label="95% interval of the edge")
        axes.axvline(100 * edge.sparsity, color=COLOURS[2])
    if knee:
        axes.axvline(100 * knee.sparsity, color=COLOURS[3], linestyle="--", label="knee")
    axes.set(xlabel="sparsity (% of the budget's measure)", ylabel="report KL (nats per token)", yscale="log")
    axes.legend()
    return figure
