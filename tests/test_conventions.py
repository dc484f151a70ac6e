"""Conventions that a machine can check."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from selfprune import __version__

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "selfprune"
SOURCES = {path: path.read_text() for path in sorted(SOURCE.rglob("*.py"))}
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))

GROUP_OF_FAMILY = {
    "pruners": "pruner",
    "recoveries": "recovery",
    "training": "training",
    "proposers": "proposer",
    "evaluators/window_metrics": "evaluator",
    "language_models": "language_model",
}
NOT_A_METHOD = {
    "language_models/calls": "a line of the record of all calls",
    "training/gradient_training": "what trainings by gradients share",
    "training/schedule": "when what goes",
    "training/gradual_cuts": "the cuts while a model learns",
    "training/hidden_states": "a loss of distillation",
    "training/loop": "the loop of all trainings by gradients",
    "training/kept_state": "what a training goes on from",
    "training/targets": "the dense model's answers on disk",
    "training/trained_parameters": "what of a model is trained",
    "pruners/weight_pruner": "what pruners of single weights share",
    "pruners/structure_pruner": "what pruners of heads and channels share",
    "pruners/gate_pruner": "what pruners share that look at gradients of gates",
    "pruners/refit": "least squares of the weights that stay",
    "pruners/selection": "which weights go first",
    "pruners/updates": "what pruners that change the kept weights share",
    "pruners/weights/scaled_layer": "what ADMM and ALPS share",
    "proposers/tied": "what search.plain makes of any proposer",
    "proposers/move_values": "what gradients tell proposers of every unit",
    "proposers/unit_places": "the units by kind and by block",
    "proposers/unit_values": "what a weight of every unit is worth",
    "proposers/coefficients": "few numbers for a whole allocation, of self_pruner and optuna_sampler",
    "proposers/prompted/unit_view": "the units as a language model reads about them",
    "proposers/prompted/coefficient_replies": "coefficients as a language model reads and writes them",
    "proposers/prompted/moves": "the exchanges of weights that self_pruner asks for",
    "proposers/prompted/operators": "the prompts of self_pruner, and how their replies are read",
    "proposers/prompted/layer_rates": "how self_pruner_paper turns replies into sparsities",
    "proposers/prompted/paper_prompts": "what self_pruner_paper asks",
    "proposers/prompted/replies": "reads JSON out of replies",
    "language_models/sampler": "samples language_model=self and local under a grammar",
    "language_models/endpoint/endpoint": "asks the endpoint that language_model=openai_compatible describes",
    "language_models/endpoint/budget": "what such an endpoint may be asked",
    "language_models/endpoint/client": "one request to it",
    "language_models/endpoint/replies": "reads its answers",
    "language_models/endpoint/requests": "how it is asked",
    "language_models/cached_batch": "the key-value cache of the sampler",
    "language_models/recorded": "stores the calls of any other language model",
}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def public_definitions(tree: ast.Module | ast.ClassDef, prefix: str = "") -> list[tuple[str, Definition]]:
    """Public functions, classes and their public methods; not what is nested in a function."""
    found = []
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            found.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += public_definitions(node, f"{prefix}{node.name}.")
    return found


def undocumented(source: str) -> list[str]:
    tree = ast.parse(source)
    is_empty = not tree.body
    module = [] if is_empty or ast.get_docstring(tree) else ["the module"]
    return module + [name for name, node in public_definitions(tree) if not ast.get_docstring(node)]


def prints(source: str) -> list[int]:
    """Lines that call `print`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def test_every_public_name_has_a_docstring():
    assert {relative(path): names for path, source in SOURCES.items() if (names := undocumented(source))} == {}


def test_nothing_under_src_prints():
    found = {relative(path): lines for path, source in SOURCES.items() if (lines := prints(source))}
    assert found == {}, "log it, or write it to the stream that the caller gave"


def test_no_file_is_longer_than_250_lines():
    found = {relative(path): n_lines for path, source in SOURCES.items() if (n_lines := len(source.splitlines())) > 250}
    assert found == {}, "two rooms in one: split it by what the halves know"


def test_nothing_is_left_to_do():
    assert [relative(path) for path, source in SOURCES.items() if re.search(r"\b(?:TODO|FIXME|XXX)\b", source)] == []


def test_no_two_files_of_tests_have_one_name():
    """Which pytest could not import both."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, n in names.items() if n > 1] == []


def test_no_file_is_named_after_nothing():
    homeless = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [relative(path) for path in SOURCES if path.stem in homeless] == []


def test_the_checks_see_what_they_look_for():
    assert prints("def f():\n    print(1)\n\nlogger.print(2)") == [2]
    assert undocumented("class A:\n    def method(self): ...\n    def _hidden(self): ...") == ["the module", "A", "A.method"]


def methods(family: str) -> list[str]:
    """The methods of a family, by the name of their module."""
    files = {path.stem: path.relative_to(SOURCE).with_suffix("").as_posix() for path in (SOURCE / family).rglob("*.py")}
    return sorted(stem for stem, file in files.items() if stem not in {"__init__", "base"} and file not in NOT_A_METHOD)


@pytest.mark.parametrize("family", GROUP_OF_FAMILY)
def test_every_method_has_a_yaml_of_its_name_and_every_yaml_a_method(family):
    """A YAML may also set options of another one, which it then names in its defaults, and with whose name its own begins."""
    choices = sorted(path.stem for path in (ROOT / "conf" / GROUP_OF_FAMILY[family]).glob("*.yaml"))
    variants = [name for name in choices if name not in methods(family)]
    assert [name for name in choices if name not in variants] == methods(family)
    for variant in variants:
        base = max((name for name in methods(family) if variant.startswith(f"{name}_")), key=len, default=None)
        assert base is not None
        assert f"  - {base}\n" in (ROOT / "conf" / GROUP_OF_FAMILY[family] / f"{variant}.yaml").read_text()
    assert choices != []


@pytest.mark.parametrize("file", ["README.md", "CITATION.cff"])
def test_the_papers_of_the_methods_and_no_others_are_named(file):
    number = re.compile(r"\b\d{4}\.\d{5}\b")
    files = [path for family in ("pruners", "proposers") for path in (SOURCE / family).rglob("*.py")]
    named = {found for path in files for found in number.findall(ast.get_docstring(ast.parse(path.read_text())) or "")}
    assert named == set(number.findall((ROOT / file).read_text()))


def test_the_citation_can_be_read_and_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert all({"type", "title", "authors", "year", "notes"} <= reference.keys() for reference in citation["references"])


def test_every_exception_still_exists():
    assert [name for name in NOT_A_METHOD if not (SOURCE / f"{name}.py").exists()] == []


def test_the_config_leaves_experiment_to_the_command_line():
    assert not re.search(r"^\s*-\s*(override\s+)?/?experiment\b", (ROOT / "conf" / "config.yaml").read_text(), re.MULTILINE)


def test_there_are_experiments():
    assert {"smoke", "llama7b"} <= {path.stem for path in EXPERIMENTS}


def test_every_experiment_opens_with_its_command():
    headers = {path.stem: re.match(r"(#.*\n)*", path.read_text())[0] for path in EXPERIMENTS}
    command = r"python -m selfprune\b.*\+experiment={}\b"
    silent = [name for name, header in headers.items() if not re.search(command.format(re.escape(name)), header)]
    assert silent == [], "say how to run it, in a comment above all else"
    assert [name for name, header in headers.items() if "# @package _global_" not in header] == []
