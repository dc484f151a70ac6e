"""The commands as functions: the README's example, and what goes wrong."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import selfprune
from selfprune import load_run, prune_model, search_allocation
from selfprune.embedded.corpus import write_corpus
from selfprune.errors import ConfigError, DataError, SelfpruneError
from selfprune.runs.library.results import Run

README = (Path(__file__).parents[2] / "README.md").read_text()
TINY = ["data.n_tokens_per_window=16", "data.n_calibration=2"]
TEXT = "The boats near the old soldiers tremble. " * 40


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abc"):
        Path(f"{name}.txt").write_text(write_corpus(i, 60_000))
    (code,) = re.findall(r"```python\n(from transformers.*?)```", README, re.DOTALL)
    named = {"FOLDER": str(files("selfprune.embedded") / "weights")}
    exec(compile(code, "README.md", "exec"), named)
    found, pruned = named["found"], named["pruned"]
    out = capsys.readouterr().out
    assert str(found.rows["winner"]["kl"]) in out
    assert "Report split" not in out
    assert (found.folder / "report.html").is_file()
    assert load_run(found.folder).allocation == found.allocation == pruned.removed
    assert pruned.sparsity == pytest.approx(0.5, abs=0.01)
    assert found.candidates[found.report["search"]["winner"]["id"]].allocation == found.allocation
    model, tokenizer = found.load_model()
    assert 0.45 < float((model.model.layers[0].mlp.up_proj.weight == 0).float().mean()) < 1
    assert tokenizer.get_vocab() == named["tokenizer"].get_vocab()
    assert not (named["model"].model.layers[0].mlp.up_proj.weight == 0).any()


def test_texts_may_be_lists_and_the_stages_are_heard(make_tiny_model, tiny_tokenizer, tmp_path, capsys):
    model = make_tiny_model("llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    heard = []
    told = {"options": [*TINY, "pruner=magnitude"], "sparsity": 0.25, "on_progress": lambda *stage: heard.append(stage)}
    pruned = prune_model(model, tiny_tokenizer, calibration=[TEXT, TEXT], folder=tmp_path / "a folder, 'quoted'", **told)
    assert pruned.sparsity == pytest.approx(0.25, abs=0.01)
    assert pruned.folder == tmp_path / "a folder, 'quoted'"
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert {(share, note) for _, share, note in heard} >= {(1.0, "done")}
    assert all(share is None or 0 <= share <= 1 for _, share, _ in heard)
    assert "Measured" not in capsys.readouterr().err
    assert not GlobalHydra.instance().is_initialized()


def test_mistakes_are_raised_with_their_paragraph(make_tiny_model, tiny_tokenizer, tmp_path):
    model = make_tiny_model("llama")
    for call, error, said in (
        (lambda: prune_model(model, calibration=[TEXT]), ConfigError, "a model in memory needs its tokenizer, got none"),
        (lambda: prune_model(model, tiny_tokenizer), ConfigError, "needs texts for calibration, got none for calibration"),
        (lambda: search_allocation(model, tiny_tokenizer, search=[TEXT]), ConfigError, "got none for calibration and report"),
        (lambda: prune_model(model, tiny_tokenizer, calibration=["too short"], options=TINY), DataError, "tokens"),
        (lambda: prune_model(sparsity=1.5), SelfpruneError, "must lie above 0 and below 1, got 1.5"),
        (lambda: load_run(tmp_path), ConfigError, "holds no report.json"),
    ):
        with pytest.raises(error, match=re.escape(said)):
            call()


def test_nothing_else_is_exported():
    assert selfprune.__all__ == ["load_run", "prune_model", "search_allocation"]
    with pytest.raises(AttributeError, match="has no attribute 'search_model'"):
        selfprune.search_model  # noqa: B018


def test_layers_that_a_report_of_an_earlier_version_lacks_are_told_with_the_way_to_get_them():
    run = Run(Path("runs/mine"), {"rows": []}, {}, {})
    with pytest.raises(ConfigError, match=r"remove it, and `python -m selfprune resume=runs/mine` writes it again"):
        _ = run.layers
