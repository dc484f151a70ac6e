"""Folders that one process alone makes and works in."""

import os
import subprocess
import sys

import pytest

from selfprune.errors import ConfigError
from selfprune.storage import held_folder, lock
from selfprune.storage.held_folder import hold_existing_folder, hold_folder, hold_new_folder
from selfprune.storage.lock import LOCK

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no such locks")


def at_once(tmp_path, function, n):
    """What so many processes that begin at the same time say of the folder that they hold, while all of them hold theirs."""
    code = f"""
import sys
from pathlib import Path
from selfprune.errors import ConfigError
from selfprune.storage.held_folder import hold_folder, hold_new_folder
say = lambda words: print(words, flush=True)
say("ready")
sys.stdin.readline()
try:
    say({function})
except ConfigError as error:
    say(error)
sys.stdin.readline()
"""
    command, pipes = [sys.executable, "-c", code], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(n)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * n
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("end\n")
    assert {process.returncode for process in processes} == {0}
    return said


def test_processes_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path):
    said = at_once(tmp_path, "(held := hold_new_folder(Path('runs/now'))).folder.name", 4)
    assert sorted(said) == ["now", "now_2", "now_3", "now_4"]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(said)


def test_of_processes_that_are_told_to_use_one_folder_one_gets_it(tmp_path):
    said = at_once(tmp_path, "(held := hold_folder(Path('a/b/run'), 'in use')).folder", 4)
    assert sorted(said) == ["a/b/run", "in use", "in use", "in use"]


def test_a_folder_is_taken_away_with_the_folders_that_were_made_for_it_unless_others_use_them(tmp_path):
    hold_folder(tmp_path / "a/b/run", "in use").withdraw()
    assert list(tmp_path.iterdir()) == []
    held = hold_folder(tmp_path / "a/b/run", "in use")
    other = hold_folder(tmp_path / "a/other", "in use")
    held.withdraw()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a", "a/other", f"a/other/{LOCK}"]
    other.withdraw()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_was_there_stays_as_it_was(tmp_path):
    (tmp_path / "mine").mkdir()
    held = hold_folder(tmp_path / "mine", "in use")
    assert not held.is_new
    held.withdraw()
    assert list((tmp_path / "mine").iterdir()) == []
    (tmp_path / "mine" / LOCK).touch()
    hold_folder(tmp_path / "mine", "in use").withdraw()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [LOCK]


def test_a_folder_that_another_took_between_its_making_and_its_lock_is_left_to_it(tmp_path, monkeypatch):
    others = []

    def overtaken(path, refusal):
        if path.parent.name == "run":
            others.append(lock.hold(path, "faster"))
        return lock.hold(path, refusal)

    monkeypatch.setattr(held_folder, "hold", overtaken)
    with pytest.raises(ConfigError, match="in use"):
        hold_folder(tmp_path / "run", "in use")
    assert others[0].is_in_place()
    assert hold_new_folder(tmp_path / "run").folder.name == "run_2"


def test_a_folder_that_its_owner_removed_just_after_it_was_found_is_made_anew(tmp_path, monkeypatch):
    owner = hold_folder(tmp_path / "a/run", "in use")

    def removing(path, refusal):
        monkeypatch.setattr(held_folder, "hold", lock.hold)
        owner.withdraw()
        return lock.hold(path, refusal)

    monkeypatch.setattr(held_folder, "hold", removing)
    held = hold_folder(tmp_path / "a/run", "in use")
    assert held.is_new
    assert (tmp_path / "a/run" / LOCK).exists()
    held.release()


@pytest.mark.parametrize("name", ["file", "file/run", "link", "n" * 300, "\0"])
def test_what_cannot_be_a_folder_is_an_error_and_makes_nothing(name, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises((OSError, ValueError)):
        hold_folder(tmp_path / name, "in use")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "parent").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        hold_folder(tmp_path / "parent/run", "in use")


def test_a_folder_that_does_not_exist_is_not_made_where_it_must(tmp_path):
    with pytest.raises(FileNotFoundError):
        hold_existing_folder(tmp_path / "run", "in use")
    assert list(tmp_path.iterdir()) == []
