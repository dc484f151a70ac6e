"""Locks on files: of other processes, of files that their owner removes, and where the file system has none."""

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from selfprune.errors import ConfigError, SelfpruneError
from selfprune.storage import lock
from selfprune.storage.lock import LOCK, held_file, hold

needs_locks = pytest.mark.skipif(lock.fcntl is None, reason="this system has no such locks")


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


def ended_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@needs_locks
def test_a_lock_is_refused_until_it_is_released(tmp_path):
    held = hold(tmp_path / LOCK, "in use")
    assert held.is_new
    with pytest.raises(ConfigError, match=r"^in use$"):
        hold(tmp_path / LOCK, "in use")
    held.release()
    again = hold(tmp_path / LOCK, "in use")
    assert not again.is_new
    again.release()


@needs_locks
def test_a_killed_process_gives_its_lock_up(tmp_path):
    code = f"from pathlib import Path; from selfprune.storage.lock import hold; held = hold(Path({str(tmp_path / LOCK)!r}), '')"
    command = [sys.executable, "-c", f"{code}; print('held', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="in use"):
            hold(tmp_path / LOCK, "in use")
        other.kill()
    hold(tmp_path / LOCK, "in use").release()


@needs_locks
def test_a_file_that_its_owner_removed_just_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    owner, flock = hold(tmp_path / LOCK, "in use"), lock.fcntl.flock

    def removing(file, operation):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        owner.remove()
        flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", removing)
    held = hold(tmp_path / LOCK, "in use")
    assert held.is_in_place()
    with pytest.raises(ConfigError, match="in use"):
        hold(tmp_path / LOCK, "in use")


@needs_locks
def test_an_owner_removes_no_file_that_took_the_place_of_its_own(tmp_path):
    held = hold(tmp_path / LOCK, "in use")
    (tmp_path / LOCK).unlink()
    other = hold(tmp_path / LOCK, "in use")
    assert not held.is_in_place()
    held.remove()
    assert other.is_in_place()


@needs_locks
def test_without_locks_an_owner_file_keeps_others_away_and_says_how_to_go_on(tmp_path, without_locks):
    held = hold(tmp_path / LOCK, "in use")
    owner = tmp_path / f"{LOCK}.owner"
    assert json.loads(owner.read_text()) == {"host": socket.gethostname(), "process": os.getpid()}
    expected = rf"in use \(this file system has no locks; if process {os.getpid()} on .* has ended, remove .*owner and try again"
    with pytest.raises(ConfigError, match=expected):
        hold(tmp_path / LOCK, "in use")
    assert owner.exists()
    held.release()
    assert not owner.exists()
    hold(tmp_path / LOCK, "in use").remove()
    assert list(tmp_path.iterdir()) == []


@needs_locks
def test_without_locks_a_dead_owner_of_this_host_is_succeeded_and_one_of_another_host_is_not(tmp_path, without_locks):
    owner = tmp_path / f"{LOCK}.owner"
    owner.write_text(json.dumps({"host": socket.gethostname(), "process": ended_process()}))
    hold(tmp_path / LOCK, "in use").release()
    for content in (json.dumps({"host": "elsewhere", "process": 1}), ""):
        owner.write_text(content)
        with pytest.raises(ConfigError, match="in use"):
            hold(tmp_path / LOCK, "in use")
        assert owner.read_text() == content


@needs_locks
def test_a_file_is_written_by_one_process_and_its_lock_goes_with_it(tmp_path):
    with held_file(tmp_path / "table.json", "in use"):
        with pytest.raises(ConfigError, match="in use"), held_file(tmp_path / "table.json", "in use"):
            pytest.fail("two write one file")
        with held_file(tmp_path / "other.json", "in use"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [f".table.json{LOCK}"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["no/table.json", "n" * 300])
def test_a_file_that_cannot_be_written_is_told(name, tmp_path):
    with pytest.raises(SelfpruneError, match="could not be written"), held_file(tmp_path / name, "in use"):
        pytest.fail("a lock was held")
