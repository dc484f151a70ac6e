"""Counts how many small mistakes in the source the tests notice, so that shorter tests can be held against longer ones.

    python benchmarks/mutants.py
    python benchmarks/mutants.py --n 63 --seed 0 --before ../before

Each mutant changes one comparison, sum or product, number, truth value, `and`, `or`, `not` or returned value of one line; the
tests that belong to its module then run until the first failure, in a copy of the repository. A mutant is killed when a test
fails or the time is over, and has survived when all pass. The same seed gives the same mutants, whatever the tests. Without a
mutant all have to pass.

With an earlier state of the repository the mutants are of lines that stand there too, once and between the same lines, in
whatever module. Each state then judges the same change to its own source by its own tests.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
ROOMS = {
    "pruners": (["pruners/**/*.py"], ["tests/pruners"]),
    "levels": (["levels/*_levels.py", "levels/level_store.py"], ["tests/levels"]),
    "projection": (["allocations/projection.py"], ["tests/allocations"]),
    "racing": (["search/racing.py"], ["tests/search/test_racing.py", "tests/search/test_loop.py"]),
    "proposers": (["proposers/**/*.py"], ["tests/proposers"]),
    "language_models": (["language_models/**/*.py"], ["tests/language_models"]),
}
"""Modules under src/selfprune, and the tests that belong to them."""
SHARES = {"pruners": 2}
"""Mutants of a room for one of any other."""
COPIED = (
    "src",
    "tests",
    "conf",
    "benchmarks",
    "experiments",
    "notebooks",
    "README.md",
    "pyproject.toml",
    "Makefile",
    "constraints.txt",
)
NO_CACHE = shutil.ignore_patterns("__pycache__")
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div,
    ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One line of a module, changed."""

    room: str
    module: str
    line: int
    kind: str
    before: str
    after: str
    place: tuple[str, ...]
    """The line between its neighbours, without indents."""


def changed(node: ast.AST) -> ast.AST | None:
    """The node as a mistake would have it; None where there is none to make."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=right) if type(op) in OTHER:
            return ast.Compare(left, [OTHER[type(op)]()], right)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OTHER and not isinstance(left, ast.Constant | ast.JoinedStr):
            return ast.BinOp(left, OTHER[type(op)](), right)
        case ast.BoolOp(op=op, values=values):
            return ast.BoolOp(OTHER[type(op)](), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Constant(value=bool(value)):
            return ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            return ast.Constant(value + 1)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            return ast.Return(ast.Constant(None))
    return None


def without_words(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below, but for messages, annotations and what decorates: a change there is no mistake that tests should see."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise | ast.JoinedStr | ast.AnnAssign):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from without_words(child)


def mutants_of(room: str, path: Path, source: Path) -> list[Mutant]:
    """Every mutant of a module."""
    text = path.read_text()
    lines, found = text.splitlines(), []
    for node in without_words(ast.parse(text)):
        other = changed(node)
        if other is None or node.lineno != node.end_lineno:
            continue
        line = lines[node.lineno - 1]
        start, end = (len(line.encode()[:at].decode()) for at in (node.col_offset, node.end_col_offset))
        new = ast.unparse(ast.fix_missing_locations(other))
        new = new if isinstance(node, ast.Return) else f"({new})"
        kind, module = type(node).__name__, path.relative_to(source).as_posix()
        after = line[:start] + new + line[end:]
        found.append(Mutant(room, module, node.lineno, kind, line, after, place(lines, node.lineno)))
    return found


def place(lines: list[str], number: int) -> tuple[str, ...]:
    """A line between its neighbours, without indents."""
    return tuple(line.strip() for line in lines[max(0, number - 2) : number + 1])


class Earlier:
    """An earlier state of the repository, in which lines of today are found."""

    def __init__(self, source: Path) -> None:
        """Reads all its modules."""
        self._lines: dict[tuple[str, ...], list[tuple[str, int, str]]] = defaultdict(list)
        for path in (source / "src/selfprune").rglob("*.py"):
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines, 1):
                self._lines[place(lines, number)].append((path.relative_to(source).as_posix(), number, line))

    def same(self, mutant: Mutant) -> Mutant | None:
        """The same change there; None where the line does not stand there once."""
        if len(found := self._lines[mutant.place]) != 1:
            return None
        module, number, line = found[0]
        after = line[: len(line) - len(line.lstrip())] + mutant.after.lstrip()
        return replace(mutant, module=module, line=number, before=line, after=after)


def drawn(source: Path, n: int, seed: int, before: Earlier | None = None) -> list[Mutant]:
    """So many mutants, each room with its share, and each module and kind of change with the like."""
    rng, weights = random.Random(seed), {room: SHARES.get(room, 1) for room in ROOMS}
    mutants = []
    for room, (patterns, _) in ROOMS.items():
        paths = sorted({path for pattern in patterns for path in (source / "src/selfprune").glob(pattern)})
        of_all = [[m for m in mutants_of(room, path, source) if not before or before.same(m)] for path in paths]
        by_module = [found for found in of_all if found]
        rng.shuffle(by_module)
        for i in range(round(n * weights[room] / sum(weights.values()))):
            left = by_module[i % len(by_module)]
            kind = rng.choice(sorted({found.kind for found in left}))
            mutants.append(rng.choice([found for found in left if found.kind == kind]))
            by_module[i % len(by_module)] = [found for found in left if found != mutants[-1]] or left
    return mutants


def outcome(tree: Path, tests: list[str], limit: float, log: Path) -> str:
    """What the tests say of a tree: `passed`, `failed` or `too long`. A fork has torch and its like imported already."""
    child = os.fork()
    if not child:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree / "src"))
        os.environ |= {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
        import pytest

        code = 3
        try:
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
        finally:
            os._exit(int(code))
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too long"


def judged(mutant: Mutant, tree: Path, limit: float, log: Path) -> str:
    """What the tests say of a mutant in a tree; those of its module begin."""
    path, (_, tests) = tree / mutant.module, ROOMS[mutant.room]
    original = path.read_text()
    lines = original.splitlines(keepends=True)
    assert lines[mutant.line - 1].rstrip("\n") == mutant.before
    lines[mutant.line - 1] = mutant.after + "\n"
    first = [found.relative_to(tree).as_posix() for name in tests for found in (tree / name).glob(f"test_{path.stem}.py")]
    path.write_text("".join(lines))
    try:
        return outcome(tree, [*first, *tests], limit, log)
    finally:
        path.write_text(original)


def copy_of(source: Path, folder: Path) -> Path:
    """A copy of a state of the repository, beside the same `shared`, if any."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for name in COPIED:
        whole = source / name
        shutil.copytree(whole, tree / name, ignore=NO_CACHE) if whole.is_dir() else shutil.copy2(whole, tree / name)
    if (source.parent / "shared").exists():
        (folder / "shared").symlink_to((source.parent / "shared").resolve())
    return tree


def main() -> None:
    """Draws, runs and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="an earlier state of the repository, judged by its own tests")
    parser.add_argument("--n", type=int, default=63)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300, help="seconds for the tests of a mutant")
    options = parser.parse_args()
    console, counts = Console(width=170), Counter[tuple[str, str, str]]()
    sys.dont_write_bytecode = True
    import hypothesis  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    before = Earlier(options.before) if options.before else None
    with tempfile.TemporaryDirectory() as folder:
        trees = {"today": copy_of(ROOT, Path(folder, "today"))}
        if before:
            trees["before"] = copy_of(options.before, Path(folder, "before"))
        for name, tree in trees.items():
            tests = sorted({test for _, tests in ROOMS.values() for test in tests})
            if outcome(tree, tests, options.limit * len(ROOMS), Path(folder, "log")) != "passed":
                sys.exit(f"the tests do not pass without a mutant ({name}): {Path(folder, 'log').read_text()[-2000:]}")
        for mutant in drawn(ROOT, options.n, options.seed, before):
            found = {"today": judged(mutant, trees["today"], options.limit, Path(folder, "log"))}
            if before and (same := before.same(mutant)):
                found["before"] = judged(same, trees["before"], options.limit, Path(folder, "log"))
            counts.update((mutant.room, state, word) for state, word in found.items())
            said = " ".join(f"{word:8}" for word in found.values())
            console.print(f"{said} {mutant.module}:{mutant.line}: {mutant.after.strip()}", markup=False, highlight=False)
            sys.stdout.flush()
        table = Table("room", "tests", "killed", "of them too long", "survived")
        for room in [*ROOMS, "all"]:
            for state in trees:
                failed, slow, passed = (
                    sum(n for (of, when, how), n in counts.items() if (when, how) == (state, word) and room in (of, "all"))
                    for word in ("failed", "too long", "passed")
                )
                table.add_row(room, state, str(failed + slow), str(slow), str(passed))
        console.print(table)


if __name__ == "__main__":
    main()
