"""Python in processes of their own, forked from one that has the libraries already: those take seconds to import.

For what is killed, what measures its memory and what ends by itself. What is claimed of a fresh interpreter needs a real one.
"""

import ctypes
import gc
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["selfprune.runs.composed_run", "selfprune.runs.prune_once", "transformers.models.llama"])


def python(*arguments: str | Path, folder: Path, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """What becomes of `python -m MODULE ...` or `python -c CODE ...` in a folder; a negative exit code is a signal's."""
    with tempfile.TemporaryDirectory() as written:
        outputs = [os.path.join(written, name) for name in ("out", "err")]
        command = [str(argument) for argument in arguments]
        process = _context.Process(target=_begin, args=(command, str(folder), dict(os.environ), outputs))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        said = [Path(path).read_text() for path in outputs]
    return subprocess.CompletedProcess(command, process.exitcode or 0, *said)


def _begin(command: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """Goes on as that command, down to the interpreter's own end, where output that cannot be written is an error."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "wb", closefd=False)) for number in (1, 2))
    how, what, *sys.argv[1:] = command
    gc.freeze()  # the libraries are no garbage, not at the end either
    code: object = 0
    try:
        if how == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    ctypes.pythonapi.Py_Exit(int(code or 0))  # type: ignore[call-overload]
