"""A sweep that is killed half way and given again ends as one that never was: archives byte for byte, and the table of its runs.

    python -m experiments.cluster.kill_and_resume --launcher basic --launcher processes --launcher submitit_local --launcher ray

Every launcher sweeps 2 pruners x 3 sparsities x 2 seeds of the smoke run twice, once unbroken. The other one is killed with
SIGKILL, the launcher and everything that it started, when half of its jobs are done, and then given again.
"""

import argparse
import csv
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from selfprune.configs.sweep_records import JobState, Sweep

SWEEP = ["-m", "+experiment=smoke", "harness=none", "pruner=wanda,ria", "budget.sparsity=0.5,0.6,0.7", "seed=0,1"]
N_JOBS = 12
TIMES = ("seconds",)
"""Columns of the table that no two runs share."""


def main() -> int:
    """Prints a line per launcher; 1 where one of them ended otherwise than the unbroken sweep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launcher", action="append", required=True)
    codes = [_broken_and_whole(launcher) for launcher in parser.parse_args().launcher]
    return max(codes)


def _broken_and_whole(launcher: str) -> int:
    with tempfile.TemporaryDirectory() as place:
        whole, broken = Path(place) / "whole", Path(place) / "broken"
        began = time.monotonic()
        code = _begin(launcher, whole).wait()
        seconds = time.monotonic() - began
        n_done = _kill_half_way(_begin(launcher, broken), broken)
        began = time.monotonic()
        again = _begin(launcher, broken).wait()
        rest = time.monotonic() - began
        same = _archives(whole) == _archives(broken), _table(whole) == _table(broken)
        told = ["the same" if one else "DIFFERS" for one in same]
        print(
            f"{launcher}: unbroken {seconds:.0f} s (exit {code}); killed when {n_done} of {N_JOBS} were done, "
            f"given again {rest:.0f} s (exit {again}); archives: {told[0]}, table: {told[1]}",
            flush=True,
        )
        return 0 if (code, again, *same) == (0, 0, True, True) else 1


def _begin(launcher: str, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "selfprune", *SWEEP, f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"]
    with (folder / "output.txt").open("ab") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environment)


def _kill_half_way(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Kills a sweep with all that it started; how many of its jobs were done."""
    while process.poll() is None:
        time.sleep(0.5)
        if (folder / "sweep/sweep.json").exists():
            n_done = sum(job.state is JobState.DONE for job in Sweep.read(folder / "sweep").known())
            if n_done >= N_JOBS // 2:
                break
    started = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    # Ray's servers leave the family of the process that started them
    started += [
        other.pid for other in psutil.process_iter(["cmdline"]) if any("ray" in part for part in other.info["cmdline"][:1])
    ]
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    return n_done


def _archives(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (folder / "sweep").glob("*/archive.jsonl")}


def _table(folder: Path) -> list[dict[str, str]]:
    command = [sys.executable, "-m", "selfprune", "compare", str(folder / "sweep"), "--format", "csv"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(io.StringIO(text))]


if __name__ == "__main__":
    sys.exit(main())
