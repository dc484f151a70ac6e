"""Runs side by side, on reports whose every number is known."""

import csv
import io
import json
import os
import statistics

import pytest
import yaml
from scipy import stats

from selfprune.compare import main
from selfprune.errors import ConfigError
from selfprune.reports.comparisons.comparison import compare
from selfprune.reports.comparisons.finished_runs import find_runs

ENVIRONMENT = {"overrides": [], "python": "3.11", "packages": {}}
KLS = {
    ("Wanda", 0.5): (0.2, 0.3, 0.1),
    ("Wanda", 0.7): (0.9, 1.1, 1.0),
    ("RIA", 0.5): (0.25, 0.3, 0.05),
    ("RIA", 0.7): (0.8, 0.9, 0.9),
}


def row(name, kl, **changes):
    numbers = {"sparsity": 0.0 if name == "dense" else 0.5, "saved": 0.0, "kl": kl, "perplexity": 3 + kl, "tasks": {}}
    return {"name": name, **numbers, "n_tokens": 1000, "seconds": 2.0, "language_model_tokens": 0, **changes}


def write_run(folder, kl, pruner="Wanda", sparsity=0.5, seed=0, split="a" * 64, **config):
    folder.mkdir(parents=True)
    options = {"exponent": 1.0} if pruner == "Wanda" else {"alpha": 0.5, "exponent": 2.0}
    content = {"seed": seed, "budget": {"sparsity": sparsity}, "pruner": options, "methods": {"pruner": pruner}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    report = {
        "rows": [row("dense", 1e-9), row("uniform", 2 * kl + 0.01 * seed), row("winner", kl)],
        "search": {"winner": {"id": 3}},
        "environment": ENVIRONMENT,
        "splits": {"report": split},
        "model": {"parameters": 90, "dense_parameters": 100, "bytes": 360},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def sweep(tmp_path):
    for (pruner, sparsity), kls in KLS.items():
        for seed, kl in enumerate(kls):
            write_run(tmp_path / "sweep" / f"{pruner}_{sparsity}_{seed}", kl, pruner, sparsity, seed)
    return tmp_path / "sweep"


@pytest.fixture
def told(capsys):
    def give(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return give


def test_groups_differ_by_more_than_the_seed_and_options_of_other_methods_tell_nothing(sweep):
    comparison = compare(*find_runs([sweep]))
    assert comparison.keys == ["pruner", "budget.sparsity"]
    assert comparison.notes == []
    lines = {(*line.group, line.name): line for line in comparison.lines}
    assert list(lines) == [
        ("", "", "dense"),
        *(
            (pruner, sparsity, name)
            for pruner in ("RIA", "Wanda")
            for sparsity in ("0.5", "0.7")
            for name in ("uniform", "winner")
        ),
    ]
    for (pruner, sparsity), kls in KLS.items():
        assert lines[pruner, str(sparsity), "winner"].values("KL") == list(kls)
    header, cells = comparison.cells()
    assert header == ["pruner", "budget.sparsity", "", "seeds", "sparsity", "KL", "perplexity", "tokens", "seconds", "parameters"]
    cell = dict(zip(header, cells[-1], strict=True))
    assert cell["KL"] == f"{statistics.fmean(KLS['Wanda', 0.7]):.4g} ± {statistics.stdev(KLS['Wanda', 0.7]):.2g}"
    assert (cell["seeds"], cell["tokens"], cell["parameters"]) == ("3", "1,000", "90")
    assert dict(zip(header, cells[0], strict=True))["KL"] == "0"


def test_an_option_by_which_runs_of_one_method_differ_is_shown(tmp_path):
    for exponent in (1.0, 3.0):
        write_run(tmp_path / f"w{exponent}", 0.1)
        config = yaml.safe_load((tmp_path / f"w{exponent}/config.yaml").read_text())
        config["pruner"]["exponent"] = exponent
        (tmp_path / f"w{exponent}/config.yaml").write_text(yaml.safe_dump(config))
    write_run(tmp_path / "ria", 0.2, "RIA")
    assert compare(*find_runs([tmp_path])).keys == ["pruner", "pruner.exponent"]


def test_differences_are_paired_by_the_seed(sweep):
    comparison = compare(*find_runs([sweep]))
    header, cells = comparison.cells(comparison.chosen("uniform"))
    found = {tuple(row[:3]): row[-1] for row in cells}
    assert header[-1] == "KL less chosen"
    differences = [kl - (2 * kl + 0.01 * seed) for seed, kl in enumerate(KLS["Wanda", 0.7])]
    test = stats.ttest_1samp(differences, 0).confidence_interval()
    half = (test.high - test.low) / 2
    assert found["Wanda", "0.7", "winner"] == f"{statistics.fmean(differences):+.4f} ± {half:.2g}"
    assert found["Wanda", "0.7", "uniform"] == found["", "", "dense"] == ""
    _, cells = comparison.cells(comparison.chosen("winner,pruner=Wanda"))
    found = {tuple(row[:3]): row[-1] for row in cells}
    across = [ria - wanda for ria, wanda in zip(KLS["RIA", 0.5], KLS["Wanda", 0.5], strict=True)]
    assert found["RIA", "0.5", "winner"].startswith(f"{statistics.fmean(across):+.4f} ± ")
    assert found["Wanda", "0.5", "winner"] == ""


def test_it_is_told_how_far_allocations_move_between_seeds(tmp_path, told):
    found = [{"up": 0.5, "down": 0.3}, {"up": 0.6, "down": 0.2}, {"up": 0.5, "down": 0.5}]
    for seed, sparsities in enumerate(found):
        report = write_run(tmp_path / str(seed), 0.1, seed=seed) / "report.json"
        content = json.loads(report.read_text())
        content["search"]["winner"]["sparsities"] = sparsities
        report.write_text(json.dumps(content))
    lines = compare(*find_runs([tmp_path])).lines
    # 0.1 and 0.1 between the first two, 0 and 0.2, 0.1 and 0.3
    assert {line.name: line.moved() for line in lines} == {"dense": None, "uniform": None, "winner": pytest.approx(0.8 / 6)}
    _, table, _ = told(tmp_path, "--format", "markdown")
    assert "| unit sparsity between seeds |" in table.replace("\n", " ")
    assert "| 13.33% |" in table


def test_one_seed_has_no_spread_and_a_later_run_of_one_config_takes_the_place_of_an_earlier(tmp_path):
    write_run(tmp_path / "a", 0.1)
    os.utime(write_run(tmp_path / "b", 0.3) / "report.json", (1, 1))
    comparison = compare(*find_runs([tmp_path]))
    header, cells = comparison.cells(comparison.chosen("uniform"))
    assert comparison.keys == []
    assert [dict(zip(header, row, strict=True))["KL"] for row in cells] == ["0", "0.2", "0.1"]
    assert cells[-1][-1] == "-0.1000"


def test_runs_of_other_report_splits_are_never_averaged_and_it_is_said(tmp_path):
    write_run(tmp_path / "a", 0.1)
    write_run(tmp_path / "b", 0.3, seed=1, split="b" * 64)
    comparison = compare(*find_runs([tmp_path]))
    assert comparison.keys == ["report split"]
    winners = [line for line in comparison.lines if line.name == "winner"]
    assert [line.values("KL") for line in winners] == [[0.1], [0.3]]
    assert comparison.notes == [
        "The runs were measured on 2 different report splits, aaaaaaaa (1 runs), bbbbbbbb (1 runs): compare only lines of one."
    ]


def test_every_form_of_the_table_is_printed(sweep, told):
    code, out, _ = told(sweep, "--rows", "winner", "--format", "markdown")
    assert code == 0
    assert out.splitlines()[2].startswith("| RIA | 0.5 | winner | 3 | 50.00% | 0.2 ± 0.13 | ")
    assert len(out.splitlines()) == 2 + len(KLS)
    _, out, _ = told(sweep, "--against", "uniform", "--format", "latex")
    assert r"\textbf{Wanda} & \textbf{0.7} & \textbf{winner} & \textbf{3} & \textbf{50.00\%} & \textbf{1 $\pm$ 0.1}" in out
    _, out, _ = told(sweep, "--rows", "winner", "--format", "csv")
    read = list(csv.DictReader(io.StringIO(out)))
    assert len(read) == sum(map(len, KLS.values()))
    assert {(line["pruner"], float(line["budget.sparsity"]), int(line["seed"])): float(line["KL"]) for line in read} == {
        (*key, seed): kl for key, kls in KLS.items() for seed, kl in enumerate(kls)
    }
    _, out, _ = told(sweep, "--rows", "dense,winner")
    assert out.count("winner") == len(KLS)
    assert out.count("dense") == 1


def test_unfinished_runs_are_left_out_and_named(sweep, told):
    (sweep / "RIA_0.5_0/report.json").unlink()
    _, out, _ = told(sweep)
    assert f"1 runs are not finished and left out: {sweep / 'RIA_0.5_0'}" in out.replace("\n", "")


def test_wrong_arguments_are_told(sweep, tmp_path, told):
    (tmp_path / "empty").mkdir()
    begun = tmp_path / "begun/run"
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text("seed: 0\n")
    for arguments, said in {
        (): "the following arguments are required: folders; write selfprune compare FOLDER...",
        (tmp_path / "nowhere",): "nowhere is no folder; give the folders of runs or of sweeps",
        (tmp_path / "empty",): "empty holds no run",
        (tmp_path / "begun",): "none of the 1 runs is finished",
        (sweep, "--rows", "best"): "--rows names best, but the rows of these runs are dense, uniform, winner",
        (
            sweep,
            "--against",
            "best",
        ): "--against best names no row for pruner=RIA, budget.sparsity=0.5; the rows are dense",
        (sweep, "--against", "winner,seed=1"): "--against names seed, but the runs differ by pruner, budget.sparsity",
        (sweep, "--against", "winner,pruner=Magic"): "names no row for pruner=Magic, budget.sparsity=0.5",
        (sweep, "--format", "word"): "invalid choice: 'word'",
    }.items():
        code, _, err = told(*arguments)
        assert code == 2, arguments
        assert said in err, err
    (sweep / "RIA_0.5_0/report.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read back"):
        find_runs([sweep])


def test_what_a_method_brings_along_and_what_has_rows_of_its_own_tell_nothing(tmp_path):
    portfolio = {"pruner": "Wanda", "proposer": "Portfolio", "proposer.arms.gradient": "Gradient", "yardsticks.owl": "OWL"}
    evopress = {"pruner": "Wanda", "proposer": "EvoPress"}
    write_run(tmp_path / "a", 0.1, methods=portfolio, yardsticks={"owl": {"m": 5}})
    write_run(tmp_path / "b", 0.1, methods=evopress, proposer={"max_swaps": 3})
    assert compare(*find_runs([tmp_path])).keys == ["proposer"]
    write_run(tmp_path / "c", 0.1, methods=portfolio, yardsticks={"owl": {"m": 7}})
    assert compare(*find_runs([tmp_path])).keys == ["proposer", "yardsticks.owl.m"]
    write_run(tmp_path / "d", 0.1, methods=portfolio | {"proposer.arms.random": "Random"}, yardsticks={"owl": {"m": 7}})
    assert compare(*find_runs([tmp_path])).keys == ["proposer", "proposer.arms.random", "yardsticks.owl.m"]
