"""The command: what it prints, every folder layout, and one paragraph for every folder that is no whole checkpoint."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfprune.inspect import main
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.models.units import weight_view

EMBEDDED = Path(__file__).parents[1] / "src/selfprune/embedded/weights"
CONFIG = '{"hidden_size": 4}'


@pytest.fixture
def pruned_model(make_tiny_model):
    """A tiny model, half of whose every weight in the first block is zero."""
    model = make_tiny_model("llama")
    for name, parameter in model.named_parameters():
        if ".layers.0." in name and parameter.ndim == 2:
            parameter[::2] = 0
    return model


@pytest.fixture
def inspect(capsys):
    """Runs the command in this process; returns exit code, output and errors."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def read_json(inspect, folder):
    code, out, err = inspect(folder, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_object_holds_units_kinds_blocks_and_totals_that_agree(pruned_model, inspect, tmp_path):
    pruned_model.save_pretrained(tmp_path)
    found = read_json(inspect, tmp_path)
    assert {"list": "model.layers", "block": 0, "kind": "mlp.up_proj", "n_items": 1536, "n_zeros": 768}.items() <= next(
        unit for unit in found["units"] if unit["name"] == "model.layers.0.mlp.up_proj"
    ).items()
    assert [block["sparsity"] for block in found["blocks"]] == [0.5, 0.0]
    assert {kind["sparsity"] for kind in found["kinds"]} == {0.25}
    for name in ("n_items", "n_zeros"):
        sums = [sum(row[name] for row in found[group]) for group in ("units", "kinds", "blocks", "other")]
        total = found["total"]
        assert [total["units"][name]] * 3 + [total["other"][name]] == sums
        assert total["checkpoint"][name] == total["units"][name] + total["other"][name]


def test_the_embedded_model_is_counted_as_it_is_loaded(inspect):
    loaded = load_model(ModelConfig(device="cpu"))
    units = {unit["name"]: (unit["n_items"], unit["n_zeros"]) for unit in read_json(inspect, EMBEDDED)["units"]}
    assert units == {unit.name: (unit.n_items, int((weight_view(loaded.model, unit) == 0).sum())) for unit in loaded.units}


def test_text_is_aligned_and_ends_with_the_total(pruned_model, inspect, tmp_path):
    pruned_model.save_pretrained(tmp_path)
    code, out, err = inspect(tmp_path)
    assert (code, err) == (0, "")
    sections = out.split("\n\n")
    assert sections[0] == str(tmp_path)
    titles = ["unit", "type", "block", "other weights", "total"]
    assert [section.split("  ")[0] for section in sections[1:]] == titles
    for section in sections[1:]:
        header, *rows = section.splitlines()
        end = header.index("sparsity") + len("sparsity")
        assert {row[:end][-1] for row in rows} == {"%"}
    total = sum(p.numel() for p in pruned_model.parameters())
    assert out.splitlines()[-1].split()[:3] == ["whole", "checkpoint", f"{total:,}"]


def test_a_terminal_gets_tables(pruned_model, inspect, tmp_path, monkeypatch):
    pruned_model.save_pretrained(tmp_path)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = inspect(tmp_path)
    assert code == 0
    assert "┃" in out
    lines = re.sub(r"\x1b\[[\d;]*m", "", out).replace(str(tmp_path), "").splitlines()
    assert max(map(len, lines)) <= 60
    assert "whole checkpoint" in lines[-2]


def test_shards_are_read_like_one_file(pruned_model, inspect, tmp_path):
    pruned_model.save_pretrained(tmp_path / "one")
    pruned_model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = (read_json(inspect, tmp_path / name) for name in ("one", "many"))
    assert one.pop("folder") != many.pop("folder")
    assert one == many


def test_a_file_of_another_name_will_do_if_it_is_alone(pruned_model, inspect, tmp_path):
    pruned_model.save_pretrained(tmp_path)
    before = read_json(inspect, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert read_json(inspect, tmp_path) == before


def test_the_cache_of_the_hub_is_followed_to_the_main_snapshot(pruned_model, inspect, tmp_path):
    pruned_model.save_pretrained(tmp_path / "blobs")
    cache = tmp_path / "models--someone--model"
    for snapshot in ("abc", "def"):
        (cache / "snapshots" / snapshot).mkdir(parents=True)
        for blob in (tmp_path / "blobs").iterdir():
            (cache / "snapshots" / snapshot / blob.name).symlink_to(blob)
    code, _, err = inspect(cache)
    assert code == 2
    assert "2 snapshots" in err
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("def")
    assert read_json(inspect, cache)["folder"] == str(cache / "snapshots/def")


def write_whole(folder):
    save_file({"layers.0.q.weight": torch.ones(64, 64)}, folder / "model.safetensors")


def cut_short(folder):
    write_whole(folder)
    os.truncate(folder / "model.safetensors", 1000)


def write_index(folder, **shard_of):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))


def lose_a_shard(folder):
    save_file({"a": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")
    write_index(folder, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")


def mix_shards(folder):
    save_file({"a": torch.ones(1)}, folder / "one.safetensors")
    write_index(folder, a="one.safetensors", b="one.safetensors")


def forget_the_index(folder):
    for name in ("one", "two"):
        save_file({name: torch.ones(1)}, folder / f"{name}.safetensors")


WRONG = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "config of a list": (lambda folder: (folder / "config.json").write_text("[]"), "it must be an object, got []"),
    "config nested deep": (lambda folder: (folder / "config.json").write_text("[" * 3000 + "]" * 3000), "nested too deep"),
    "no weights": (lambda folder: None, "holds no weights"),
    "pickle": (lambda folder: (folder / "pytorch_model.bin").touch(), "pytorch_model.bin, a pickle"),
    "pickled shards": (lambda folder: (folder / "pytorch_model-00001-of-00002.bin").touch(), "save_pretrained(<new folder>)"),
    "cut short": (cut_short, "model.safetensors is no whole safetensors file"),
    "pointer": (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs\n"), "git-lfs"),
    "dead link": (lambda folder: (folder / "model.safetensors").symlink_to("gone"), "a link to a file that is gone"),
    "lost shard": (lose_a_shard, "model-00002-of-00002.safetensors is needed, found no such file"),
    "mixed shards": (mix_shards, "promises 1 tensors that their shards lack, such as b in one.safetensors"),
    "no index": (forget_the_index, "holds 2 safetensors files (one.safetensors, ...) but no model.safetensors.index.json"),
    "broken index": (lambda folder: (folder / "model.safetensors.index.json").write_text("x"), "index.json cannot be read"),
    "empty index": (write_index, "weight_map must be longer, got {}"),
    "index of numbers": (lambda folder: write_index(folder, a="b", c=5), "weight_map.c must be a text, got 5"),
    "index of another folder": (
        lambda folder: write_index(folder, a="../a.safetensors"),
        "in its own folder, got '../a.safetensors'",
    ),
    "no unit": (
        lambda folder: save_file({"a": torch.ones(2, 2)}, folder / "model.safetensors"),
        "no weight that could be pruned",
    ),
}


def check_paragraph(result, expected):
    code, out, err = result
    said = " ".join(err.split())
    assert (code, out) == (2, "")
    assert said.startswith("selfprune: ")
    assert "Traceback" not in said
    assert expected in said


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_no_whole_checkpoint_is_told_in_one_paragraph(name, inspect, tmp_path):
    (tmp_path / "config.json").write_text(CONFIG)
    spoil, expected = WRONG[name]
    spoil(tmp_path)
    check_paragraph(inspect(tmp_path), expected)


def test_a_missing_folder_a_file_and_a_missing_argument_are_told(inspect, tmp_path):
    check_paragraph(inspect(tmp_path / "nowhere"), "found nothing")
    check_paragraph(inspect("x" * 300), "xxx cannot be used: File name too long; correct the option that names it")
    (tmp_path / "file").touch()
    check_paragraph(inspect(tmp_path / "file"), "found a file")
    check_paragraph(inspect(), "required: folder; write selfprune inspect FOLDER")


def run_process(folder, **options):
    command = [sys.executable, "-m", "selfprune.inspect", str(folder)]
    # each thread would have memory of its own
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=alone, **options)


def test_a_mistake_ends_the_process_with_exit_code_2(python, tmp_path):
    done = python("-m", "selfprune.inspect", tmp_path / "nowhere", folder=tmp_path)
    check_paragraph((done.returncode, done.stdout, done.stderr), "found nothing")


READ_BY_NOBODY = """
import os, runpy
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 1)
runpy.run_module("selfprune.inspect", run_name="__main__", alter_sys=True)
"""


def test_a_reader_that_has_seen_enough_is_no_mistake(pruned_model, python, tmp_path):
    pruned_model.save_pretrained(tmp_path)
    done = python("-c", READ_BY_NOBODY, tmp_path, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_checkpoint_larger_than_the_memory_is_counted(tmp_path):
    limit, n_bytes = 3 * 2**27, 7 * 2**26
    told = {"layers.0.q.weight": {"dtype": "F32", "shape": [2**24, 7], "data_offsets": [0, n_bytes]}}
    header = json.dumps(told).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + n_bytes)
    (tmp_path / "config.json").write_text(CONFIG)
    done = run_process(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[2:5] == ["117,440,512", "117,440,512", "100.00%"]
