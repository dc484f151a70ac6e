"""What a user types wrong is told in plain words: one paragraph that names the option, says what it takes, and where to look."""

import functools
import re

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from selfprune.__main__ import run
from selfprune.configs.command_line import _read
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import register_schemas
from selfprune.configs.mistakes.override_mistakes import CommandLine
from selfprune.latency import main as latency
from selfprune.prune import main as prune

JARGON = (
    "struct", "Config", "lexer", "full_key", "reference_type=", "object_type", "append to your", "NoViableAlt", "primitive",
    "hydra.cc", "Error", "override", "defaults list", "config", "interpolation", "multirun", "pkg://",
)  # fmt: skip
TYPED = {
    "serch=default": "there is no option serch; the options there, nearest first: search,",
    "reference_type=Budget": "there is no option reference_type;",
    "model.pth=x": "there is no option model.pth; the options there, nearest first: path,",
    "sparsity=0.5": "did you mean budget.sparsity?",
    "search.nope.x=3": "there is no option search.nope;",
    "budget.sparsity.x=3": "budget.sparsity has no options of its own, so there is no budget.sparsity.x",
    "pruner.n_iterations=3": "n_iterations is an option of pruner=",
    "budget.sparsity=abc": "budget.sparsity takes a number, got abc;",
    "budget.sparsity=null": "budget.sparsity takes a number, got null;",
    "budget.sparsity=[1]": "budget.sparsity takes a number, got [1];",
    "seed=": "seed takes a whole number, got nothing;",
    "seed=1.5": "seed takes a whole number, got 1.5;",
    "search.max_seconds=soon": "search.max_seconds takes a number, or null, got soon;",
    "search.ladder.n_windows=[2,x]": "takes a list of whole numbers, as in search.ladder.n_windows=[1,2], got [2,x];",
    "search.ladder.fresh=maybe": "search.ladder.fresh takes true or false, got maybe;",
    "search.ladder=3": "search.ladder takes options of its own (search.ladder.n_windows,",
    "search.levels.kind=BUILD": "takes one of BUILT, ",
    "harness.tasks=boolq": "harness.tasks takes a list of texts, as in harness.tasks=[a,b], got boolq;",
    "controls=3": "controls takes names with options, as in controls.NAME=OPTION, got 3;",
    "harness.tasks=[a": "the value [a cannot be read, because it opens [ and never closes it;",
    "budget=[weights": "it opens [ and never closes it;",
    "harness.tasks=a]": "it closes by ] what was not opened;",
    "budget.sparsity='0.5": "it opens ' and never closes it;",
    "a b=3": "a b cannot be the name of an option",
    "budget": "there is no value; options are given as NAME=VALUE, as in budget.sparsity=0.5;",
    "=default": "the name of the option is missing;",
    "+": "the name of the option is missing;",
    "search=nope": "there is no choice nope of search; the choices, nearest first:",
    "+experiment=smok": "there is no choice smok of experiment; the choices, nearest first: smoke,",
    "experiment=smoke": "add it by a plus: +experiment=smoke;",
    "proposer@controls.b=random": "add it by a plus: +proposer@controls.b=random;",
    "+search=evopress": "search is chosen already; to choose another, leave out the plus: search=evopress;",
    "+budget.sparsity=0.5": "budget.sparsity has a value already; to give another, leave out the plus: budget.sparsity=0.5;",
    "search.finer={mlp.*:2}": "search.finer has no such entries yet; they are added by a plus: +search.finer={mlp.*:2};",
    f"evaluator={300 * chr(120)}": "there is no choice",
    "proposer=[1,2]": "proposer takes one of alphapruning, ",
    "budget=null": "budget takes the name of a choice, got null; the choices, nearest first:",
    "~search": "search cannot be left out; choose one of alphapruning,",
    "~budget.sparsity": "budget.sparsity always has a value, so it cannot be left out;",
    "~controls.nope": "there is no option controls.nope; the options there, nearest first: random;",
    "budget.sparsity=0.5,0.6": "for a run with each of them add -m;",
    "budget.sparsity=${nope}": "what this stands for cannot be found;",
    "seed=${budget.measure}": "seed takes a whole number, and what this stands for is none;",
}  # fmt: skip
# One of every kind goes through the command; what is said of the others is asked of the command line alone.
BY_THE_COMMAND = (
    "serch=default", "budget.sparsity=abc", "budget.sparsity=0.5,0.6", "budget.sparsity=${nope}", "harness.tasks=[a",
    "proposer=[1,2]", "search=nope", "experiment=smoke", "+budget.sparsity=0.5", "~search",
)  # fmt: skip


@pytest.fixture(scope="module")
def asked():
    """What a run would say of its overrides, with Hydra set up and the config without overrides composed once for all of them."""
    register_schemas()
    line_of, composed = run.load()._line, CommandLine._composed
    once = functools.cache(lambda name, overrides: composed(CommandLine(name), list(overrides)))
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(conf_folder()), version_base="1.3"):
        patch.setattr(CommandLine, "_composed", lambda self, overrides: once(self.config_name, tuple(overrides)))
        yield lambda *overrides: line_of(_read(overrides)).mistake()


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """Runs a command in this process, in an empty folder; returns its one paragraph."""
    monkeypatch.chdir(tmp_path)

    def call(command, *arguments):
        assert command([*arguments]) == 2
        GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        paragraph = " ".join(captured.err.split())
        assert captured.out == ""
        assert paragraph.startswith("selfprune: ")
        assert paragraph.count("selfprune: ") == 1
        assert list(tmp_path.iterdir()) == []
        return paragraph

    return call


def check(paragraph, typed, expected):
    assert paragraph.startswith(f"selfprune: {typed}: ")
    assert expected in paragraph
    # names of choices may hold such a word
    assert [word for word in JARGON if re.search(rf"{re.escape(word)}(?!ure)", paragraph.replace(typed, ""))] == []
    assert "`selfprune options " in paragraph


@pytest.mark.parametrize("typed", [typed for typed in TYPED if typed not in BY_THE_COMMAND])
def test_a_mistake_is_told_as_it_was_typed_with_what_was_expected(typed, asked):
    check(f"selfprune: {asked(typed)}", typed, TYPED[typed])


@pytest.mark.parametrize("typed", BY_THE_COMMAND)
def test_a_command_tells_a_mistake_in_one_paragraph_and_leaves_nothing(typed, said):
    check(said(run, typed), typed, TYPED[typed])


def test_the_choice_that_has_the_option_is_tried_first_whatever_their_order(said):
    check(said(run, "proposer.n_windows=x", "proposer=self_pruner"), "proposer.n_windows=x", "takes a whole number, got x;")


@pytest.mark.parametrize(
    ("command", "typed", "expected", "group"),
    [
        (prune, "seed=x", "seed takes a whole number, got x;", "prune"),
        (prune, "search.n_finalists=3", "there is no option search;", "search"),
        (prune, "pruner=wnada", "the choices, nearest first: wanda,", "pruner"),
        (latency, "n_tokens=x", "n_tokens takes a whole number, got x;", "latency"),
    ],
)
def test_the_other_commands_tell_theirs(command, typed, expected, group, said):
    paragraph = said(command, typed)
    check(paragraph, typed, expected)
    assert f"`selfprune options {group}`" in paragraph


@pytest.mark.parametrize(
    ("overrides", "typed"),
    [
        (["budget.sparsity=abc", "seed=0,1"], "budget.sparsity=abc"),
        (["budget.sparsity=0.5,abc", "seed=0,1"], "budget.sparsity=abc"),
        (["search=nope,tpe"], "search=nope"),
    ],
)
def test_a_sweep_tells_a_mistake_once_before_it_makes_a_folder(overrides, typed, said):
    check(said(run, "-m", *overrides), typed, "")


@pytest.mark.parametrize("typed", ["budget.sparsity=1.5", "budget.sparsity=${nope}"])
def test_a_mistake_that_all_jobs_share_is_told_once(typed, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(["-m", typed, "seed=0,1"]) == 2
    GlobalHydra.instance().clear()
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("selfprune: ") == 1
    assert said.removeprefix("selfprune: ").startswith("budget.sparsity")


def test_the_first_of_many_mistakes_is_found_by_halves(asked, monkeypatch):
    composed, counted = CommandLine._composed, []
    monkeypatch.setattr(CommandLine, "_composed", lambda self, overrides: counted.append(overrides) or composed(self, overrides))
    right = [f"data.n_report={n}" for n in range(1, 31)]
    assert asked(*right[:20], "seed=x", *right[20:], "search.nope=3").startswith("seed=x: seed takes a whole number, got x;")
    assert len(counted) < 10
