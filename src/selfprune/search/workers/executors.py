"""The processes that share work with this one: forked on this machine, or actors of Ray."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from selfprune.errors import ConfigError
from selfprune.search.search_config import PoolKind
from selfprune.search.workers.forked import begin_forked
from selfprune.search.workers.ray_processes import RayProcesses
from selfprune.search.workers.workers import Executor


def check_pool(n_workers: int, pool: PoolKind, device: torch.device) -> None:
    """Refuses processes where there can be none.

    Raises:
        ConfigError: when a model on a GPU is to be shared by forks, or is on a GPU that actors of Ray cannot name.
    """
    if n_workers == 1:
        return
    if pool is PoolKind.RAY and device.index:
        raise ConfigError(
            f"search.pool=RAY gives every process a GPU that it sees as cuda:0, but the model is on {device}; choose the GPU "
            "of this process by CUDA_VISIBLE_DEVICES, and leave model.device out"
        )
    if pool is PoolKind.PROCESSES and (device.type != "cpu" or not hasattr(os, "fork")):
        raise ConfigError(
            f"search.workers={n_workers} forks processes, which goes on CPU and Unix alone, but the model is on {device}; leave "
            "search.workers out, or have a GPU for each by search.pool=RAY"
        )


def start_processes(n: int, pool: PoolKind, device: torch.device, begin: Callable[..., None], given: tuple[Any, ...]) -> Executor:
    """Starts processes of one thread each.

    Args:
        n: how many, besides this one.
        pool: what processes.
        device: of the model, of which actors of Ray have one each.
        begin: readies a process with what it is given.
        given: what every process is given: a fork as it stands, an actor as a copy.

    Raises:
        ConfigError: when Ray is not installed, cannot be reached, or has not as many processors or GPUs.
    """
    if pool is PoolKind.RAY:
        return RayProcesses(n, _begin_actor, (begin, given), device.type == "cuda")
    return ProcessPoolExecutor(n, multiprocessing.get_context("fork"), _begin_fork, (begin, given))


def _begin_fork(begin: Callable[..., None], given: tuple[Any, ...]) -> None:
    begin_forked()
    begin(*given)


def _begin_actor(begin: Callable[..., None], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    begin(*given)
