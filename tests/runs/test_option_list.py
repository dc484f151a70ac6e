"""Every option is described, with type and default."""

import subprocess
import sys

import pytest

from selfprune import __version__
from selfprune.configs.manual import HELP
from selfprune.runs.option_list import sections, show_options


def test_every_option_has_a_type_and_a_sentence():
    found = [option for _, _, options in sections() for option in options]
    assert len(found) > 100
    assert [option.name for option in found if not option.sentence or not option.kind] == []


def test_a_group_is_listed_alone_with_types_defaults_and_sentences(capsys):
    assert show_options(["budget"]) == 0
    out = capsys.readouterr().out
    assert "  budget.sparsity=0.7  (float)\n      " in out
    assert "  budget.measure=WEIGHTS  (WEIGHTS|PARAMETERS|FLOPS|MEMORY|LATENCY)\n" in out
    assert "search." not in out.replace("\n      ", "\0").split("\n")[0]


def test_an_unknown_group_names_the_known_ones(capsys):
    assert show_options(["budgt"]) == 2
    assert capsys.readouterr().err.startswith("selfprune: there is no group budgt; the groups, nearest first: budget,")


@pytest.mark.parametrize("command", ["", ".prune", ".inspect", ".latency", ".options"])
def test_help_and_version_are_the_same_from_every_entry_and_ours(command):
    def said(flag):
        return subprocess.run(
            [sys.executable, "-m", f"selfprune{command}", flag], capture_output=True, text=True, timeout=240
        ).stdout

    assert said("--version") == f"selfprune {__version__}\n"
    assert said("--help") == HELP
    assert "hydra" not in HELP.lower()


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word():
    command = [sys.executable, "-m", "selfprune.options"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer.stdout.close()  # before anything is written
    assert (writer.wait(timeout=240), writer.stderr.read()) == (141, "")
    writer.stderr.close()
