"""The page: the report's numbers, its pictures, and the exact command to repeat the run, in one file."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.io
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from selfprune.reports.checkpoint_sentences import checkpoint_lines
from selfprune.reports.conclusions import contest_sentence, cost_sentence, further_sentences
from selfprune.reports.markdown import dialogue_answer, ledger_sentence
from selfprune.reports.page.figures import Picture
from selfprune.reports.report_table import ledger_cells, table_cells

PAGES = Environment(loader=PackageLoader("selfprune.reports.page", "."), autoescape=True, trim_blocks=True)


def report_page(report: Mapping[str, Any], pictures: Sequence[Picture], command: str) -> str:
    """The report as HTML that needs nothing beside it.

    Args:
        report: `report.json`.
        pictures: in the order of the page.
        command: repeats the run.
    """
    header, rows = _with_size_and_speed(*table_cells(dict(report)), report)
    ledger_header, ledger_rows = ledger_cells(report["search"]["by_proposer"])
    sentences = [contest_sentence(report["search"]["winner"], report["search"]["finalists"])]
    sentences += [line for line in checkpoint_lines(report) if line] + further_sentences(report["rows"])
    sentences = [sentence.replace("`", "") for sentence in sentences]
    figures = ",".join(f'"{picture.key}":{plotly.io.to_json(_bare(picture), engine="json")}' for picture in pictures)
    return PAGES.get_template("page.html.jinja").render(
        title=f"selfprune: {report['budget']['sparsity']:.0%} of the {report['budget']['measure'].lower()} pruned",
        verdict=report["verdict"]["sentence"],
        warnings=report["warnings"],
        header=header,
        rows=rows,
        sentences=[*sentences, cost_sentence(report)],
        pictures=pictures,
        ledger_header=ledger_header,
        ledger_rows=ledger_rows,
        asked=_asked(report["language_model"]),
        command=command,
        environment=_surroundings(report),
        figures=f"{{{figures}}}".replace("</", "<\\/"),
        plotly=get_plotlyjs(),
        table=_table,
    )


def _with_size_and_speed(
    header: list[str], rows: list[list[str]], report: Mapping[str, Any]
) -> tuple[list[str], list[list[str]]]:
    """The comparison with what is known of the size and the speed of dense model and winner."""
    model, columns = report["model"], {}
    columns["parameters"] = {"dense": f"{model['dense_parameters']:,}", "winner": f"{model['parameters']:,}"}
    for speed in report["speed"]:
        seconds = {"dense": speed["dense_seconds"], "winner": speed["seconds"]}
        columns[f"tokens/s {speed['workload'].split()[0]}"] = {
            name: f"{speed['n_tokens'] / took:,.0f}" for name, took in seconds.items()
        }
    return [*header, *columns], [[*row, *(column.get(row[0], "") for column in columns.values())] for row in rows]


def _bare(picture: Picture) -> Any:
    """A figure without Plotly's template, whose colours are those of a light page."""
    figure = picture.figure
    figure.update_layout(template="none")
    return figure


def _table(key: str, header: Sequence[str], rows: Sequence[Sequence[str]], winner: str = "") -> Markup:
    """An HTML table; the row that begins with the winner's name stands out."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(title) for title in header)
    body = Markup("").join(
        Markup("<tr{}>{}</tr>").format(
            Markup(' class="winner"') if winner and row[0] == winner else "",
            Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row),
        )
        for row in rows
    )
    return Markup('<table id="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(key, head, body)


def _asked(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the language model did, in sentences and in dialogues."""
    dialogues = []
    for dialogue in record["dialogues"]:
        introduced, answer = dialogue_answer(dialogue)
        dialogues.append({**dialogue, "introduced": f"The language model {introduced}", "answer": answer})
    sentences = [ledger_sentence(search, totals) for search, totals in record["searches"].items()]
    return {"calls": record["calls"], "sentences": sentences, "dialogues": dialogues}


def _surroundings(report: Mapping[str, Any]) -> list[list[str]]:
    environment = report["environment"]
    packages = [[name, version] for name, version in environment["packages"].items() if version]
    splits = [[f"{split} split", digest] for split, digest in report["splits"].items()]
    # what is read back of it is checked, but for these, which earlier versions may lack
    machine = [[name, str(environment.get(name, ""))] for name in ("platform", "n_cpus", "n_threads", "gpus", "commit")]
    return [["python", environment["python"]], *machine, *packages, *splits]
