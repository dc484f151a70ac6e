"""The house of the design: floors, and imports only downwards."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "selfprune"

FLOOR_OF_FILE = {
    "load_failures": 1,
    "methods": 4, "pruning_seconds": 3, "forecast": 4,
    "__init__": 0, "errors": 0, "allocation": 0, "cost": 0, "projection": 0, "budget": 0, "latency_table": 0, "candidate": 0,
    "objective": 0, "pareto": 0, "signals": 0, "path_fields": 0, "recorded_files": 0,
    "models": 1, "units": 1, "preflight": 1, "data": 1, "data_config": 1, "hub_texts": 1, "text_files": 1, "self_generated": 1,
    "archive": 1, "winners": 1, "environment": 1,
    "display": 1, "conf_path": 1, "journal": 1, "lock": 1, "prefix": 1, "blocks": 1, "placement": 1,
    "resources": 1, "window_start": 1, "tensor_file": 1, "report_file": 1, "encoding": 1,
    "carried_files": 1, "checkpoint_source": 1, "stored_parts": 3, "pruned_checkpoint": 3,
    "held_folder": 1, "extension": 4, "searches": 4, "report_rows": 4, "weight_checks": 1, "vocabulary": 1, "chance": 1,
    "kernels": 1, "checkpoint_files": 1, "stored_tensors": 1, "tensor_cache": 1, "stored_units": 1, "sparsity": 1,
    "unit_seconds": 3, "walk": 3, "gather": 3, "gradients": 3, "shards": 3, "built_levels": 3, "kept_statistics": 3,
    "levels_config": 3, "calibration": 3, "measurements": 3, "level_store": 3, "ladder": 3, "racing": 3, "scoring": 3,
    "first_round": 3, "finalists": 3, "paired": 0, "contest": 4, "conclusions": 4, "report_table": 4, "sparsity_picture": 4,
    "search": 3, "search_windows": 3, "swap_gradients": 3, "export": 3,
    "report": 4, "task_columns": 4, "markdown": 4, "ledger": 4, "dialogues": 4, "results": 4, "pictures": 4, "config": 4,
    "run": 4, "run_folder": 4, "one_shot": 4, "choices": 4, "path_options": 4, "command_line": 4,
    "latency_measurement": 4, "census_tables": 4, "workbench": 4,
    "coverage": 3, "recorded_config": 4,
    "__main__": 5, "entry": 5, "options": 5, "option_list": 4, "manual": 1, "inspect": 5, "prune": 5, "latency": 5,
}  # fmt: skip
FLOOR_OF_FOLDER = {"language_models": 1, "embedded": 1, "pruners": 2, "proposers": 2, "evaluators": 2, "recovery": 2}


def floor_of(module: str) -> int | None:
    """The floor of a module, named by its path without suffix, such as `pruners/wanda`; None where it has none."""
    folder, _, _ = module.partition("/")
    return FLOOR_OF_FOLDER.get(folder) if "/" in module else FLOOR_OF_FILE.get(module)


def imported_modules(module: str, source: str, known: set[str]) -> set[str]:
    """The modules of the package that a source imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ["selfprune", *module.split("/")][: -node.level] if node.level else []
            base = ".".join([*start, node.module] if node.module else start)
            dotted = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        paths = [name.split(".")[1:] for name in dotted if name.startswith("selfprune.")]
        spelled = ["/".join(path) for path in paths]
        found |= {name for path in spelled for name in (path, f"{path}/__init__") if name in known}
    return found - {module}


def breaches(sources: dict[str, str]) -> list[str]:
    """What breaks the floors in a package, given as module -> source."""
    said = [f"{module} is on no floor: give it a floor in tests/test_floors.py" for module in sources if floor_of(module) is None]
    imports = {module: imported_modules(module, source, set(sources)) for module, source in sources.items()}
    for module, others in imports.items():
        here = floor_of(module)
        for other in sorted(others):
            there = floor_of(other)
            if here is None or there is None:
                continue
            if there > here:
                said.append(f"{module} (floor {here}) imports {other} (floor {there}): imports go downwards only")
            families = {name.split("/")[0] for name in (module, other) if "/" in name}
            if there == here and len(families) == 2:
                said.append(f"{module} imports {other}: the families of a floor never import each other")
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        said.append(f"imports go in a circle: {' -> '.join(error.args[1])}")
    return said


def test_imports_go_downwards_only():
    sources = {path.relative_to(SOURCE).with_suffix("").as_posix(): path.read_text() for path in SOURCE.rglob("*.py")}
    assert "allocation" in sources
    assert breaches(sources) == []


@pytest.mark.parametrize(
    "statement",
    ["import selfprune.search", "from selfprune.search import run", "from selfprune import search", "from . import search",
     "from .search import run", "def late():\n    from selfprune.search import run"],
)  # fmt: skip
def test_an_upward_import_is_caught_however_it_is_spelled(statement):
    assert breaches({"allocation": statement, "search": ""}) == [
        "allocation (floor 0) imports search (floor 3): imports go downwards only"
    ]


def test_a_family_that_imports_another_is_caught():
    sources = {"pruners/wanda": "from selfprune.proposers.owl import OWL", "proposers/owl": ""}
    assert breaches(sources) == ["pruners/wanda imports proposers/owl: the families of a floor never import each other"]


def test_a_relative_import_inside_a_family_is_allowed():
    assert breaches({"pruners/wanda": "from .base import ScorePruner", "pruners/base": "", "pruners/__init__": ""}) == []


def test_a_circle_is_caught():
    assert breaches({"search": "import selfprune.racing", "racing": "import selfprune.search"})[0].startswith(
        "imports go in a circle"
    )


def test_a_file_without_a_floor_is_caught():
    assert breaches({"attic": ""}) == ["attic is on no floor: give it a floor in tests/test_floors.py"]


def test_the_readme_lists_every_module_on_its_floor():
    readme = (SOURCE.parents[1] / "README.md").read_text()
    floors = dict(re.findall(r"^\| ([0-5]) \w+ \| (.*) \|$", readme, re.MULTILINE))
    told = {name: int(floor) for floor, modules in floors.items() for name in re.findall(r"`(\w+)`", modules)}
    assert told == {name: floor for name, floor in FLOOR_OF_FILE.items() if name != "__init__"}
