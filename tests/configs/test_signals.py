"""Stopped at any moment, a command says one sentence and ends with the exit code that belongs to the signal."""

import contextlib
import signal
import subprocess
import sys

import pytest

from selfprune.configs.signals import naming_on_stop, stoppable

LOADING = """
import signal, sys
from selfprune.configs.entry import Command

def load():
    try:
        signal.raise_signal(signal.{name})
    except BaseException:
        pass  # as libraries do while they are imported
    return lambda arguments: 0

sys.exit(Command(load, str)())
"""


def left(interrupt):
    return f"left {interrupt}".rstrip()


@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_stop_while_libraries_are_imported_is_one_sentence(name, code, word):
    done = subprocess.run([sys.executable, "-c", LOADING.format(name=name)], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"selfprune: {word}; nothing was begun\n")


def test_nothing_large_is_imported_before_a_command_can_be_stopped():
    modules = (
        "import sys, selfprune.__main__, selfprune.prune, selfprune.latency, selfprune.inspect; "
        "sys.exit(' '.join({'torch', 'hydra', 'rich'} & set(sys.modules)) or None)"
    )
    assert subprocess.run([sys.executable, "-c", modules], timeout=240).returncode == 0


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")], ids=str
)
def test_a_stop_is_told_with_what_is_left(number, code, word, capsys):
    before = signal.getsignal(number)

    def work():
        with naming_on_stop("runs/here"):
            signal.raise_signal(number)
        return 0

    assert stoppable(work, left) == code
    assert capsys.readouterr().err == f"selfprune: {word}; left runs/here\n"
    assert signal.getsignal(number) is before


def test_what_is_left_is_told_whatever_error_a_library_makes_of_a_stop(capsys):
    def work():
        with naming_on_stop("runs/here"):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            raise ValueError("could not determine the shape")

    assert stoppable(work, left) == 143
    assert capsys.readouterr().err == "selfprune: terminated; left runs/here\n"


def test_a_signal_that_the_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert stoppable(lambda: signal.raise_signal(signal.SIGINT) or 7, left) == 7
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_defect_stays_one():
    with pytest.raises(ZeroDivisionError), naming_on_stop("runs/here"):
        raise ZeroDivisionError
