"""Training as one more stage of a run: rows before and after, the trained checkpoint, kills, and what is refused."""

import json
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfprune.embedded.corpus import write_corpus

TRAINING = [
    "training=distillation", "training.n_tokens=4_096", "training.n_checks=4", "training.batch_size=4", "training.micro_batch=4",
    "training.patience=9", "training.learning_rate=1e-3",
]  # fmt: skip
SMALL = [
    "+experiment=smoke", "model=local", "model.device=cpu", "data.n_tokens_per_window=32", "data.n_calibration=4",
    "search.max_tokens=1_500", "harness=none", "budget.sparsity=0.5", "proposer=evolutionary", "~controls.random",
]  # fmt: skip


@pytest.fixture
def run_small(tiny_model_folder, python, tmp_path):
    """Runs the main job on a tiny model, and gives what the process said and its report."""

    def call(name, *more, code=0, program=("-m", "selfprune"), family="llama"):
        done = python(
            *program, *SMALL, f"model.path={tiny_model_folder(family)}", *more, f"run_folder={tmp_path / name}", folder=tmp_path
        )
        assert done.returncode == code, done.stderr
        report = tmp_path / name / "report.json"
        return done, {row["name"]: row for row in json.loads(report.read_text())["rows"]} if report.exists() else {}

    return call


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def zeros_of(folder):
    model = load(folder)
    return {name: int((p == 0).sum()) for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}


def test_rows_are_trained_as_asked_and_the_winner_is_saved_beside_the_pruned_one(run_small, tmp_path):
    done, rows = run_small("run", *TRAINING, "training.rows=[uniform,winner]")
    assert list(rows) == ["dense", "uniform", "owl", "winner", "uniform trained", "winner trained"]
    for name in ("uniform", "winner"):
        row, course = rows[f"{name} trained"], rows[f"{name} trained"]["training"]
        assert row["kl"] < rows[name]["kl"]
        assert course["n_tokens"] == 4_096
        assert len(course["scores"]) == 5
        assert row["sparsity"] == pytest.approx(rows[name]["sparsity"], abs=1e-9)
        assert "training" not in rows[name]
    assert "Training took the KL of winner from" in done.stdout
    assert zeros_of(tmp_path / "run/trained") == zeros_of(tmp_path / "run/model")
    assert not (tmp_path / "run/training").exists(), "what was needed meanwhile is gone"
    assert f"| winner trained | {rows['winner']['sparsity']:.2%} |" in (tmp_path / "run/report.md").read_text()
    assert "trained on" in (tmp_path / "run/report.html").read_text()


KILLED = """
import os, signal, sys
from selfprune.__main__ import run
from selfprune.training import kept_state
n_left, keep = int(sys.argv[1]), kept_state.KeptState.keep
def keep_and_die(self, *arguments):
    global n_left
    keep(self, *arguments)
    n_left -= 1
    if n_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
kept_state.KeptState.keep = keep_and_die
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_twice_in_training_ends_with_the_same_weights(run_small, python, tmp_path):
    # with cuts on the way, since what they keep has to come back besides
    _, whole = run_small("whole", *TRAINING, "schedule=iterative")
    run_small("broken", *TRAINING, "schedule=iterative", code=-signal.SIGKILL, program=("-c", KILLED, "1"))
    killed = python("-c", KILLED, "2", f"resume={tmp_path / 'broken'}", folder=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    done = python("-m", "selfprune", f"resume={tmp_path / 'broken'}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "broken/report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["winner trained"]["kl"] == whole["winner trained"]["kl"]
    weights = [(tmp_path / name / "trained/model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    assert zeros_of(tmp_path / "whole/trained") == zeros_of(tmp_path / "whole/model")


def test_heads_and_channels_are_trained_at_the_size_that_they_were_cut_to(run_small, tmp_path):
    more = ["pruner=obs", "~yardsticks.owl", "data.n_search=8"]
    _, rows = run_small("run", *TRAINING, *more)
    assert rows["winner trained"]["kl"] < rows["winner"]["kl"]
    assert rows["winner trained"]["training"]["sparsity"] is None
    pruned, trained = (json.loads((tmp_path / "run" / name / "config.json").read_text()) for name in ("model", "trained"))
    assert trained == pruned
    sizes = [os.path.getsize(tmp_path / "run" / name / "model.safetensors") for name in ("model", "trained")]
    assert abs(sizes[0] - sizes[1]) < 4_000
    moved = rows["winner trained"]["training"]["moved"]
    layers = json.loads((tmp_path / "run/report.json").read_text())["layers"]
    assert layers["blocks"]["moved"] == moved
    before, after = (dict(load(tmp_path / "run" / name).named_parameters()) for name in ("model", "trained"))
    names = [name for name in before if name.startswith("model.layers.1.")]
    whole, changed = (
        sum(float(each.square().sum()) for each in tensors)
        for tensors in zip(*((before[name].detach(), (after[name] - before[name]).detach()) for name in names), strict=True)
    )
    assert 0 < moved["1"] == pytest.approx((changed / whole) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "more", "n_cuts"),
    [
        ("cubic", ["pruner=obs", "~yardsticks.owl", "data.n_search=8"], 16),
        ("iterative", ["pruner.pattern=2:4", "budget.sparsity=0.25"], 4),
    ],
)
def test_what_goes_in_cuts_ends_where_the_allocation_does_and_is_saved_alike(schedule, more, n_cuts, run_small, tmp_path):
    done, rows = run_small("run", *TRAINING, "training.n_tokens=8_192", f"schedule={schedule}", *more)
    course = rows["winner trained"]["training"]
    assert course["n_cuts"] == n_cuts
    assert course["n_tokens"] == 8_192
    assert f"{n_cuts} cuts on the way" in " ".join(done.stdout.split())
    assert zeros_of(tmp_path / "run/trained") == zeros_of(tmp_path / "run/model")
    configs = [(tmp_path / "run" / name / "config.json").read_text() for name in ("model", "trained")]
    assert configs[0] == configs[1]
    heads = [load(tmp_path / "run" / name).get_input_embeddings().weight for name in ("model", "trained")]
    assert not torch.equal(*heads), "what was no unit learnt, too"


def test_a_row_that_there_is_not_is_refused_before_anything_is_done(run_small, tmp_path):
    done, _ = run_small("run", *TRAINING, "training.rows=[winer]", code=2)
    told = "training.rows names winer, but the pruned rows of the report are winner, uniform, owl"
    assert told in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_text_that_is_too_short_is_told_in_terms_of_the_training(run_small, tmp_path):
    texts = []
    for i, split in enumerate(("calibration", "search", "report")):
        (tmp_path / f"{split}.txt").write_text(write_corpus(i, 6_000))
        texts.append(f"data.{split}={tmp_path / split}.txt")
    done, _ = run_small("run", *TRAINING, "data=files", *texts, "training.n_tokens=100_000", code=2)
    said = " ".join(done.stderr.split())
    assert "training needs text that is in no split" in said
    assert "training.n_epochs" in said
    assert (tmp_path / "run/model/config.json").exists()


@pytest.mark.slow
def test_an_extended_run_trains_the_winner_of_its_end_and_resumes(run_small, python, tmp_path):
    _, first = run_small("run", *TRAINING, "seed=3")
    for _ in range(2):  # extended, and what was extended given again
        done = python("-m", "selfprune", f"resume={tmp_path / 'run'}", "search.max_tokens=6_000", folder=tmp_path)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    again = rows["winner trained"]["training"]["scores"][0]
    is_same = rows["winner"]["kl"] == first["winner"]["kl"]
    assert (again == first["winner trained"]["training"]["scores"][0]) == is_same
    assert (tmp_path / "run/trained/config.json").exists()


def test_a_model_of_sixteen_bits_is_measured_as_it_is_saved(run_small, tmp_path):
    _, rows = run_small("run", *TRAINING, "model.dtype=BFLOAT16", "training.rows=[winner,uniform]")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run/trained", dtype="auto")
    assert str(trained.dtype) == "torch.bfloat16"
    assert json.loads((tmp_path / "run/trained/config.json").read_text())["dtype"] == "bfloat16"
    assert {name for name in rows if name.endswith(" trained")} == {"winner trained", "uniform trained"}
    assert zeros_of(tmp_path / "run/trained") == zeros_of(tmp_path / "run/model")
