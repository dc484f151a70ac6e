"""`python -m selfprune.prune`: one pruning without a search, from disk or in memory, broken off, refused and measured."""

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import selfprune.__main__
import selfprune.prune
from selfprune.allocations.archive import Archive, read_archive
from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.unit import Unit
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import PruneConfig, register_schemas, to_config
from selfprune.data.splits import draw_calibration
from selfprune.errors import ConfigError, SelfpruneError
from selfprune.exports.block_writer import PROGRESS
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.exports.save import save_checkpoint
from selfprune.models.blocks.walk import windows_per_pass
from selfprune.models.loading import load_model, max_positions
from selfprune.models.units import list_units, weight_view
from selfprune.pruning.sequential import prune_in_place
from selfprune.runs import prune_once

SMALL = {"data.n_calibration": 6, "data.n_tokens_per_window": 16, "budget.sparsity": 0.5, "model.device": "cpu"}
N_BLOCKS = 4
BIG_BLOCKS = 16
WEIGHTS = ("model-", "model.safetensors")
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(scope="module")
def folder_of(make_tiny_model, tiny_tokenizer, tmp_path_factory):
    """Gives the folder of a family's tiny model, saved in several shards; it is shared, so change nothing in it."""
    folders = {}

    def save(family, n_blocks=N_BLOCKS):
        if (family, n_blocks) not in folders:
            folder = folders[family, n_blocks] = tmp_path_factory.mktemp(family)
            number = {"n_layer" if family == "gpt2" else "num_hidden_layers": n_blocks}
            make_tiny_model(family, **number).save_pretrained(folder, max_shard_size="20KB")
            tiny_tokenizer.save_pretrained(folder)
            assert len(list(folder.glob("model-*.safetensors"))) > 1
        return folders[family, n_blocks]

    return save


@pytest.fixture(scope="module")
def configure():
    """Gives the config of a pruning; Hydra composes each pruner's once, since it takes half a second."""
    composed = {}
    register_schemas()

    def call(options):
        pruner = options.get("pruner", "wanda")
        if pruner not in composed:
            with initialize_config_dir(str(conf_folder()), version_base="1.3"):
                composed[pruner] = compose("prune", overrides=[f"pruner={pruner}"])
        config = copy.deepcopy(composed[pruner])
        for key, value in (SMALL | options).items():
            if key != "pruner":
                OmegaConf.update(config, key, value)
        return to_config(config, PruneConfig), config

    return call


@pytest.fixture
def prune(configure, monkeypatch):
    """Prunes in this process: `prune(folder, output, **{"pruner": "sparsegpt", "model.placement": "STREAM"})`."""
    monkeypatch.setattr("selfprune.timing.machine.MATMUL_WIDTH", {"cpu": 32})

    def call(folder, output, **options):
        return prune_once.prune_once(*configure({"model.path": str(folder), "output": str(output)} | options))

    return call


@pytest.fixture
def prune_command(monkeypatch, capsys, tmp_path):
    """Runs the program in this process, in an empty folder; returns exit code, output and errors."""
    (tmp_path / "here").mkdir()

    def call(*overrides):
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setattr(sys, "argv", ["selfprune.prune", *overrides])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        code = selfprune.prune.main()
        GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def as_overrides(folder, output, **options):
    return [f"{key}={value}" for key, value in (SMALL | {"model.path": folder, "output": output} | options).items()]


def contents(folder):
    """Every file of a checkpoint except the record, whose times differ."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != "selfprune.json"}


def tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def check_equal(some, others):
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        assert torch.equal(tensor, others[name]), name


def record_of(folder):
    return json.loads((folder / "selfprune.json").read_text())


def check_paragraph(result, code, *expected):
    found, out, err = result
    said = " ".join(err.split())
    assert found == code, said
    assert "Traceback" not in said
    # the tiny models, whose weights are random, are no better than chance
    assert said.count("selfprune: ") - said.count("selfprune: warning: the dense model predicts") == 1
    assert said.startswith("selfprune: ")
    for text in expected:
        assert text in said
    assert out == ""


def in_memory(folder, output, configure, **options):
    """The same pruning by the way of a search's winner: the whole model in memory, saved at the end."""
    config, _ = configure({"model.path": str(folder), "output": "unused"} | options)
    loaded = load_model(config.model)
    windows_NT = draw_calibration(config.data, loaded.tokenizer, config.seed, max_positions=max_positions(loaded.model))
    allocation = {unit.name: unit.n_items // 2 for unit in loaded.units}
    prune_in_place(loaded, windows_NT, config.pruner, allocation, windows_per_pass(windows_NT.shape[1]))
    save_checkpoint(PrunedCheckpoint(loaded, output, by_block=False), output)
    return loaded


@pytest.mark.parametrize(
    ("family", "pruner"),
    [("llama", "sparsegpt"), ("mixtral", "sparsegpt"), ("gpt2", "sparsegpt"), ("gemma2", "wanda"), ("phi3", "magnitude")],
)  # fmt: skip
def test_a_model_pruned_from_disk_equals_one_pruned_in_memory(family, pruner, folder_of, prune, configure, tmp_path):
    folder = folder_of(family)
    before = contents(folder)
    streamed = prune(folder, tmp_path / "streamed", pruner=pruner, **{"model.placement": "STREAM"})
    whole = prune(folder, tmp_path / "whole", pruner=pruner)
    loaded = in_memory(folder, tmp_path / "saved", configure, pruner=pruner)
    assert contents(streamed) == contents(whole)
    check_equal(tensors(streamed), tensors(tmp_path / "saved"))
    again, loading = AutoModelForCausalLM.from_pretrained(streamed, output_loading_info=True, local_files_only=True)
    assert not any(loading.values()), loading
    check_equal(again.state_dict(), loaded.model.state_dict())
    sizes = {unit.name: unit.n_items for unit in list_units(again)}
    zeros = {unit.name: int((weight_view(again, unit) == 0).sum()) for unit in list_units(again)}
    assert zeros == {name: size // 2 for name, size in sizes.items()} == record_of(streamed)["removed"]
    assert contents(folder) == before


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "BFLOAT16"), ("bfloat16", "FLOAT32"), ("bfloat16", "AUTO")])
def test_weights_from_disk_have_the_dtype_that_was_asked_for(
    stored, dtype, make_tiny_model, tiny_tokenizer, prune, configure, tmp_path
):
    folder = tmp_path / "dense"
    make_tiny_model("mixtral").to(getattr(torch, stored)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    options = {"model.dtype": dtype, "model.placement": "STREAM"}
    streamed = tensors(prune(folder, tmp_path / "streamed", **options))
    in_memory(folder, tmp_path / "saved", configure, **{"model.dtype": dtype})
    check_equal(streamed, tensors(tmp_path / "saved"))
    expected = stored if dtype == "AUTO" else dtype.lower()
    assert {tensor.dtype for tensor in streamed.values()} == {getattr(torch, expected)}


def test_the_model_can_write_the_calibration_text_from_disk_too(folder_of, prune, tmp_path):
    options = {"data.source": "SELF_GENERATED", "data.n_calibration": 2}
    streamed = prune(folder_of("llama"), tmp_path / "streamed", **{"model.placement": "STREAM"}, **options)
    assert contents(streamed) == contents(prune(folder_of("llama"), tmp_path / "whole", **options))
    assert contents(streamed) != contents(prune(folder_of("llama"), tmp_path / "embedded", **{"data.n_calibration": 2}))


def test_a_snapshot_in_the_hubs_cache_is_pruned_through_its_links(folder_of, prune, tmp_path):
    folder = folder_of("llama")
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    for name in ("blobs", "refs", f"snapshots/{'0' * 40}"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for index, path in enumerate(sorted(folder.iterdir())):
        (repository / "blobs" / f"{index:040x}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{index:040x}")
    before = contents(repository)
    streamed = prune(snapshot, tmp_path / "streamed", **{"model.placement": "STREAM"})
    assert contents(streamed) == contents(prune(folder, tmp_path / "plain"))
    assert contents(repository) == before
    assert all(path.is_symlink() for path in snapshot.iterdir())


def test_blocks_on_disk_are_in_memory_one_at_a_time(folder_of, prune, monkeypatch, tmp_path):
    at_once = []

    def watched(*arguments, **keywords):
        loaded = load_model(*arguments, **keywords)

        def count(*_):
            at_once.append(sum(not all(p.is_meta for p in block.parameters()) for block in loaded.blocks))

        for block in loaded.blocks:
            block.register_forward_pre_hook(count)
        return loaded

    monkeypatch.setattr(prune_once, "load_model", watched)
    prune(folder_of("mixtral"), tmp_path / "streamed", pruner="sparsegpt", **{"model.placement": "STREAM"})
    # while a model prepares the entry its blocks are asked for, but not run
    assert set(at_once) == {0, 1}
    at_once.clear()
    prune(folder_of("mixtral"), tmp_path / "whole", pruner="sparsegpt")
    assert set(at_once) == {N_BLOCKS}


def test_fused_experts_are_copied_to_a_scratch_folder_which_is_removed(folder_of, prune, monkeypatch, tmp_path):
    seen = {}

    def watched(loaded, *arguments, **named):
        scratch = tmp_path / "streamed.partial" / "offload"
        seen.update({path.name: path.stat().st_size for path in scratch.rglob("*")})
        return prune_in_place(loaded, *arguments, **named)

    monkeypatch.setattr(prune_once, "prune_in_place", watched)
    streamed = prune(folder_of("mixtral"), tmp_path / "streamed", **{"model.placement": "STREAM"})
    kinds = ("gate_up_proj", "down_proj")
    names = {f"model.layers.{index}.mlp.experts.{kind}.safetensors" for index in range(N_BLOCKS) for kind in kinds}
    assert set(seen) == names
    assert not (streamed / "offload").exists()
    assert not (tmp_path / "streamed.partial").exists()
    stored = sum(tensor.numel() * 4 for tensor in tensors(streamed).values())
    assert record_of(streamed)["expected"]["disk_bytes"] >= stored + sum(seen.values())
    seen.clear()
    prune(folder_of("llama"), tmp_path / "other", **{"model.placement": "STREAM"})
    assert seen == {}


def test_the_record_says_what_was_removed_and_what_it_took(folder_of, prune, tmp_path):
    options = {"budget.sparsity": 0.3, "model.placement": "STREAM"}
    began = time.monotonic()
    folder = prune(folder_of("llama"), tmp_path / "out", **options)
    seconds = time.monotonic() - began
    record = record_of(folder)
    assert set(record) == {
        "config", "sparsity", "removed", "expected", "measured", "calibration", "window_start", "warnings", "environment",
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    units = list_units(model)
    zeros = {unit.name: int((weight_view(model, unit) == 0).sum()) for unit in units}
    assert record["removed"] == zeros == {unit.name: round(0.3 * unit.n_weights) for unit in units}
    assert record["sparsity"] == pytest.approx(sum(zeros.values()) / sum(unit.n_weights for unit in units))
    for told in (record["expected"], record["measured"]):
        assert set(told) == {"peak_memory_bytes", "disk_bytes", "seconds"}
        assert told["peak_memory_bytes"] > 10_000_000
        assert told["disk_bytes"] > sum(tensor.numel() * 4 for tensor in tensors(folder).values())
    assert 0 < record["measured"]["seconds"] <= seconds + 0.1
    assert record["config"]["budget"]["sparsity"] == 0.3
    assert record["config"]["model"]["path"] == str(folder_of("llama"))
    assert "output" not in record["config"]
    assert record["environment"]["packages"]["torch"] == version("torch")


def interrupt():
    raise KeyboardInterrupt


class Interrupting:
    """Stands for `prune_in_place` and interrupts it after some blocks; notes which blocks it pruned."""

    def __init__(self, after=None, how=None):
        self.after, self.how = after, how or interrupt
        self.visited = []

    def __call__(self, *arguments, **named):
        *others, on_block = arguments

        def interrupting(n_done):
            self.visited.append(n_done - 1)
            on_block(n_done)
            if n_done == self.after:
                self.how()

        return prune_in_place(*others, interrupting, **named)


def damage_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            change(name, tensor)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


DAMAGE = {
    "sound": lambda folder: None,
    "zeros": damage_tensors(lambda name, tensor: tensor.zero_()),
    "constant": damage_tensors(lambda name, tensor: tensor.copy_(tensor[:1].clone()) if "embed_tokens" in name else None),
}


@pytest.mark.parametrize(("damage", "placement"), [("sound", "WHOLE"), ("zeros", "STREAM"), ("constant", "WHOLE")])
def test_a_dense_model_that_is_no_better_than_chance_is_told(damage, placement, prune, tmp_path):
    source = Path(shutil.copytree(files("selfprune.embedded") / "weights", tmp_path / "source"))
    DAMAGE[damage](source)
    pruner = "wanda" if damage == "constant" else "magnitude"
    prune(source, tmp_path / "pruned", pruner=pruner, **{"model.placement": placement})
    said = "the dense model predicts the calibration windows no better than chance: its perplexity is "
    doubts = [paragraph for paragraph in record_of(tmp_path / "pruned")["warnings"] if paragraph.startswith(said)]
    assert len(doubts) == (damage != "sound")
    assert all("check model.path and the calibration text" in doubt for doubt in doubts)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_an_interrupted_walk_goes_on_at_its_block_with_the_same_command(
    family, folder_of, prune, prune_command, monkeypatch, tmp_path
):
    options = {"pruner": "sparsegpt", "model.placement": "STREAM"}
    monkeypatch.setattr(prune_once, "prune_in_place", first := Interrupting(after=1))
    interrupted = prune_command(*as_overrides(folder_of(family), tmp_path / "out", **options))
    check_paragraph(interrupted, 130, "interrupted; the blocks that were pruned are kept, the same command goes on after them")
    monkeypatch.setattr(prune_once, "prune_in_place", second := Interrupting(after=3))
    with pytest.raises(KeyboardInterrupt):
        prune(folder_of(family), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(prune_once, "prune_in_place", rest := Interrupting())
    prune(folder_of(family), tmp_path / "out", **options)
    assert (first.visited, second.visited, rest.visited) == ([0], [1, 2], [3])
    monkeypatch.setattr(prune_once, "prune_in_place", prune_in_place)
    unbroken = prune(folder_of(family), tmp_path / "unbroken", **options)
    assert contents(tmp_path / "out") == contents(unbroken)
    for known in ("removed", "calibration", "warnings"):
        assert record_of(tmp_path / "out")[known] == record_of(unbroken)[known]
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_a_walk_that_ends_before_its_first_block(error, folder_of, prune, monkeypatch, tmp_path):
    def end(*_, **__):
        raise error

    monkeypatch.setattr(prune_once, "prune_in_place", end)
    with pytest.raises(error):
        prune(folder_of("mixtral"), tmp_path / "new" / "out", **{"model.placement": "STREAM"})
    assert not (tmp_path / "new").exists()


KILLED_ON_THE_WAY = """
import os, signal, sys
from selfprune.prune import main
from selfprune.runs import prune_once

prune_in_place, n_blocks, command = prune_once.prune_in_place, int(sys.argv[1]), sys.argv[2:]


def prune_and_die(*arguments, **named):
    *others, on_block = arguments
    n_here = 0

    def dying(n_done):
        nonlocal n_here
        on_block(n_done)
        n_here += 1
        if n_here == n_blocks:
            os.kill(os.getpid(), signal.SIGKILL)

    return prune_in_place(*others, dying, **named)


prune_once.prune_in_place = prune_and_die
main(command)
"""
"""A process that is killed once it has pruned so many blocks."""

ONE_AFTER_THE_OTHER = """
import sys
from selfprune.prune import main
from selfprune.timing import machine

machine.MATMUL_WIDTH = {"cpu": 32}
sys.exit(any(main(one.split()) for one in sys.argv[1:]))
"""


def n_blocks_done(partial):
    if not (partial / PROGRESS).is_file():
        return 0
    with safe_open(partial / PROGRESS, framework="pt") as file:
        return json.loads(file.metadata()["progress"])["next_block"]


def test_a_pruning_that_is_interrupted_and_then_killed_can_still_be_ended(
    folder_of, prune, prune_command, python, monkeypatch, tmp_path
):
    folder, partial = folder_of("llama", n_blocks=6), tmp_path / "out.partial"
    command = as_overrides(folder, tmp_path / "out", **{"model.placement": "STREAM"})
    monkeypatch.setattr(prune_once, "prune_in_place", Interrupting(after=1, how=lambda: signal.raise_signal(signal.SIGINT)))
    check_paragraph(prune_command(*command), 130, "interrupted; the blocks that were pruned are kept")
    assert n_blocks_done(partial) == 1
    killed = python("-c", KILLED_ON_THE_WAY, "2", *command, folder=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed
    assert n_blocks_done(partial) == 3
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(prune_once, "prune_in_place", rest := Interrupting())
    assert prune_command(*command)[0] == 0
    assert rest.visited == [3, 4, 5]
    assert contents(tmp_path / "out") == contents(prune(folder, tmp_path / "unbroken", **{"model.placement": "STREAM"}))


def test_a_full_disk_is_told_in_one_paragraph_and_the_next_call_goes_on(folder_of, prune, prune_command, monkeypatch, tmp_path):
    def save(tensors, path, metadata):
        if "model-00003" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, metadata)

    options = {"model.placement": "STREAM"}
    with monkeypatch.context() as patched:
        patched.setattr("selfprune.storage.tensor_file.save_file", save)
        full = prune_command(*as_overrides(folder_of("mixtral"), tmp_path / "out", **options))
    check_paragraph(full, 2, "the disk is full. Everything before it is kept; free some space and give the same command again")
    monkeypatch.setattr(prune_once, "prune_in_place", rest := Interrupting())
    prune(folder_of("mixtral"), tmp_path / "out", **options)
    assert rest.visited == [2, 3]
    assert contents(tmp_path / "out") == contents(prune(folder_of("mixtral"), tmp_path / "unbroken"))


def test_a_disk_that_is_too_small_is_refused_but_needs_no_room_for_what_is_written(folder_of, prune, monkeypatch, tmp_path):
    folder = folder_of("mixtral")
    whole = sum(path.stat().st_size for path in prune(folder, tmp_path / "unbroken").glob("model-*"))

    def with_free_bytes(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 10**9 - free, free))

    with_free_bytes(whole // 2)
    with pytest.raises(SelfpruneError, match=r"takes about 0\.00 GB more in .*but the disk has 0\.00 GB free"):
        prune(folder, tmp_path / "out", **{"model.placement": "STREAM"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unbroken"]
    with_free_bytes(10**9)
    monkeypatch.setattr(prune_once, "prune_in_place", Interrupting(after=3))
    with pytest.raises(KeyboardInterrupt):
        prune(folder, tmp_path / "out", **{"model.placement": "STREAM"})
    monkeypatch.setattr(prune_once, "prune_in_place", prune_in_place)
    with_free_bytes(whole // 2)
    assert contents(prune(folder, tmp_path / "out", **{"model.placement": "STREAM"})) == contents(tmp_path / "unbroken")


@pytest.mark.skipif(not os.path.exists("/proc/mounts") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_on_the_way_is_told_and_left_usable(folder_of, prune, prune_command, monkeypatch, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        monkeypatch.setattr(prune_once, "check_disk", lambda *_: None)
        options = {"model.placement": "STREAM"}
        full = prune_command(*as_overrides(folder_of("llama"), disk / "out", **options))
        check_paragraph(full, 2, "the disk is full. Everything before it is kept")
        n_done = n_blocks_done(disk / "out.partial")
        assert 1 <= n_done < N_BLOCKS
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        monkeypatch.setattr(prune_once, "prune_in_place", rest := Interrupting())
        prune(folder_of("llama"), disk / "out", **options)
        assert rest.visited == list(range(n_done, N_BLOCKS))
        assert contents(disk / "out") == contents(prune(folder_of("llama"), tmp_path / "unbroken"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


WRONG = {
    "no output": ([], "output must name the folder for the pruned model, got nothing; give output=FOLDER"),
    "unknown option": (["outptu=x"], "outptu"),
    "added option": (["output=x", "+batch=2"], "there is no option batch; the options there, nearest first: "),
    "an option that memory does not need": (["output=x", "batch_size=8"], "batch_size"),
    "missing model": (["output=x", "model=local", "model.path=./no/such/model"], "no/such/model"),
    "no text": (["output=x", "data=files"], "data.source=FILES needs data.calibration, but data.calibration is empty"),
    "missing text": (["output=a/b/x", "data=files", "data.calibration=no.txt"], "no.txt"),
    "window too long": (["output=a/b/x", "data.n_tokens_per_window=65"], "at most the model's 64 positions, got 65"),
    "gradients from disk": (["output=x", "pruner=taylor", "model.placement=STREAM"], "pruner=taylor needs gradients"),
    "pattern and budget": (["output=x", "pruner.pattern=2:4"], "removes 0.5 of every unit, but budget.sparsity is 0.7"),
    "pattern short of a budget": (
        ["output=x", "pruner.pattern=2:4", "budget=parameters", "budget.sparsity=0.35"],
        "removes 0.5 of every unit, but budget.sparsity is 0.35 by budget.measure=PARAMETERS, which takes 0.57",
    ),
    "more than the units hold": (
        ["output=x", "budget=parameters", "budget.sparsity=0.9"],
        "of which only the weights of the units",
    ),
    "nothing to prune": (["output=x", "budget.sparsity=0"], "budget.sparsity=0 leaves nothing to prune"),
    "everything to prune": (["output=x", "budget.sparsity=1"], "budget.sparsity must lie above 0 and below 1, got 1.0"),
    "less than nothing to prune": (["output=x", "budget.sparsity=-0.5"], "must lie above 0 and below 1, got -0.5"),
    "no table": (["output=x", "budget=latency"], "budget.measure=LATENCY needs budget.latency_table, got none"),
    "missing table": (
        ["output=x", "budget=latency", "budget.latency_table=no.json"],
        "budget.latency_table={folder}/no.json is no table",
    ),
    "unknown run": (["output=a/b/x", "allocation=no/run"], "allocation must be uniform or the folder of a finished run"),
    "output is a file's": (["output=text.txt/x"], "text.txt/x.partial could not be written: Not a directory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_one_paragraph_and_leaves_nothing(name, folder_of, prune_command, tmp_path):
    (tmp_path / "here" / "text.txt").write_text("The boats near the old soldiers tremble. " * 20)
    overrides, expected = WRONG[name]
    fits = [] if "window too long" in name else ["data.n_tokens_per_window=16"]
    tiny = [] if any(override.startswith("model=") for override in overrides) else [f"model.path={folder_of('llama')}"]
    check_paragraph(prune_command(*tiny, *fits, *overrides), 2, expected.replace("{folder}", str(tmp_path / "here")))
    assert [path.name for path in (tmp_path / "here").rglob("*")] == ["text.txt"]


def test_a_sweep_has_a_folder_of_its_own_and_an_output_for_every_job(folder_of, prune_command, tmp_path):
    here = tmp_path / "here"
    options = [f"model.path={folder_of('llama')}", "data.n_tokens_per_window=16", "pruner=magnitude", "budget.sparsity=0.5,0.6"]
    code, _, err = prune_command("-m", *options, "output=pruned_${budget.sparsity}")
    assert code == 0, err
    assert sorted(path.name for path in here.iterdir()) == ["pruned_0.5", "pruned_0.6", "runs"]
    (sweep,) = (here / "runs").iterdir()
    assert sorted(path.name for path in sweep.iterdir()) == ["jobs", "multirun.yaml", "sweep.json"]
    written = [(here / name / "selfprune.json").stat().st_mtime_ns for name in ("pruned_0.5", "pruned_0.6")]
    assert prune_command("-m", *options, "output=pruned_${budget.sparsity}")[0] == 0
    assert [(here / name / "selfprune.json").stat().st_mtime_ns for name in ("pruned_0.5", "pruned_0.6")] == written
    code, _, err = prune_command("-m", *options, "output=same")
    assert code == 2
    assert "same exists already" in " ".join(err.split())
    assert json.loads((here / "same" / "selfprune.json").read_text())["config"]["budget"]["sparsity"] == 0.5


def test_every_option_can_be_shown(prune_command):
    code, out, _ = prune_command("--cfg", "job")
    assert code == 0
    for option in ("allocation: uniform", "output: ''", "placement: WHOLE", "pattern: ''"):
        assert option in out


def test_a_folder_that_exists_and_one_begun_with_another_config_are_refused(folder_of, prune, monkeypatch, tmp_path):
    monkeypatch.setattr(prune_once, "prune_in_place", Interrupting(after=2))
    with pytest.raises(KeyboardInterrupt):
        prune(folder_of("llama"), tmp_path / "out")
    monkeypatch.setattr(prune_once, "prune_in_place", prune_in_place)
    begun = contents(tmp_path / "out.partial")
    for options in (
        {"seed": 1},
        {"pruner": "magnitude"},
        {"pruner": "obd"},
        {"budget.sparsity": 0.6},
        {"model.placement": "STREAM"},
    ):
        with pytest.raises(ConfigError, match=r"out\.partial holds the beginning of a pruning with another config"):
            prune(folder_of("llama"), tmp_path / "out", **options)
        assert contents(tmp_path / "out.partial") == begun
    done = prune(folder_of("llama"), tmp_path / "out")
    before = contents(done)
    with pytest.raises(ConfigError, match=r"output=.*out exists already"):
        prune(folder_of("llama"), tmp_path / "out")
    assert contents(done) == before
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("pattern", ["", "1:4"])
def test_a_share_of_all_parameters_is_met_by_the_units_alone(pattern, folder_of, prune, tmp_path):
    options = {"pruner": "magnitude", "pruner.pattern": pattern, "budget.sparsity": 0.3, "budget.measure": "PARAMETERS"}
    model = AutoModelForCausalLM.from_pretrained(prune(folder_of("llama"), tmp_path / "out", **options), local_files_only=True)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    units = list_units(model)
    n_zeros = sum(int((weight_view(model, unit) == 0).sum()) for unit in units)
    if pattern:
        assert n_zeros == sum(3 * unit.n_items // 4 for unit in units)
        assert n_zeros > 0.3 * n_parameters
    else:
        assert 0 <= n_zeros - 0.3 * n_parameters < len(units)


def test_a_pattern_at_its_budget_holds_in_every_row(folder_of, prune, tmp_path):
    options = {"pruner": "sparsegpt", "pruner.pattern": "1:4", "budget.sparsity": 0.75, "model.placement": "STREAM"}
    model = AutoModelForCausalLM.from_pretrained(prune(folder_of("llama"), tmp_path / "out", **options), local_files_only=True)
    for unit in list_units(model):
        assert ((weight_view(model, unit) != 0).reshape(-1, 4).sum(dim=1) == 1).all()


def test_a_pattern_takes_a_share_of_the_items_whatever_they_weigh(configure):
    config, _ = configure({"pruner.pattern": "2:4", "output": "out"})
    units = (Unit("heads", 0, "heads", 8, weights_per_item=64), Unit("up", 0, "up", 100))
    loaded = SimpleNamespace(units=units, model=torch.nn.Linear(4, 4), n_parameters=20)
    assert prune_once._allocation(config, loaded) == {"heads": 4, "up": 50}


def finished_run(folder, allocation):
    """What a finished run leaves of its search: the winner is the second of its candidates."""
    folder.mkdir()
    failed = Candidate(0, "main", Proposal(None, "self_pruner", failure="no reply"), State.FAILED, reason="no reply")
    winner = Candidate(1, "main", Proposal(allocation, "random"), State.COMPLETE, 0.5, 8, 128)
    other = Candidate(2, "random", Proposal(dict.fromkeys(allocation, 0), "random"), State.COMPLETE, 0.4, 8, 128)
    Archive(folder / "archive.jsonl").extend([failed, winner, other])
    (folder / "report.json").write_text(json.dumps({"search": {"winner": {"id": 1}}}))
    return folder


def test_the_winner_of_a_finished_run_is_taken_over(folder_of, prune, tmp_path):
    units = list_units(AutoModelForCausalLM.from_pretrained(folder_of("llama"), local_files_only=True))
    allocation = {unit.name: unit.n_items * (i % 5) // 5 for i, unit in enumerate(units)}
    run = finished_run(tmp_path / "run", allocation)
    streamed = prune(folder_of("llama"), tmp_path / "out", allocation=str(run), **{"model.placement": "STREAM"})
    assert record_of(streamed)["removed"] == allocation
    assert record_of(streamed)["sparsity"] == pytest.approx(sum(allocation.values()) / sum(unit.n_weights for unit in units))
    model = AutoModelForCausalLM.from_pretrained(streamed, local_files_only=True)
    assert {unit.name: int((weight_view(model, unit) == 0).sum()) for unit in units} == allocation


def test_a_real_runs_winner_gives_the_same_weights_as_the_run_itself(folder_of, prune, monkeypatch, tmp_path):
    options = [option for option in as_overrides(folder_of("llama"), "") if option != "output="]
    options += ["data.n_search=8", "data.n_report=4", "proposer=random"]
    options += ["harness=none", "~yardsticks.owl", "~controls.random", "search.max_tokens=1000", "search.n_sensitivity_windows=0"]
    options += ["search.ladder.n_windows=[2,8]", "search.ladder.n_survivors=[2]", "search.batch_size=4"]
    monkeypatch.setattr("selfprune.reports.report.draw", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["selfprune", *options, f"run_folder={tmp_path / 'run'}"])
    assert selfprune.__main__.main() == 0
    GlobalHydra.instance().clear()
    calibration = {"data.n_search": 8, "data.n_report": 4}
    folder = prune(folder_of("llama"), tmp_path / "out", allocation=str(tmp_path / "run"), **calibration)
    winner = json.loads((tmp_path / "run" / "report.json").read_text())["search"]["winner"]["id"]
    assert record_of(folder)["removed"] == read_archive(tmp_path / "run" / "archive.jsonl")[winner].allocation
    # the embedded text of each split is one of its own, so that the report takes no window away from calibration
    check_equal(tensors(folder), tensors(tmp_path / "run" / "model"))


def test_a_run_of_another_model_or_without_a_winner_is_refused(folder_of, prune, tmp_path):
    units = list_units(AutoModelForCausalLM.from_pretrained(folder_of("llama"), local_files_only=True))
    halves = {unit.name: unit.n_items // 2 for unit in units}
    fewer, larger = dict(list(halves.items())[:-1]), halves | {units[0].name: units[0].n_items + 1}
    runs = {name: finished_run(tmp_path / name, allocation) for name, allocation in (("fewer", fewer), ("larger", larger))}
    for run in runs.values():
        with pytest.raises(ConfigError, match=rf"the winner of {run} belongs to another model; give a run of"):
            prune(folder_of("llama"), tmp_path / "out", allocation=str(run))
    broken = {"not json": "{", "no winner": '{"search": {}}', "out of range": '{"search": {"winner": {"id": 9}}}'}
    for name, report in broken.items():
        (finished_run(tmp_path / name, halves) / "report.json").write_text(report)
        with pytest.raises(ConfigError, match=r"allocation must be uniform or the folder of a finished run.*tells no winner"):
            prune(folder_of("llama"), tmp_path / "out", allocation=str(tmp_path / name))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def save_random_llama(folder, tokenizer, n_blocks, width):
    """A random Llama, written shard by shard: it is never in memory as a whole."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=n_blocks,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=64, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square, tall, wide, flat = (width, width), (3 * width, width), (width, 3 * width), (width,)
    block = {f"self_attn.{name}_proj": square for name in "qkvo"} | {"mlp.gate_proj": tall, "mlp.up_proj": tall}
    block |= {"mlp.down_proj": wide, "input_layernorm": flat, "post_attention_layernorm": flat}
    table = (config.vocab_size, width)
    shards = [{f"model.layers.{index}.{name}": shape for name, shape in block.items()} for index in range(n_blocks)]
    shards.append({"model.embed_tokens": table, "model.norm": flat, "lm_head": table})
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for index, shapes in enumerate(shards):
        weights = {f"{n}.weight": torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for n, shape in shapes.items()}
        weight_map |= dict.fromkeys(weights, f"model-{index}.safetensors")
        save_file(weights, folder / f"model-{index}.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_a_model_pruned_from_disk_takes_a_fraction_of_its_size_in_memory(tiny_tokenizer, python, tmp_path):
    options = {"model.placement": "STREAM"}
    n_bytes = save_random_llama(tmp_path / "big", tiny_tokenizer, BIG_BLOCKS, width=512)
    save_random_llama(tmp_path / "tiny", tiny_tokenizer, 1, width=32)
    assert n_bytes > 180_000_000  # allocators and mapped files take some 100 MB, more or less from run to run
    # in one process, so that both have the same libraries in memory; its peak is that of the larger
    commands = [" ".join(as_overrides(tmp_path / name, tmp_path / f"{name}-out", **options)) for name in ("tiny", "big")]
    done = python("-c", ONE_AFTER_THE_OTHER, *commands, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    records = {name: record_of(tmp_path / f"{name}-out") for name in ("tiny", "big")}
    took, base = (records[name]["measured"]["peak_memory_bytes"] for name in ("big", "tiny"))
    # the whole model would take all of it and more
    assert 0 < took - base < 0.9 * n_bytes
    expected, measured = records["big"]["expected"], records["big"]["measured"]
    assert measured["disk_bytes"] == pytest.approx(expected["disk_bytes"], rel=0.05)
    # of the interpreter and its libraries, which differ from machine to machine, only the order is foreseen
    assert expected["peak_memory_bytes"] / 2 < measured["peak_memory_bytes"] < 2 * expected["peak_memory_bytes"]


def test_the_record_says_how_the_calibration_windows_begin(folder_of, prune, tmp_path):
    assert record_of(prune(folder_of("llama"), tmp_path / "cut"))["window_start"] == []
    begun = record_of(prune(folder_of("llama"), tmp_path / "begun", **{"data.bos": "ALWAYS"}))
    assert begun["window_start"] == ["<|end|>"]
