"""How a method joins: by the steps of the manual, as written; and what is said of one that is not complete."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from selfprune.configs.command_line import guarded
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import RunConfig, register_schemas, to_config
from selfprune.configs.methods import METHODS, find_methods, register_methods
from selfprune.configs.mistakes.command_mistakes import mistake_of
from selfprune.configs.mistakes.override_mistakes import CommandLine

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
STEPS = dict(BLOCKS[:3])


ONE_AFTER_THE_OTHER = """
import json, os, runpy, sys
import pytest
# forked from a process that has the libraries, and selfprune with them, which is to be that of this folder
for name in [name for name in sys.modules if name.partition(".")[0] in ("selfprune", "conftest", "shared")]:
    del sys.modules[name]
sys.path.insert(0, os.path.join(os.getcwd(), "src"))
conformance, pruning = map(json.loads, sys.argv[1:])
assert pytest.main(conformance) == 0
sys.argv = pruning
runpy.run_module(pruning[0], run_name="__main__", alter_sys=True)
"""
"""Both commands in one process."""


@pytest.fixture
def compose_with(tmp_path, monkeypatch):
    """Adds a method's two files, composes a run that takes it, and gives the typed config or what the command would say."""

    register_schemas()

    def call(source, group="pruner", yaml="defaults:\n  - mine_schema\n", capsys=None):
        package, _ = METHODS[group]
        (tmp_path / "methods").mkdir()
        if source is not None:
            (tmp_path / "methods" / "mine.py").write_text(source)
        (tmp_path / "conf").mkdir()
        for known in conf_folder().iterdir():
            if known.name != group:
                (tmp_path / "conf" / known.name).symlink_to(known)
        shutil.copytree(conf_folder() / group, tmp_path / "conf" / group)
        if yaml is not None:
            (tmp_path / "conf" / group / "mine.yaml").write_text(yaml)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "methods")])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.mine", raising=False)
        made = []

        def work():
            register_methods()
            with initialize_config_dir(str(tmp_path / "conf"), version_base=None):
                made.append(to_config(compose("config", [f"{group}=mine"]), RunConfig))

        code = guarded(work, lambda error: mistake_of(error, lambda: CommandLine("config")), lambda _: "")
        return made[0] if code == 0 else re.sub(r"\s+", " ", capsys.readouterr().err)

    yield call
    for group, (package, _) in METHODS.items():
        sys.modules.pop(f"{package.__name__}.mine", None)
        ConfigStore.instance().repo[group].pop("mine_schema.yaml", None)


def test_the_three_steps_of_the_readme_work_as_written(python, tmp_path):
    for name in ("src", "conf", "tests/pruners"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "tests/in_turn.py", tmp_path / "src")
    (tmp_path / "src/selfprune/pruners/weights/mine.py").write_text(STEPS["python"])
    (tmp_path / "conf/pruner/mine.yaml").write_text(STEPS["yaml"])
    conformance, pruning = STEPS["bash"].splitlines()
    assert conformance.split()[0] == "pytest"
    smaller = "data.n_tokens_per_window=32 data.n_calibration=2"
    interpreter, _, module, *overrides = f"{pruning} {smaller}".replace("FOLDER", str(tmp_path / "out")).split()
    assert (interpreter, module) == ("python", "selfprune.prune")
    both = [*conformance.split()[1:], "-q", "-p", "no:cacheprovider"], [module, *overrides]
    done = python("-c", ONE_AFTER_THE_OTHER, *map(json.dumps, both), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20
    record = (tmp_path / "out" / "selfprune.json").read_text()
    assert '"power": 0.7' in record
    assert '"sparsity": 0.5' in record


def test_proposers_and_evaluators_join_by_the_same_two_files(compose_with):
    source = (ROOT / "src/selfprune/evaluators/window_metrics/perplexity.py").read_text()
    config = compose_with(source.replace("class Perplexity", "class Mine"), "evaluator")
    assert type(config.evaluator).__name__ == "Mine"
    assert find_methods("evaluator").keys() == {"kl_divergence", "mine", "perplexity"}


def test_a_proposer_joins_so_too(compose_with):
    source = (ROOT / "src/selfprune/proposers/closed_forms/uniform.py").read_text()
    config = compose_with(source.replace("class Uniform", "class Mine"), "proposer")
    assert type(config.proposer).__name__ == "Mine"


COMPLETE = STEPS["python"]
NEAR_MISSES = {
    "abstract": (
        re.sub(r"    def statistics.*?\n\n", "", COMPLETE, count=1, flags=re.DOTALL),
        "but its class Mine lacks statistics();",
    ),
    "empty": (re.sub(r"    power: float = 0.5.*", "", COMPLETE, flags=re.DOTALL), "class Mine lacks scores() and statistics();"),
    "plain": (COMPLETE.replace("@dataclass\n", ""), "but its class Mine is not decorated with @dataclass;"),
    "another": (COMPLETE.replace("(ScorePruner)", ""), "but no class in it does (found Mine);"),
    "nothing": ('"""Nothing yet."""\n', "but no class in it does (found none);"),
    "two": (
        COMPLETE + COMPLETE.replace("class Mine", "class Yours"),
        "but it holds 2, Mine and Yours: give each a file of its own;",
    ),
    "broken": (
        COMPLETE + "\nscores = Mine.score\n",
        "cannot be imported (AttributeError: type object 'Mine' has no attribute 'score'",
    ),
    "misspelt": (COMPLETE + "\ndef f(:\n", "cannot be imported (SyntaxError: invalid syntax (mine.py, line "),
    "no option": (COMPLETE.replace("power: float = 0.5", "power: object.__class__ = int"), "has a field that is no option ("),
    "no file": (None, "but there is no such file;"),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_a_near_miss_says_what_is_missing(case, compose_with, capsys):
    source, expected = NEAR_MISSES[case]
    said = compose_with(source, capsys=capsys)
    assert said.startswith("selfprune: pruner=mine cannot be used: ")
    assert "mine_schema, which must be the one dataclass in " in said
    assert "derives from Pruner and has all its methods" in said
    assert expected in said
    assert "wanda" in find_methods("pruner")


def test_a_method_without_its_yaml_is_told_how_it_reads(compose_with, capsys):
    said = compose_with(COMPLETE, yaml=None, capsys=capsys)
    assert "mine.py holds the method, but " in said
    assert said.endswith('which offers it, is missing; write that file, with the lines "defaults:" and " - mine_schema" ')


def test_a_yaml_without_its_schema_is_told_what_it_must_begin_with(compose_with, capsys):
    said = compose_with(COMPLETE, yaml="power: 2\n", capsys=capsys)
    assert "the config needs a pruner; choose one of " in said
    assert 'has options (power) but no method: its YAML file must begin with the lines "defaults:"' in said
