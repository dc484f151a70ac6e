from pathlib import Path

import pytest

from selfprune.errors import SelfpruneError
from selfprune.storage.whole_files import write_whole

FULL = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@needs_full_disk
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    write_whole(path, "old")
    (tmp_path / ".report.json.partial").symlink_to(FULL)
    with pytest.raises(SelfpruneError, match="the disk is full"):
        write_whole(path, "new")
    # By name first: what is left of a link to /dev/full would read as zeros without end.
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


@pytest.mark.parametrize("content", ["naïve\n", b"\x00\xff"])
def test_a_file_appears_whole_and_alone(tmp_path, content):
    write_whole(tmp_path / "file", "something longer that was there before")
    write_whole(tmp_path / "file", content)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_a_folder_that_is_none_is_told_in_one_paragraph(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SelfpruneError, match=r"could not be written: .*irectory"):
        write_whole(tmp_path / "missing" / "report.json", "x")
    with pytest.raises(SelfpruneError, match=r"could not be written: .*irectory"):
        write_whole(tmp_path / "file" / "report.json", "x")
