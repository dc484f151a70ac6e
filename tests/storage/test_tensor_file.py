"""Files of tensors: whole or not at all, with the mode of other files, and with the true reason when they cannot be written."""

import os
import stat
import subprocess

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from selfprune.errors import SelfpruneError
from selfprune.storage.tensor_file import write_tensors

TENSORS = {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(12.0).view(3, 4).T}
REMEDY = "try again"


@pytest.mark.skipif(not hasattr(os, "umask"), reason="needs the modes of a Unix system")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_has_the_mode_that_the_umask_gives(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", TENSORS, {"format": "pt"}, REMEDY)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    ("make", "reason"),
    [(lambda folder: None, "No such file or directory"), (lambda folder: folder.write_text(""), "Not a directory")],
)
def test_a_folder_that_is_gone_is_not_called_a_full_disk(make, reason, tmp_path):
    make(tmp_path / "folder")
    expected = rf"folder/a could not be written: {reason}\. Everything before it is kept; see to it .* and try again$"
    with pytest.raises(SelfpruneError, match=expected):
        write_tensors(tmp_path / "folder" / "a", TENSORS, {}, REMEDY)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_the_right_to_write_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SelfpruneError, match=r"a could not be written: Permission denied"):
        write_tensors(tmp_path / "a", TENSORS, {}, REMEDY)
    tmp_path.chmod(0o700)


def test_a_full_disk_is_called_that(tmp_path):
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path / "disk")]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a small disk")
    except OSError:
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(SelfpruneError, match=r"could not be written: the disk is full\. .*; free some space and try again$"):
            write_tensors(tmp_path / "disk" / "a", {"a": torch.ones(100_000)}, {}, REMEDY)
        assert list((tmp_path / "disk").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("Error while serializing: I/O error: Read-only file system (os error 30)", "Read-only file system"),
        ("Error while serializing: I/O error: No space left on device (os error 28)", "the disk is full"),
        ("Error while serializing: unheard of", "Error while serializing: unheard of"),
    ],
)
def test_what_safetensors_says_of_the_system_is_told(error, reason, monkeypatch, tmp_path):
    def fail(*_):
        raise SafetensorError(error)

    (tmp_path / "a").write_bytes(b"older")
    monkeypatch.setattr("selfprune.storage.tensor_file.save_file", fail)
    with pytest.raises(SelfpruneError, match=rf"a could not be written: {reason}\."):
        write_tensors(tmp_path / "a", TENSORS, {}, REMEDY)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]
