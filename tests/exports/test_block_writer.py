"""A checkpoint that grows block by block, and a walk that can be taken up again from it."""

import errno
import json
from copy import deepcopy
from functools import cache

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from selfprune.errors import ConfigError, SelfpruneError
from selfprune.exports.block_writer import PROGRESS, BlockWriter, growing
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig, Placement
from selfprune.models.units import weight_view
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.pruners.weights.taylor import Taylor
from selfprune.pruners.weights.wanda import Wanda
from selfprune.pruning.sequential import prune_in_place
from selfprune.storage import lock

WINDOWS_NT = torch.randint(300, (5, 16), generator=torch.Generator().manual_seed(0))
ORIGIN = {"config": {"seed": 0}}
N_BLOCKS = 4


@pytest.fixture(scope="module")
def folder_of(make_tiny_model, tiny_tokenizer, tmp_path_factory):
    """Saves a tiny model of several blocks in several shards, once for all tests: none changes it."""

    @cache
    def save(family, **changes):
        folder = tmp_path_factory.mktemp(f"{family}-dense")
        n_blocks = "n_layer" if family == "gpt2" else "num_hidden_layers"
        make_tiny_model(family, **({n_blocks: N_BLOCKS} | changes)).save_pretrained(folder, max_shard_size="20KB")
        tiny_tokenizer.save_pretrained(folder)
        assert len(list(folder.glob("model-*.safetensors"))) > 1
        return folder

    return save


@cache
def whole(folder):
    return load_model(ModelConfig(str(folder), device="cpu"))


def load(folder, tmp_path, placement=Placement.WHOLE):
    if placement is Placement.WHOLE:
        return deepcopy(whole(folder))
    return load_model(ModelConfig(str(folder), device="cpu", placement=placement), scratch=tmp_path / "scratch")


def halves(loaded):
    return {unit.name: unit.n_items // 2 for unit in loaded.units}


def prune(loaded, shards, pruner=None, stop_after=None):
    """Prunes into shards, as `prune_once` does; returns the blocks that were visited."""
    visited = []

    def on_block(n_done):
        visited.append(n_done - 1)
        if n_done == stop_after:
            raise KeyboardInterrupt

    with torch.no_grad():
        removed = prune_in_place(loaded, WINDOWS_NT, pruner or Wanda(), halves(loaded), 2, shards, on_block)
    assert removed == halves(loaded)
    return visited


def publish(loaded, shards):
    shards.finish(loaded)
    shards.publish()


def prune_and_publish(loaded, shards, pruner=None):
    visited = prune(loaded, shards, pruner)
    publish(loaded, shards)
    return visited


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def check_equal(some, others):
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        assert tensor.dtype == others[name].dtype
        assert torch.equal(tensor, others[name]), name


def test_a_checkpoint_of_shards_holds_what_save_pretrained_writes(family, folder_of, tmp_path):
    folder = folder_of(family)
    loaded = load(folder, tmp_path, Placement.STREAM)
    shards = BlockWriter(tmp_path / "out", ORIGIN)
    with torch.no_grad():
        removed = prune_in_place(loaded, WINDOWS_NT, Wanda(), dict.fromkeys(halves(loaded), 0), 2, shards)
    assert set(removed.values()) == {0}
    publish(loaded, shards)
    check_equal(tensors(tmp_path / "out"), tensors(folder))
    index, expected = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (tmp_path / "out", folder))
    assert index["weight_map"].keys() == expected["weight_map"].keys()
    assert index["metadata"]["total_size"] == expected["metadata"]["total_size"]
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_text() == (folder / name).read_text()
    again, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, local_files_only=True)
    assert not any(loading.values()), loading
    check_equal(again.state_dict(), whole(folder).model.state_dict())
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == bool(again.config.tie_word_embeddings)


def test_a_file_holds_one_block_and_the_last_one_everything_else(folder_of, tmp_path):
    loaded = load(folder_of("llama"), tmp_path)
    prune_and_publish(loaded, BlockWriter(tmp_path / "out", ORIGIN))
    for index in range(N_BLOCKS):
        names = load_file(tmp_path / "out" / f"model-0000{index + 1}-of-00005.safetensors").keys()
        assert names == {name for name in loaded.model.state_dict() if name.startswith(f"model.layers.{index}.")}
    rest = load_file(tmp_path / "out" / "model-00005-of-00005.safetensors").keys()
    assert rest == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)("a b") == loaded.tokenizer("a b")
    assert not any(name.endswith((".unfinished", PROGRESS)) for name in contents(tmp_path / "out"))


def test_a_bare_decoders_checkpoint_stays_one(make_tiny_model, tiny_tokenizer, tmp_path):
    # the names of its tensors lack the prefix, as those of the original GPT-2 do
    folder = tmp_path / "bare"
    make_tiny_model("gpt2").transformer.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    assert "h.0.attn.c_attn.weight" in tensors(folder)
    outputs = []
    for placement in (Placement.WHOLE, Placement.STREAM):
        loaded = load(folder, tmp_path, placement)
        prune_and_publish(loaded, BlockWriter(tmp_path / placement.name, ORIGIN))
        outputs.append(contents(tmp_path / placement.name))
    assert outputs[0] == outputs[1]
    assert tensors(tmp_path / "WHOLE").keys() == tensors(folder).keys()
    assert AutoConfig.from_pretrained(tmp_path / "WHOLE").architectures == ["GPT2Model"]
    again, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "WHOLE", output_loading_info=True, local_files_only=True)
    assert not any(loading.values()), loading
    zeros = {name: int((again.get_submodule(name).weight == 0).sum()) for name in halves(loaded)}
    assert zeros == halves(loaded)


def test_weights_outside_the_blocks_are_fetched_from_wherever_they_lie(folder_of, monkeypatch, tmp_path):
    folder = folder_of("llama")
    prune_and_publish(load(folder, tmp_path), BlockWriter(tmp_path / "whole", ORIGIN))
    devices = {"model.embed_tokens": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    devices |= {f"model.layers.{index}": ["cpu", "disk"][index % 2] for index in range(N_BLOCKS)}
    options = {"device_map": devices, "offload_folder": str(tmp_path / "scratch")}
    monkeypatch.setattr("selfprune.models.loading.loading_options", lambda *_: options)
    spread = load(folder, tmp_path, Placement.SPREAD)
    assert spread.model.lm_head.weight.is_meta
    prune_and_publish(spread, BlockWriter(tmp_path / "spread", ORIGIN))
    assert contents(tmp_path / "spread") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("pruner", "placement"),
    [(Wanda(), Placement.WHOLE), (Taylor(), Placement.WHOLE), (SparseGPT(block_width=16), Placement.STREAM)],
    ids=["wanda", "taylor", "sparsegpt from disk"],
)
def test_a_walk_that_was_broken_off_goes_on_to_the_same_files(pruner, placement, folder_of, tmp_path):
    folder = folder_of("llama")
    unbroken = BlockWriter(tmp_path / "unbroken", ORIGIN)
    assert prune_and_publish(load(folder, tmp_path, placement), unbroken, pruner) == [0, 1, 2, 3]
    visited = []
    for stop_after in (1, 3, None):
        # everything that was known is forgotten, as it is when the process ends
        loaded, shards = load(folder, tmp_path, placement), BlockWriter(tmp_path / "broken", ORIGIN)
        if stop_after is None:
            visited.append(prune(loaded, shards, pruner))
        else:
            before = BlockWriter(tmp_path / "broken", ORIGIN).resume()[2]
            with pytest.raises(KeyboardInterrupt):
                prune(loaded, shards, pruner, stop_after)
            visited.append(list(range(before, BlockWriter(tmp_path / "broken", ORIGIN).resume()[2])))
    assert visited == [[0], [1, 2], [3]]
    publish(loaded, shards)
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


def test_a_walk_goes_on_with_the_pruned_hidden_states_and_not_with_dense_ones(folder_of, tmp_path):
    folder = folder_of("llama")
    loaded = load(folder, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prune(loaded, BlockWriter(tmp_path / "out", ORIGIN), stop_after=2)
    removed, _, start, hidden = BlockWriter(tmp_path / "out", ORIGIN).resume()
    assert (set(removed), start) == ({unit.name for unit in loaded.units if unit.block < 2}, 2)
    assert [len(hidden_NTD) for hidden_NTD in hidden] == [2, 2, 1]
    caught = []
    handle = loaded.blocks[2].register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    loaded.model(input_ids=WINDOWS_NT)
    torch.testing.assert_close(torch.cat(hidden), caught[0], rtol=0, atol=1e-6)
    handle.remove()
    caught.clear()
    dense = load(folder, tmp_path)
    dense.blocks[2].register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    dense.model(input_ids=WINDOWS_NT)
    assert not torch.allclose(torch.cat(hidden), caught[0], atol=1e-4)


def test_a_walk_that_only_lacked_its_end_visits_no_block_again(folder_of, tmp_path):
    folder = folder_of("llama")
    loaded = load(folder, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prune(loaded, BlockWriter(tmp_path / "out", ORIGIN), stop_after=N_BLOCKS)
    pruned = {unit.name: weight_view(loaded.model, unit).clone() for unit in loaded.units}
    assert prune_and_publish(load(folder, tmp_path), BlockWriter(tmp_path / "out", ORIGIN)) == []
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    for name, weight_OI in pruned.items():
        assert torch.equal(again.get_submodule(name).weight, weight_OI)


def test_a_folder_that_exists_and_one_of_another_config_are_refused_and_left_alone(folder_of, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"output=.*there exists already; choose another output, or remove it"):
        BlockWriter(tmp_path / "there", ORIGIN)
    assert not (tmp_path / "there.partial").exists()
    with pytest.raises(KeyboardInterrupt):
        prune(load(folder_of("llama"), tmp_path), BlockWriter(tmp_path / "out", ORIGIN), stop_after=1)
    before = contents(tmp_path / "out.partial")
    with pytest.raises(ConfigError, match=r"out\.partial holds the beginning of a pruning with another config"):
        BlockWriter(tmp_path / "out", {"config": {"seed": 1}})
    assert contents(tmp_path / "out.partial") == before
    assert BlockWriter(tmp_path / "out", ORIGIN).resume()[2] == 1


def test_a_partial_folder_of_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"out\.partial is where the pruned model grows, but .* such as thesis\.tex"):
        BlockWriter(tmp_path / "out", ORIGIN)
    assert contents(tmp_path / "out.partial") == {"thesis.tex": b"x"}


def test_what_a_walk_left_that_was_killed_in_its_first_block_is_taken_for_its_own(folder_of, monkeypatch, tmp_path):
    class KilledError(BaseException):
        pass

    def save(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if PROGRESS in path.name:
            raise KilledError

    folder = folder_of("mixtral")
    shards = BlockWriter(tmp_path / "out", ORIGIN)
    loaded = load_model(ModelConfig(str(folder), device="cpu", placement=Placement.STREAM), shards.scratch)
    with monkeypatch.context() as patched:
        patched.setattr("selfprune.storage.tensor_file.save_file", save)
        with pytest.raises(KilledError):
            prune(loaded, shards)
    assert {path.name for path in shards.partial.iterdir()} == {"offload", "model-00001-of-00005.safetensors"}
    # a process that is really killed cannot clean up
    (shards.partial / f".{PROGRESS}.unfinished").mkdir()
    (shards.partial / f".{PROGRESS}.unfinished" / PROGRESS).write_bytes(b"half")
    shards = BlockWriter(tmp_path / "out", ORIGIN)
    loaded = load_model(ModelConfig(str(folder), device="cpu", placement=Placement.STREAM), shards.scratch)
    assert prune_and_publish(loaded, shards) == [0, 1, 2, 3]
    prune_and_publish(load(folder, tmp_path), BlockWriter(tmp_path / "whole", ORIGIN))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_was_begun_is_kept_and_what_was_not_is_removed_with_the_folders_made_for_it(folder_of, tmp_path):
    (tmp_path / "mine").mkdir()
    out = tmp_path / "mine" / "a" / "b" / "out"
    with pytest.raises(FileExistsError), growing(out, ORIGIN) as shards:
        [shards.scratch.mkdir() for _ in range(2)]
    assert list((tmp_path / "mine").iterdir()) == []
    with pytest.raises(KeyboardInterrupt), growing(out, ORIGIN) as shards:
        prune(load(folder_of("llama"), tmp_path), shards, stop_after=1)
    assert BlockWriter(out, ORIGIN).resume()[2] == 1


@pytest.mark.skipif(lock.fcntl is None, reason="this system has no such locks")
def test_no_two_processes_grow_one_checkpoint_and_the_second_changes_nothing(folder_of, tmp_path):
    loaded = load(folder_of("llama"), tmp_path)
    with growing(tmp_path / "out", ORIGIN) as shards:
        for is_begun in (False, True):
            if is_begun:
                with pytest.raises(KeyboardInterrupt):
                    prune(loaded, shards, stop_after=1)
            before = contents(tmp_path / "out.partial")
            for origin in (ORIGIN, {"config": {"seed": 1}}):
                with pytest.raises(ConfigError, match=r"output=.*out is being written by another process, in .*out\.partial"):
                    growing(tmp_path / "out", origin).__enter__()
            assert contents(tmp_path / "out.partial") == before
        assert prune(load(folder_of("llama"), tmp_path), shards) == [1, 2, 3]
        publish(loaded, shards)
    with pytest.raises(ConfigError, match="exists already"), growing(tmp_path / "out", ORIGIN):
        pytest.fail("a checkpoint was grown into another")
    assert not any(name.startswith(".") for name in contents(tmp_path / "out"))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")],
    ids=["OSError", "SafetensorError"],
)
@pytest.mark.parametrize("file", ["model-00002-of-00005", PROGRESS, "model-00005-of-00005"])
def test_a_full_disk_leaves_whole_files_and_the_walk_goes_on_later(file, error, folder_of, monkeypatch, tmp_path):
    folder = folder_of("llama")
    prune_and_publish(load(folder, tmp_path), BlockWriter(tmp_path / "unbroken", ORIGIN))
    n_writes = []

    def save(tensors, path, metadata):
        n_writes.append(path)
        path.write_bytes(b"the beginning")
        # the progress of the first block is saved, that of the second is not
        if file in path.name and (file != PROGRESS or sum(PROGRESS in other.name for other in n_writes) == 2):
            raise error
        save_file(tensors, path, metadata)

    loaded, shards = load(folder, tmp_path), BlockWriter(tmp_path / "out", ORIGIN)
    with monkeypatch.context() as patched:
        patched.setattr("selfprune.storage.tensor_file.save_file", save)
        with pytest.raises(SelfpruneError, match=r"could not be written: the disk is full\. .*give the same command again"):
            prune_and_publish(loaded, shards)
    assert not (tmp_path / "out").exists()
    assert not [name for name in contents(tmp_path / "out.partial") if "unfinished" in name]
    visited = prune_and_publish(load(folder, tmp_path), BlockWriter(tmp_path / "out", ORIGIN))
    assert visited == ([] if "00005-of" in file else [1, 2, 3])
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for name, reason in (("file/out", "Not a directory"), ("n" * 300, "File name too long")):
        with pytest.raises(SelfpruneError, match=rf"{name}\.partial could not be written: {reason}"):
            growing(tmp_path / name, ORIGIN).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def with_progress(path, change):
    """Rewrites what the header of a progress file says."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    header["__metadata__"]["progress"] = json.dumps(change(json.loads(header["__metadata__"]["progress"])))
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + content[8 + n :])


DAMAGES = {
    "cut short": (lambda folder: (folder / PROGRESS).write_bytes((folder / PROGRESS).read_bytes()[:-9]), "cannot be read back"),
    "no tensors": (lambda folder: (folder / PROGRESS).write_bytes(b"5"), "cannot be read back"),
    "a list": (lambda folder: with_progress(folder / PROGRESS, lambda _: []), "must be an object"),
    "no origin": (lambda folder: with_progress(folder / PROGRESS, lambda told: {}), "origin is missing"),
    "no block": (lambda folder: with_progress(folder / PROGRESS, lambda told: told | {"next_block": 0}), "next_block must be"),
    "other block": (lambda folder: with_progress(folder / PROGRESS, lambda told: told | {"next_block": 3}), "not belong to this"),
    "fewer units": (lambda folder: with_progress(folder / PROGRESS, lambda told: told | {"removed": {}}), "not belong to this"),
    "block cut short": (lambda folder: (folder / "model-00001-of-00005.safetensors").write_bytes(b"cut"), "cannot be read back"),
    "block gone": (lambda folder: (folder / "model-00002-of-00005.safetensors").unlink(), "cannot be read back"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_beginning_is_refused_and_left_as_it_is(name, folder_of, tmp_path):
    damage, said = DAMAGES[name]
    folder = folder_of("llama")
    with pytest.raises(KeyboardInterrupt):
        prune(load(folder, tmp_path), BlockWriter(tmp_path / "out", ORIGIN), stop_after=2)
    damage(tmp_path / "out.partial")
    before = contents(tmp_path / "out.partial")
    with pytest.raises(ConfigError, match=rf"(?s)out\.partial.*{said}.*remove the folder and begin anew"):
        prune(load(folder, tmp_path), BlockWriter(tmp_path / "out", ORIGIN))
    assert contents(tmp_path / "out.partial") == before
