"""The processes of a search on a Ray cluster, or by Ray on this machine: actors, each with a copy of model, levels and windows.

What they hold travels through Ray's object store once to every node, and is taken out of it as a copy, since tensors that are
shared without one may be written to. An actor that dies is started again by Ray and repeats its work; where it dies once more,
the pool is opened anew (`workers.Workers`).

Limits: built levels read the statistics that lie on disk in the run folder, which every node must see. Of a model on a GPU every
actor takes one whole GPU, and the first process its own besides.
"""

import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import cycle
from typing import Any

from selfprune.errors import ConfigError

N_RESTARTS = 1
"""Times that Ray starts a dead actor again, and repeats its work, before the pool does."""

N_SECONDS_TO_ANSWER = 10
"""Within which a cluster must answer."""


class RayProcesses:
    """Stands in for a `ProcessPoolExecutor`.

    Args:
        n: actors.
        begin: readies an actor with what it is given.
        given: what all actors are given; copied.
        on_gpu: whether each takes a GPU.

    Raises:
        ConfigError: when Ray is not installed, cannot be reached, or has not as many processors or GPUs.
    """

    def __init__(self, n: int, begin: Callable[..., None], given: tuple[Any, ...], on_gpu: bool) -> None:
        self._ray = ray = _ray()
        kind = "GPU" if on_gpu else "CPU"
        self._is_ours = not ray.is_initialized()
        try:
            # RAY_ADDRESS names a cluster; without it a Ray of our own begins here
            _reach(os.environ.get("RAY_ADDRESS", ""))
            ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except Exception as error:
            raise ConfigError(
                f"search.pool=RAY found no Ray ({' '.join(str(error).split())[:200]}); start one with `ray start --head`, let "
                "RAY_ADDRESS name it, or unset that for one on this machine alone"
            ) from error
        there = int(ray.cluster_resources().get(kind, 0))
        if n > there:
            self._shut()
            raise ConfigError(
                f"search.workers={n} asks Ray for as many {kind}s, but it has {there}; give fewer workers, or add nodes"
            )
        self._given = ray.put((begin, given))  # held here, for actors that begin again

        @ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_restarts=N_RESTARTS, max_task_retries=N_RESTARTS)
        class Process:
            def __init__(self, given: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
                begin, arguments = given
                begin(*arguments)

            def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
                return function(*arguments)

        self._actors = [Process.remote(self._given) for _ in range(n)]  # type: ignore[attr-defined]
        self._next = cycle(self._actors)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands a call to the next actor in turn; shares of work are alike."""
        asked: Future[Any] = next(self._next).call.remote(function, *arguments).future()
        answered: Future[Any] = Future()
        asked.add_done_callback(lambda done: self._answer(done, answered))
        return answered

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the actors, and Ray where it was begun here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        self._shut()

    def _answer(self, done: Future[Any], answered: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            answered.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            answered.set_exception(error.cause)
        else:
            broken = BrokenProcessPool(" ".join(str(error).split())[:300])
            broken.__cause__ = error
            answered.set_exception(broken)

    def _shut(self) -> None:
        if self._is_ours:
            self._ray.shutdown()


def _reach(address: str) -> None:
    """Knocks where a cluster should listen, since Ray itself tries for many minutes.

    Raises:
        OSError: when nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), N_SECONDS_TO_ANSWER).close()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "search.pool=RAY needs the package ray, which is not installed; install it with `pip install 'selfprune[cluster]'`, "
            "or leave search.pool out for processes of this machine"
        ) from error
    return ray
