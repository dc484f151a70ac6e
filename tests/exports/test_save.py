import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfprune.errors import SelfpruneError
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.exports.save import save_checkpoint
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.models.units import list_units, weight_view
from selfprune.pruners.weights.wanda import Wanda
from selfprune.pruning.sequential import prune_in_place

WINDOWS_NT = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
SMALL_DISK_KB = 96


@pytest.fixture
def pruned(request, make_tiny_model, tiny_tokenizer, tmp_path):
    """A tiny model pruned for real, and its allocation."""
    family = getattr(request, "param", "llama")
    folder = tmp_path / "dense"
    make_tiny_model(family, tie_word_embeddings=family != "mixtral").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    loaded = load_model(ModelConfig(str(folder), device="cpu"))
    allocation = {unit.name: unit.n_items * (i % 4) // 4 for i, unit in enumerate(loaded.units)}
    prune_in_place(loaded, WINDOWS_NT, Wanda(), allocation, batch_size=4)
    return loaded, allocation


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk too small for the tiny models; needs the right to mount one."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_KB}k", "tmpfs", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def save(loaded, folder):
    save_checkpoint(PrunedCheckpoint(loaded, folder, by_block=False), folder)


@pytest.mark.parametrize("pruned", ["llama", "gpt2", "mixtral"], indirect=True)
def test_a_saved_model_loads_again_with_the_same_logits_and_zeros(pruned, tmp_path):
    loaded, allocation = pruned
    save(loaded, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", experts_implementation="eager", local_files_only=True)
    assert torch.equal(again(input_ids=WINDOWS_NT).logits, loaded.model(input_ids=WINDOWS_NT).logits)
    zeros = {unit.name: int((weight_view(again, unit) == 0).sum()) for unit in list_units(again)}
    assert zeros == allocation
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied is loaded.model.config.tie_word_embeddings


@pytest.mark.parametrize("pruned", ["mixtral"], indirect=True)
def test_the_default_kernel_of_experts_agrees_after_a_plain_reload(pruned, tmp_path):
    loaded, _ = pruned
    save(loaded, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    torch.testing.assert_close(again(input_ids=WINDOWS_NT).logits, loaded.model(input_ids=WINDOWS_NT).logits)


def test_the_tokenizer_comes_along(pruned, tmp_path):
    loaded, _ = pruned
    save(loaded, tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert again("the red foxes")["input_ids"] == loaded.tokenizer("the red foxes")["input_ids"]


def test_an_older_folder_and_a_broken_attempt_are_replaced(pruned, tmp_path):
    loaded, _ = pruned
    parent = tmp_path / "run"
    for name in ("model", ".model.partial"):
        (parent / name).mkdir(parents=True)
        (parent / name / "old.txt").write_text("old")
    save(loaded, parent / "model")
    assert [path.name for path in parent.iterdir()] == ["model"]
    assert not (parent / "model/old.txt").exists()
    assert (parent / "model/config.json").exists()


def test_a_full_disk_leaves_nothing_behind_and_says_what_to_do(pruned, small_disk):
    loaded, _ = pruned
    with pytest.raises(
        SelfpruneError, match=r"model.safetensors could not be written: the disk is full\. .*free some space"
    ) as error:
        save(loaded, small_disk / "model")
    assert "\n" not in str(error.value)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_at_the_tokenizer_keeps_the_older_folder(pruned, small_disk, tmp_path):
    loaded, _ = pruned
    save(loaded, tmp_path / "model")
    subprocess.run(["mount", "-o", "remount,size=4096k", str(small_disk)], check=True)
    (small_disk / "model").mkdir()
    (small_disk / "model/old.txt").write_text("old")
    weights_kb = (tmp_path / "model/model.safetensors").stat().st_size // 1024
    free_kb = weights_kb + 12
    (small_disk / "ballast").write_bytes(bytes((4096 - 8 - free_kb) * 1024))
    with pytest.raises(SelfpruneError, match="the disk is full"):
        save(loaded, small_disk / "model")
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "model"]
    assert (small_disk / "model/old.txt").read_text() == "old"


def test_a_folder_that_cannot_be_written_is_named(pruned, tmp_path):
    loaded, _ = pruned
    (tmp_path / "file").write_text("")
    with pytest.raises(SelfpruneError, match=r"file/model could not be written: Not a directory"):
        save(loaded, tmp_path / "file" / "model")
