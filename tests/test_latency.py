"""`python -m selfprune.latency`: what the table holds, that the budget reads it, and wrong input. No time is asserted."""

import json
import math
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import selfprune.latency
from selfprune.allocations.budget import Budget, Measure
from selfprune.allocations.latency_table import LatencyTable
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.errors import ConfigError
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.models.units import list_units
from selfprune.storage.lock import held_file
from selfprune.timing.machine import machine_name
from selfprune.timing.unit_seconds import Shape, check_latency_table, fastest_rows, unit_shapes

FAST = ["sparsities=[0.9,0.5]", "n_repeats=1", "n_tokens=8", "model.device=cpu"]


@pytest.fixture
def latency(monkeypatch, capsys, tmp_path, tiny_model_folder):
    """Runs the command in this process and in an empty folder, for a tiny model; returns exit code, output and errors."""

    def call(*overrides, family="llama"):
        folder = tiny_model_folder(family)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["selfprune.latency", f"model.path={folder}", *overrides])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        capsys.readouterr()
        code = selfprune.latency.main()
        GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_measured_table_is_one_that_a_budget_reads(family, latency, make_tiny_model, tmp_path):
    code, out, err = latency("output=table.json", *FAST, family=family)
    assert (code, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    table = json.loads((tmp_path / "table.json").read_text())
    units = list_units(make_tiny_model(family))
    kinds = list(dict.fromkeys(unit.kind for unit in units))
    assert list(table["seconds"]) == list(table["kernels"]) == kinds
    for kind in kinds:
        assert [sparsity for sparsity, _ in table["seconds"][kind]] == [0, 0.5, 0.9]
        assert all(0 < seconds < math.inf for _, seconds in table["seconds"][kind])
        assert table["kernels"][kind][0] == [0, "dense"]
        assert {kernel for _, kernel in table["kernels"][kind]} <= {"dense", "csr"}
    about = table["measured"]
    assert (about["device"], about["dtype"], about["n_tokens"], about["pattern"]) == ("cpu", "float32", 8, "")
    read = LatencyTable.read(tmp_path / "table.json")
    read.check(units)
    assert read.measured["machine"] == machine_name(torch.device("cpu"))
    assert {name: shape[:2] for name, shape in read.measured["shapes"].items()} == {
        name: [shape.n_out, shape.n_in] for name, shape in unit_shapes(make_tiny_model(family), units, 8).items()
    }
    grid = LevelGrid.with_constant_step(units, 0.05)
    target = Target.of(Budget(0.0, Measure.LATENCY, str(tmp_path / "table.json")), grid, 0, lambda unit: 1 / 0)
    assert target.is_met(dict.fromkeys(target.levels, 0))
    header, *rows = out.rstrip().splitlines()[:-2]
    assert header.split() == ["ms", "at", "sparsity", "0", "0.5", "0.9"]
    assert [row.split()[0] for row in rows] == kinds
    assert out.endswith(f"\n\n{tmp_path / 'table.json'}\n")


def test_no_kernel_counts_that_is_slower_than_the_dense_one():
    shape = Shape(n_out=64, n_in=64, n_matrices=2.5, n_tokens=4)
    rows = fastest_rows(shape, [0.9, 0.5, 0.5], "", torch.float32, torch.device("cpu"), n_repeats=2, seed=0)
    assert [sparsity for sparsity, _, _ in rows] == [0, 0.5, 0.9]
    assert all(seconds == rows[0][1] if kernel == "dense" else seconds < rows[0][1] for _, seconds, kernel in rows)


@pytest.mark.parametrize(("pattern", "expected"), [("", 0.3), ("2:4", 0.5), ("1:8", 0.875)])
def test_the_weights_that_are_measured_are_as_sparse_as_the_row_says(pattern, expected, monkeypatch):
    seen = []
    monkeypatch.setattr("selfprune.timing.unit_seconds.sparse_products", lambda weight_OI, _: seen.append(weight_OI) or {})
    shape, cpu = Shape(n_out=30, n_in=40, n_matrices=1, n_tokens=2), torch.device("cpu")
    fastest_rows(shape, [expected], pattern, torch.float32, cpu, n_repeats=1, seed=0)
    (weight_OI,) = seen
    assert weight_OI.shape == (30, 40)
    assert int((weight_OI == 0).sum()) == round(expected * 1200)
    if pattern:
        n_kept, width = map(int, pattern.split(":"))
        assert set((weight_OI != 0).reshape(-1, width).sum(dim=1).tolist()) == {n_kept}


@pytest.mark.parametrize(("n_tokens", "n_matrices", "n_each"), [(1, 2, 1), (2, 4, 1), (64, 4, 32)])
def test_of_fused_experts_those_run_that_the_tokens_reach(n_tokens, n_matrices, n_each, make_tiny_model):
    model = make_tiny_model("mixtral")
    shapes = unit_shapes(model, list_units(model), n_tokens)
    assert shapes["mlp.experts.down_proj"] == Shape(32, 48, n_matrices, n_each)
    assert shapes["self_attn.q_proj"] == Shape(32, 32, 1, n_tokens)


def test_units_of_one_kind_and_several_shapes_are_measured_one_by_one(make_tiny_model):
    model = make_tiny_model("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 40)
    shapes = unit_shapes(model, list_units(model), 8)
    assert shapes["model.layers.1.mlp.up_proj"].n_out == 40
    assert shapes["model.layers.0.mlp.up_proj"].n_out == shapes["mlp.gate_proj"].n_out == 48
    assert "mlp.up_proj" not in shapes


WRONG = {
    "no output": ([], "output must name the file for the latency table, got nothing; give output=FILE"),
    "output that exists": (["output=here.json"], "output={folder}/here.json exists already; give a new file"),
    "output in no folder": (["output=no/table.json"], "output={folder}/no/table.json has no folder {folder}/no to be in"),
    "no tokens": (["output=x", "n_tokens=0"], "n_tokens must be at least 1, got 0"),
    "no repeats": (["output=x", "n_repeats=0"], "n_repeats must be at least 1, got 0"),
    "no sparsity": (["output=x", "sparsities=[]"], "sparsities must lie in (0, 1], got []; 0 is always measured"),
    "sparsity out of range": (["output=x", "sparsities=[0.5,1.5]"], "sparsities must lie in (0, 1], got [0.5, 1.5]"),
    "pattern": (["output=x", "pattern=4:2"], "4:2"),
    "pattern that does not fit": (["output=x", "pattern=2:5"], "pattern=2:5 needs inputs in groups of 5, but a unit has 32"),
    "unknown option": (["outptu=x"], "outptu"),
    "missing model": (["output=x", "model=local", "model.path=./no/such/model"], "no/such/model"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_one_paragraph_and_leaves_nothing(name, latency, tmp_path):
    (tmp_path / "here.json").write_text("kept")
    overrides, expected = WRONG[name]
    code, out, err = latency(*overrides)
    said = " ".join(err.split())
    assert (code, out) == (2, "")
    assert said.startswith("selfprune: ")
    assert said.count("selfprune: ") == 1
    assert expected.replace("{folder}", str(tmp_path)) in said
    assert [path.name for path in tmp_path.iterdir()] == ["here.json"]
    assert (tmp_path / "here.json").read_text() == "kept"


def test_an_interrupt_leaves_nothing(latency, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("selfprune.runs.latency_measurement.fastest_rows", interrupt)
    code, out, err = latency("output=table.json", *FAST)
    assert (code, out, err) == (130, "", "selfprune: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told(latency):
    code, _, err = latency("output=table.json", "model.device=cuda")
    assert code == 2
    assert "torch sees no GPU here" in " ".join(err.split())


def test_a_table_serves_the_model_that_it_was_measured_for_and_no_other(
    latency, tiny_model_folder, make_tiny_model, tiny_tokenizer, tmp_path
):
    assert latency("output=table.json", *FAST)[0] == 0
    budget = Budget(0.0, Measure.LATENCY, str(tmp_path / "table.json"))
    loaded = load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu"))
    assert check_latency_table(budget, loaded) == []
    assert check_latency_table(Budget(), loaded) == []
    loaded.model.half()
    with pytest.raises(ConfigError, match=r"table\.json was measured with dtype=float32, but this run has dtype=float16"):
        check_latency_table(budget, loaded)
    make_tiny_model("llama", intermediate_size=64).save_pretrained(tmp_path / "wider")
    tiny_tokenizer.save_pretrained(tmp_path / "wider")
    with pytest.raises(ConfigError, match=r"mlp\.gate_proj of \[48\.0, 32\.0, 1\.0, 8\.0\] .* has it of \[64\.0, 32\.0,"):
        check_latency_table(budget, load_model(ModelConfig(str(tmp_path / "wider"), device="cpu")))
    with pytest.raises(ConfigError, match="was measured with n_tokens=8, but this run has n_tokens=1"):
        Budget(0.5, Measure.LATENCY, str(tmp_path / "table.json"), n_tokens=1).check()
    with pytest.raises(ConfigError, match=r"budget\.n_tokens .* counts for budget\.measure=LATENCY only"):
        Budget(0.5, n_tokens=8)


def test_a_table_of_another_machine_counts_where_the_budget_names_it(tiny_model_folder, latency, tmp_path):
    table, loaded = tmp_path / "table.json", load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu"))
    latency(f"output={table}", f"model.path={tiny_model_folder('llama')}", *FAST)
    content = json.loads(table.read_text())
    content["measured"]["machine"] = "Some GPU"
    table.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"was measured on Some GPU, but the run is for .*budget\.machine='Some GPU'"):
        check_latency_table(Budget(0.5, Measure.LATENCY, str(table)), loaded)
    assert check_latency_table(Budget(0.5, Measure.LATENCY, str(table), machine="Some GPU"), loaded) == []


def test_a_table_by_hand_is_told_as_doubtful(tiny_model_folder, tmp_path):
    (tmp_path / "table.json").write_text(json.dumps({"seconds": {"mlp.up_proj": [[0, 1.0]]}}))
    budget = Budget(0.0, Measure.LATENCY, str(tmp_path / "table.json"))
    (doubt,) = check_latency_table(budget, load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu")))
    assert "does not say machine, torch, n_threads, dtype, n_tokens, shapes of its measurements" in doubt


def test_a_table_that_another_process_measures_is_left_to_it(latency, tmp_path):
    with held_file(tmp_path / "table.json", "in use"):
        code, out, err = latency("output=table.json", *FAST)
    assert (code, out) == (2, "")
    expected = f"output={tmp_path / 'table.json'} is being measured by another process; wait for it, or give another file"
    assert expected in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []
