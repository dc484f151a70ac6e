"""Everything of a report that is drawn: the pictures of `report.md`, and the page."""

import shlex
from pathlib import Path
from typing import Any

from selfprune.allocations.pareto import comparable, nondominated
from selfprune.allocations.unit import Item
from selfprune.reports.insight.seen_moves import SeenMoves
from selfprune.reports.page.figures import allocation_picture, front_picture, progress_picture, width_picture
from selfprune.reports.page.layers import layers_picture
from selfprune.reports.page.moves import cost_picture, foretold_picture
from selfprune.reports.page.page import report_page
from selfprune.reports.pictures import front_figure, progress_figure, save_figure
from selfprune.reports.results import Results
from selfprune.reports.sparsity_picture import sparsity_figure
from selfprune.reports.width_picture import width_figure
from selfprune.storage.whole_files import write_whole

PAGE = "report.html"


def draw(folder: Path, results: Results, report: dict[str, Any], moves: dict[str, SeenMoves]) -> None:
    """Writes the pictures and the page: where the model is sparse, the searches over their tokens, and several objectives.

    Args:
        folder: of the run.
        results: what to draw.
        report: what `report.json` will hold.
        moves: what gradients said.

    Raises:
        SelfpruneError: when a file cannot be written.
    """
    winner, grid = results.winner.allocation, results.grid
    allocations = {"winner": winner, **results.yardsticks}
    main = [c for c in results.candidates if c.search == "main"]
    n_before = {"main": results.spent["main"].n_tokens - sum(c.n_tokens for c in main)}
    progress = results.candidates, n_before, results.score_title
    save_figure(sparsity_figure({**results.yardsticks, "winner": winner}, grid), folder / "sparsity.png")
    save_figure(progress_figure(*progress), folder / "progress.png")
    pictures = [allocation_picture(allocations, grid), progress_picture(*progress)]
    if any(unit.item is not Item.WEIGHT for unit in grid.units):
        save_figure(width_figure(winner, grid), folder / "widths.png")
        pictures.insert(1, width_picture(winner, grid))
    if field := comparable(main):
        save_figure(front_figure(field, nondominated(main), winner, results.score_title), folder / "pareto.png")
        pictures.append(front_picture(field, nondominated(main), winner))
    of_layers = [cost_picture(moves, winner, grid), foretold_picture(moves, main, grid), layers_picture(report["layers"])]
    pictures += [picture for picture in of_layers if picture]
    command = shlex.join(["python", "-m", "selfprune", *report["environment"]["overrides"]])
    write_whole(folder / PAGE, report_page(report, pictures, command))
