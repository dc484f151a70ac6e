"""What a training keeps on disk: the weights of its best check, and all that it goes on from."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from selfprune.errors import ConfigError
from selfprune.storage.whole_files import disk_error, write_whole
from selfprune.training.base import Course

BEST, STATE = "best.pt", "state.pt"


class KeptState:
    """Two files, each of which appears whole.

    Args:
        folder: for them; made when absent.
        parameters: what is trained.
        others: name -> what has a state besides, such as an optimiser.
    """

    def __init__(self, folder: Path, parameters: dict[str, nn.Parameter], others: Mapping[str, Any]) -> None:
        self._folder, self._parameters, self._others = folder, parameters, others
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from error

    def resume(self) -> tuple[int, Course]:
        """The step to go on from, and the course up to it; the first, and a new one, where nothing was kept.

        Raises:
            ConfigError: when the file cannot be read.
        """
        path = self._folder / STATE
        state = self._read(path) if path.exists() else {}
        try:
            if not state or (state["course"]["scores"] and not (self._folder / BEST).exists()):
                return 0, Course()
            self._load(state["parameters"])
            for name, other in self._others.items():
                other.load_state_dict(state[name])
            return int(state["step"]), Course(**state["course"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self._refusal(path, error) from error

    def keep(self, step: int, course: Course) -> None:
        """Keeps everything after a step.

        Raises:
            SelfpruneError: when the disk is full.
        """
        others = {name: other.state_dict() for name, other in self._others.items()}
        self._write(STATE, {"step": step, "course": asdict(course), "parameters": self._values(), **others})

    def keep_best(self) -> None:
        """Keeps the weights as they stand as the best."""
        self._write(BEST, self._values())

    def restore_best(self) -> None:
        """Gives the model the best weights.

        Raises:
            ConfigError: when their file cannot be read.
        """
        path = self._folder / BEST
        try:
            self._load(self._read(path))
        except (KeyError, TypeError, RuntimeError) as error:
            raise self._refusal(path, error) from error

    def _values(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def _load(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged archive makes of itself
            raise self._refusal(path, error) from error
        return found

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self._folder / name, partial(_save, content))

    def _refusal(self, path: Path, error: Exception) -> ConfigError:
        return ConfigError(
            f"{path} should hold the state of a training, but cannot be read as that ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); remove {self._folder}, and resume the run: the training begins anew, and "
            "the pruned model is as it was"
        )


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # as torch says that the disk is full
        raise OSError(str(error)) from error
