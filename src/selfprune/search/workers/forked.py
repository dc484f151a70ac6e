"""What every process does first that is forked from this one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

import torch


def begin_forked() -> None:
    """Readies a process that was forked: one thread, and its parent decides when it ends, however that ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()
    torch.set_num_threads(1)  # the threads of the parent are not there after a fork


def _end_with(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)
