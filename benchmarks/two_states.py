"""Times one command of selfprune in two states of the repository, side by side, so that a change can be held against its parent.

    git worktree add ../before HEAD~1
    python benchmarks/two_states.py ../before . --n 5
    python benchmarks/two_states.py ../before . --n 5 -- +experiment=smoke harness=none

Both states run at once, each with one thread on a processor of its own, and change processors from pair to pair: what slows the
machine for a while slows both. Linux only. The first 12 digits of every archive's SHA-256 tell whether the results are the same.
"""

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console


def start(state: Path, core: int, folder: Path, overrides: list[str]) -> int:
    """Starts a run of a state on one processor, and gives the number of its process."""
    if pid := os.fork():
        return pid
    os.sched_setaffinity(0, {core})
    os.chdir(state)
    log = os.open(f"{folder}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    command = [sys.executable, "-m", "selfprune", *overrides, f"run_folder={folder}"]
    os.execve(command[0], command, {**os.environ, "PYTHONPATH": str(state / "src"), "OMP_NUM_THREADS": "1"})


def run_pair(states: list[Path], cores: list[int], folder: Path, overrides: list[str]) -> list[tuple[float, float, str]]:
    """Wall seconds, processor seconds and archive of each state."""
    began = time.monotonic()
    running = {
        start(state, core, folder / str(i), overrides): i for i, (state, core) in enumerate(zip(states, cores, strict=True))
    }
    found: dict[int, tuple[float, float, str]] = {}
    while len(found) < len(states):
        pid, status, usage = os.wait4(-1, 0)
        i = running[pid]
        if status:
            sys.exit(f"the run of {states[i]} failed: {(folder / f'{i}.txt').read_text()[-2000:]}")
        archive = hashlib.sha256((folder / str(i) / "archive.jsonl").read_bytes()).hexdigest()[:12]
        found[i] = time.monotonic() - began, usage.ru_utime + usage.ru_stime, archive
    return [found[i] for i in range(len(states))]


def main() -> None:
    """Prints every pair, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--n", type=int, default=5, help="pairs")
    parser.add_argument("overrides", nargs="*", help="of the run; after --")
    arguments = parser.parse_args()
    states = [arguments.before.resolve(), arguments.after.resolve()]
    if wrong := [str(state) for state in states if not (state / "src" / "selfprune").is_dir()]:
        parser.error(f"{wrong[0]} is no state of the repository: it has no src/selfprune; make one with `git worktree add`")
    console = Console()
    cores = sorted(os.sched_getaffinity(0))[:2]
    pairs = []
    for _ in range(arguments.n):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append(run_pair(states, cores, Path(folder), arguments.overrides))
        cores.reverse()
        (before, cpu_before, hash_before), (after, cpu_after, hash_after) = pairs[-1]
        console.print(
            f"wall {before:.1f} -> {after:.1f} s ({after / before:.3f}), processor {cpu_before:.1f} -> {cpu_after:.1f} s, "
            f"archives {hash_before} {hash_after}"
        )
    for j, what in enumerate(("wall", "processor")):
        medians = [statistics.median(float(pair[i][j]) for pair in pairs) for i in range(2)]
        console.print(f"{what}: medians {medians[0]:.1f} and {medians[1]:.1f} s, ratio {medians[1] / medians[0]:.3f}")


if __name__ == "__main__":
    main()
