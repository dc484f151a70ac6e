"""One search by one process and by two: candidates a second, memory of every process, and whether the archives agree.

    OMP_NUM_THREADS=1 python benchmarks/search_workers.py

A random search (no gradients, no language model: what is dealt out) on the embedded model or another, with one thread for every
process. Memory is what a process has for itself and shares with nobody (USS), sampled while it works.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def main() -> None:
    """Prints a line for each number of workers, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-workers", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="of the run, such as model=local model.path=FOLDER")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = {n: measure(Path(place) / str(n), n, arguments.overrides) for n in (1, arguments.n_workers)}
        same = len({(Path(place) / str(n) / "archive.jsonl").read_bytes() for n in found}) == 1
    for n, (rate, sizes) in found.items():
        told = ", ".join(f"{size / 1e6:,.0f}" for size in sizes)
        print(f"{n} workers: {rate:.2f} candidates a second; MB of their own, the first process first: {told}")
    alone, pooled = found[1], found[arguments.n_workers]
    print(f"candidates a second: {pooled[0] / alone[0]:.2f} times as many")
    print(f"memory of a further worker: {max(pooled[1][1:]) / alone[1][0]:.2f} times that of a single process")
    print(f"archives: {'the same' if same else 'DIFFERENT'}")


def measure(folder: Path, n_workers: int, overrides: list[str]) -> tuple[float, list[int]]:
    """Candidates a second of the main search, and the bytes of every process, the parent first."""
    command = [sys.executable, "-m", "selfprune", "proposer=random", "controls={}", "harness=none", "search.n_per_round=8"]
    command += ["search.race_yardsticks=false", f"search.workers={n_workers}", f"run_folder={folder}", *overrides]
    with (folder.parent / "output.txt").open("w") as output:
        run = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
    most: dict[int, int] = {}
    while run.poll() is None:
        time.sleep(0.2)
        is_searching = (folder / "archive.jsonl").exists() and not (folder / "model").exists()
        for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)] if is_searching else []:
            try:
                most[process.pid] = max(most.get(process.pid, 0), process.memory_full_info().uss)
            except psutil.Error:
                continue
    assert run.returncode == 0, (folder.parent / "output.txt").read_text()
    search = json.loads((folder / "report.json").read_text())["search"]
    others = sorted((size for pid, size in most.items() if pid != run.pid), reverse=True)[:n_workers]
    return search["n_candidates"] / search["seconds"], [most[run.pid], *(others if n_workers > 1 else [])]


if __name__ == "__main__":
    main()
