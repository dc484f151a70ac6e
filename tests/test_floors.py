"""The house of the design: rooms in the order of a run's story, and imports only from a room to those before it."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "selfprune"

ROOMS = (
    "storage", "allocations", "checkpoints", "models", "exports", "embedded", "data", "statistics", "pruners", "recoveries",
    "timing", "language_models", "evaluators", "training", "proposers", "levels", "pruning", "search", "reports", "configs",
    "runs",
)  # fmt: skip
"""A package imports only packages before it."""
FAMILIES = {"pruners", "evaluators", "proposers"}
"""Packages of methods, which never import each other."""
FOR_ALL = {"__init__", "errors", "seeds"}
"""Files at the top that every package may import, and that import none."""
COMMANDS = {"__main__", "prune", "inspect", "latency", "gguf", "options", "cliff", "compare", "sweep", "watch"}
"""Files at the top that may import every package, and that no package imports."""
MOST_FILES = 15


def floor_of(module: str) -> int | None:
    """The floor of a module, named by its path without suffix, such as `pruners/weights/wanda`; None where it has none."""
    room, _, _ = module.partition("/")
    if "/" in module:
        return ROOMS.index(room) if room in ROOMS else None
    return -1 if module in FOR_ALL else len(ROOMS) if module in COMMANDS else None


def imported_modules(module: str, source: str, known: set[str]) -> set[str]:
    """The modules of the package that a source imports, wherever in the file it does so, but not for type checkers alone."""
    found = set()
    tree = ast.parse(source)
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
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
    """What breaks the order in a package, given as module -> source."""
    said = [f"{module} is in no room: see ROOMS in tests/test_floors.py" for module in sources if floor_of(module) is None]
    imports = {module: imported_modules(module, source, set(sources)) for module, source in sources.items()}
    for module, others in imports.items():
        here = floor_of(module)
        for other in sorted(others):
            there = floor_of(other)
            if here is None or there is None:
                continue
            if there > here:
                said.append(f"{module} imports {other}: imports go to earlier rooms only")
            families = {name.split("/")[0] for name in (module, other)}
            if len(families) == 2 and families <= FAMILIES:
                said.append(f"{module} imports {other}: the families of methods never import each other")
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        said.append(f"imports go in a circle: {' -> '.join(error.args[1])}")
    return said


def test_imports_go_to_earlier_rooms_only():
    sources = {path.relative_to(SOURCE).with_suffix("").as_posix(): path.read_text() for path in SOURCE.rglob("*.py")}
    assert "allocations/level_grid" in sources
    assert breaches(sources) == []


@pytest.mark.parametrize(
    "statement",
    ["import selfprune.search.loop", "from selfprune.search.loop import run", "from selfprune.search import loop",
     "from ..search import loop", "from ..search.loop import run", "def late():\n    from selfprune.search.loop import run"],
)  # fmt: skip
def test_an_upward_import_is_caught_however_it_is_spelled(statement):
    assert breaches({"allocations/unit": statement, "search/loop": ""}) == [
        "allocations/unit imports search/loop: imports go to earlier rooms only"
    ]


def test_a_family_that_imports_another_is_caught():
    sources = {"proposers/closed_forms/owl": "from selfprune.pruners.weights.wanda import Wanda", "pruners/weights/wanda": ""}
    assert breaches(sources) == [
        "proposers/closed_forms/owl imports pruners/weights/wanda: the families of methods never import each other"
    ]


def test_a_command_that_is_imported_is_caught():
    assert breaches({"runs/run": "import selfprune.prune", "prune": ""}) == [
        "runs/run imports prune: imports go to earlier rooms only"
    ]


def test_a_relative_import_inside_a_room_is_allowed():
    assert breaches({"pruners/weights/wanda": "from ..base import Pruner", "pruners/base": "", "pruners/__init__": ""}) == []


def test_a_circle_is_caught():
    sources = {"search/loop": "import selfprune.search.racing", "search/racing": "import selfprune.search.loop"}
    assert breaches(sources)[0].startswith("imports go in a circle")


@pytest.mark.parametrize("module", ["attic", "attic/chest"])
def test_a_file_in_no_room_is_caught(module):
    assert breaches({module: ""}) == [f"{module} is in no room: see ROOMS in tests/test_floors.py"]


def test_no_folder_has_more_files_than_can_be_seen_at_once():
    folders = [path for path in (SOURCE, *SOURCE.rglob("*")) if path.is_dir() and path.name != "__pycache__"]
    n_files = {str(folder.relative_to(SOURCE)): sum(path.is_file() for path in folder.iterdir()) for folder in folders}
    assert {name: n for name, n in n_files.items() if n > MOST_FILES} == {}


def test_the_manual_lists_the_rooms_in_order_each_with_its_own_first_sentence():
    manual = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    told = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*) \|$", manual, re.MULTILINE)
    docstrings = [ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text())) for room in ROOMS]
    first = [(str(n), room, text.splitlines()[0]) for n, (room, text) in enumerate(zip(ROOMS, docstrings, strict=True), 1)]
    assert told == first
