import csv
import io

from selfprune.reports.report_table import table_cells, table_csv, table_latex

ACC = {"acc": 0.5, "acc_stderr": 0.03, "primary": "acc", "higher_is_better": True, "is_accuracy": True}


def row(name, **changes):
    numbers = {"sparsity": 0.5, "saved": 0.25, "kl": 0.012345, "perplexity": 2.0, "tasks": {"selfprune_a_b_report": ACC}}
    return {"name": name, **numbers, "n_tokens": 1234, "seconds": 1.5, "language_model_tokens": 0, **changes}


def report(*rows, measure="WEIGHTS"):
    return {"rows": rows, "budget": {"measure": measure, "sparsity": 0.5}}


def test_a_row_of_an_earlier_version_with_a_task_without_an_error_is_shown():
    tasks = {"a": {"acc": 1.0, "acc_stderr": None}}
    dense = {"name": "dense", "sparsity": 0.0, "kl": -1e-9, "perplexity": 2.0, "tasks": tasks, "n_tokens": 0, "seconds": 0.0}
    _, cells = table_cells({"rows": [dense]})
    assert cells[0] == ["dense", "0.00%", "0.0000", "2.000", "100.0 ± –", "0", "0"]


def test_what_the_budget_measures_has_a_column_of_its_own_where_it_is_not_the_weights():
    assert table_cells(report(row("owl")))[0] == ["", "sparsity", "KL", "perplexity", "a_b acc", "tokens", "seconds"]
    for measure, title in {"FLOPS": "FLOPs saved", "PARAMETERS": "parameters saved", "LATENCY": "latency saved"}.items():
        header, (cells,) = table_cells(report(row("owl"), measure=measure))
        assert dict(zip(header, cells, strict=True))[title] == "25.00%"


def test_tokens_of_the_language_model_are_shown_where_it_was_asked():
    header, cells = table_cells(report(row("owl"), row("winner", language_model_tokens=4321)))
    assert header[-1] == "LM tokens"
    assert [line[-1] for line in cells] == ["0", "4,321"]


def test_the_csv_holds_all_digits_and_every_task():
    (line,) = csv.DictReader(io.StringIO(table_csv(report(row("winner", kl=0.0123456789)))))
    assert line == {
        "name": "winner", "sparsity": "0.5", "saved": "0.25", "kl": "0.0123456789", "perplexity": "2.0",
        "selfprune_a_b_report acc": "0.5", "selfprune_a_b_report acc stderr": "0.03", "n_tokens": "1234", "seconds": "1.5",
        "language_model_tokens": "0",
    }  # fmt: skip


def test_the_latex_table_is_of_booktabs_with_special_characters_escaped_and_the_winner_bold():
    assert table_latex(report(row("my_control"), row("winner"))).splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lrrrrrr}",
        r"\toprule",
        r" & sparsity & KL & perplexity & a\_b acc & tokens & seconds \\",
        r"\midrule",
        r"my\_control & 50.00\% & 0.0123 & 2.000 & 50.0 $\pm$ 3.0 & 1,234 & 2 \\",
        r"\textbf{winner} & \textbf{50.00\%} & \textbf{0.0123} & \textbf{2.000} & \textbf{50.0 $\pm$ 3.0} & \textbf{1,234} & "
        r"\textbf{2} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
