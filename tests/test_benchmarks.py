"""The benchmarks run to their tables, on models so small that the figures mean nothing."""

import ast
import importlib
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LLAMA = "--width 64 --n-blocks 4 --vocabulary 64 --n-tokens 16"


@pytest.fixture
def output_of(monkeypatch, capsys):
    """What a benchmark prints: `output_of("search", "--width 64")`."""

    def call(name: str, options: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *options.split()])
        monkeypatch.syspath_prepend(BENCHMARKS)
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_a_race_with_prefix_reuse_runs_every_block_of_the_tree_once(output_of, tmp_path):
    said = output_of("search", f"{LLAMA} --n-children 8 --n-windows 2 --folder {tmp_path}")
    n_run, n_asked, n_nodes = map(int, re.search(r"(\d+) blocks run of (\d+), the tree has (\d+)", said).groups())
    assert 4 < n_run == n_nodes < n_asked == 8 * 4
    assert [row for row in ("with prefix reuse", "without", "ideal", "plain loop") if row not in said] == []


def test_levels_take_the_bytes_of_their_weights_where_they_are_built(output_of):
    said = output_of("levels", "--width 64 --n-blocks 1 --n-levels 2 --n-sequences 4 --n-tokens 16")
    per_weight = dict(re.findall(r"│\s+(masks|built|disk|memory) │.*│\s+([\d.]+) │", said))
    assert per_weight["masks"] == "0.00"
    assert 4 <= float(per_weight["built"]) == float(per_weight["disk"]) == float(per_weight["memory"]) < 5


def test_whole_models_are_pruned_by_every_method_that_is_asked_for(output_of):
    said = output_of("one_shot", f"{LLAMA} --n-sequences 4 --methods wanda sparsegpt")
    assert re.search(r"│\s+wanda │\s+[\d.]+ │", said)
    assert re.search(r"│\s+sparsegpt │\s+[\d.]+ │", said)


def test_the_published_loop_and_ours_prune_one_layer_alike(output_of, monkeypatch, capsys):
    """The first of its cases runs in a process of its own, as all do, and the others in this one, which spares the imports."""
    begin, started = subprocess.run, []

    def run(command, **options):
        started.append(command)
        if len(started) == 1:
            return begin(command, **options)
        monkeypatch.setattr(sys, "argv", command[1:])
        runpy.run_path(command[1], run_name="__main__")
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(subprocess, "run", run)
    said = output_of("pruning", "--shapes 64x128 --methods wanda --n-sequences 2 --n-tokens 32 --repeat 1")
    assert "masks 0e+00 apart" in said
    assert len(started) == 4


@pytest.mark.parametrize("kind", ["plain", "ours"])
def test_lm_eval_requests_are_scored_alike_in_both_ways(kind, output_of):
    said = output_of("scored_tokens", f"--kind {kind} --n-tokens 16 --vocabulary 64")
    assert float(said.rpartition(" ")[2]) == pytest.approx(-42.213825, rel=2e-5)


def test_mutants_are_those_of_their_seed_and_each_changes_one_line_that_can_still_be_read(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    mutants, root = importlib.import_module("mutants"), BENCHMARKS.parent
    drawn = mutants.drawn(root, 63, seed=0)
    assert len(drawn) == 63
    assert drawn == mutants.drawn(root, 63, seed=0) != mutants.drawn(root, 63, seed=1)
    assert {mutant.room for mutant in drawn} == set(mutants.ROOMS)
    for mutant in drawn:
        lines = (root / mutant.module).read_text().splitlines()
        assert lines[mutant.line - 1] == mutant.before != mutant.after
        lines[mutant.line - 1] = mutant.after
        ast.parse("\n".join(lines))


def test_a_mutant_is_made_in_an_earlier_source_wherever_its_line_stood(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    mutants, module = importlib.import_module("mutants"), tmp_path / "src" / "selfprune" / "racing.py"
    module.parent.mkdir(parents=True)
    text = (BENCHMARKS.parent / "src" / "selfprune" / "search" / "racing.py").read_text()
    module.write_text("if True:\n" + textwrap.indent(text.replace("n_rungs", "n_steps"), "    "))
    before = mutants.Earlier(tmp_path)
    found = mutants.mutants_of("racing", BENCHMARKS.parent / "src/selfprune/search/racing.py", BENCHMARKS.parent)
    same = {mutant: before.same(mutant) for mutant in found}
    assert {mutant for mutant in found if "n_rungs" in mutant.before} <= {mutant for mutant in found if not same[mutant]}
    for mutant, earlier in same.items():
        if earlier:
            assert earlier.module == "src/selfprune/racing.py"
            assert (earlier.line, earlier.before, earlier.after) == (
                mutant.line + 1,
                f"    {mutant.before}",
                f"    {mutant.after}",
            )
    assert sum(earlier is not None for earlier in same.values()) > 30


@pytest.mark.parametrize("way", ["ours", "plain", "teacher"])
def test_every_way_of_training_tells_its_rate_and_its_peak(way, output_of):
    rate, peak = map(float, output_of("recovery", f"--n-windows 8 --n-tokens 8 --way {way}").split()[-2:])
    assert rate > 0
    assert peak > 50_000, "kB of a process with torch"
