"""Saves a model block by block while it is pruned, so that neither the pruned model nor a broken walk needs memory.

Shape suffixes: N sequences, T tokens, D hidden width.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from selfprune.errors import ConfigError
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.models.loading import LoadedModel
from selfprune.storage.held_folder import hold_folder
from selfprune.storage.lock import LOCK
from selfprune.storage.recorded_files import Count, parsed
from selfprune.storage.tensor_file import UNFINISHED, reading, write_tensors
from selfprune.storage.whole_files import disk_error

PROGRESS = "progress.safetensors"
OWN_FILE = re.compile(rf"offload|model-\d+-of-\d+\.safetensors|{UNFINISHED.pattern}|{re.escape(LOCK)}.*")
"""What a walk leaves behind that is killed before its first block is done."""
DAMAGED = "restore it from a copy, or remove the folder and begin anew"
REMEDY = "give the same command again, which goes on after the blocks that are done"


class _Progress(TypedDict):
    """What the header of the progress file says beside its hidden states."""

    origin: dict[str, Any]
    removed: dict[str, Count]
    n_tokens_of: dict[str, list[Count | None]]
    next_block: Annotated[int, Field(ge=1)]


class BlockWriter:
    """A checkpoint that grows by one file per block in `<folder>.partial`, and becomes `folder` when it is whole.

    No two processes may grow one: `growing` sees to that.

    Args:
        folder: the checkpoint to make; it must not exist.
        origin: everything that decides the result; a folder that was begun otherwise is refused.

    Raises:
        ConfigError: when the folder exists, was begun with another config, or `<folder>.partial` holds other things.
    """

    def __init__(self, folder: Path, origin: dict[str, Any]) -> None:
        self.folder = folder
        self.partial = partial_of(folder)
        self.scratch = self.partial / "offload"
        self.origin = origin
        self._checkpoint: PrunedCheckpoint | None = None
        if folder.exists():
            raise ConfigError(f"output={folder} exists already; choose another output, or remove it")
        begun = self._progress()
        if begun and begun["origin"] != origin:
            raise ConfigError(
                f"{self.partial} holds the beginning of a pruning with another config; choose another output, or remove that "
                "folder"
            )
        self._check_own()
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.partial, error, REMEDY) from error

    def resume(self) -> tuple[dict[str, int], dict[str, list[int | None]], int, list[Tensor] | None]:
        """What was removed so far, the tokens that reached it, the block to go on with, and per batch what enters that.

        Raises:
            ConfigError: when what was written before is damaged.
        """
        progress = self._progress()
        if not progress:
            return {}, {}, 0, None
        with reading(self.partial / PROGRESS, DAMAGED) as file:
            hidden = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
        return progress["removed"], progress["n_tokens_of"], progress["next_block"], hidden

    def check_begun(self, loaded: LoadedModel, batches: Sequence[Tensor]) -> None:
        """Checks that what was written before is whole and belongs to a model and its windows.

        Args:
            loaded: the model that is pruned.
            batches: token windows [N, T] of every batch.

        Raises:
            ConfigError: when it does not.
        """
        removed, n_tokens_of, next_block, hidden = self.resume()
        if hidden is None:
            return
        units = {unit.name for unit in loaded.units if unit.block < next_block}
        alike = [h.ndim == 3 and h.shape[:2] == b.shape and h.is_floating_point() for h, b in zip(hidden, batches, strict=False)]
        if len(hidden) != len(batches) or not all(alike) or not removed.keys() == n_tokens_of.keys() == units:
            raise ConfigError(f"{self.partial / PROGRESS} does not belong to this model and its windows; {DAMAGED}")
        checkpoint = self.checkpoint(loaded)
        for name in list(checkpoint.files)[: min(next_block, len(loaded.blocks))]:
            with reading(self.partial / name, DAMAGED) as file:
                # a sublayer may be gone as a whole
                if not set(checkpoint.files[name]) - checkpoint.cut <= set(file.keys()) <= set(checkpoint.files[name]):
                    raise ConfigError(f"{self.partial / name} does not hold the tensors that were written there; {DAMAGED}")

    def save_block(
        self,
        loaded: LoadedModel,
        index: int,
        removed: dict[str, int],
        n_tokens_of: dict[str, list[int | None]],
        hidden: list[Tensor],
    ) -> None:
        """Saves a block that was pruned, and then the hidden states with which the walk can go on after it.

        Raises:
            SelfpruneError: when the disk is full or the folder cannot be written.
        """
        checkpoint = self.checkpoint(loaded)
        checkpoint.write_file(list(checkpoint.files)[index], self.partial, REMEDY)
        progress = json.dumps({"origin": self.origin, "removed": removed, "n_tokens_of": n_tokens_of, "next_block": index + 1})
        # batches may share memory, which the format refuses
        copies = {str(i): hidden_NTD.contiguous().clone() for i, hidden_NTD in enumerate(hidden)}
        write_tensors(self.partial / PROGRESS, copies, {"progress": progress}, REMEDY)

    def finish(self, loaded: LoadedModel) -> None:
        """Saves everything outside the blocks, the index, the configuration and the source's other files.

        Raises:
            SelfpruneError: when the disk is full or the folder cannot be written.
        """
        checkpoint = self.checkpoint(loaded)
        for name in list(checkpoint.files)[len(loaded.blocks) :]:
            checkpoint.write_file(name, self.partial, REMEDY)
        checkpoint.write_rest(self.partial, REMEDY)

    def checkpoint(self, loaded: LoadedModel) -> PrunedCheckpoint:
        """What is to be written of a model."""
        if self._checkpoint is None:
            self._checkpoint = PrunedCheckpoint(loaded, self.partial)
        return self._checkpoint

    def publish(self) -> None:
        """Lets the folder appear.

        Raises:
            SelfpruneError: when it cannot be renamed.
        """
        try:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.partial.rename(self.folder)
            for path in (self.folder / PROGRESS, *self.folder.glob(f"{LOCK}*")):
                path.unlink()
        except OSError as error:
            raise disk_error(self.partial, error, REMEDY) from error

    @property
    def is_begun(self) -> bool:
        """Whether a block was pruned already."""
        return bool(self._progress())

    def clear(self) -> None:
        """Removes what was written so far, but for the lock."""
        for path in list(self.partial.iterdir()) if self.partial.is_dir() else []:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith(LOCK):
                path.unlink(missing_ok=True)

    def _check_own(self) -> None:
        """Refuses a folder that is not ours, since it would be removed after a mistake."""
        if self.partial.is_dir() and not self._progress():
            foreign = [path.name for path in self.partial.iterdir() if not OWN_FILE.fullmatch(path.name)]
            if foreign:
                raise ConfigError(
                    f"{self.partial} is where the pruned model grows, but it holds other things, such as {min(foreign)}; choose "
                    "another output, or move them away"
                )

    def _progress(self) -> _Progress | None:
        """How far it came; None before the first block."""
        path = self.partial / PROGRESS
        if not path.is_file():
            return None
        with reading(path, DAMAGED) as file:
            told = (file.metadata() or {}).get("progress", "")
        return parsed(told.encode(), _Progress, f"the header of {path}", DAMAGED)


def partial_of(folder: Path) -> Path:
    """Where a checkpoint grows."""
    return folder.with_name(f"{folder.name}.partial")


@contextmanager
def growing(folder: Path, origin: dict[str, Any]) -> Iterator[BlockWriter]:
    """While open, this process alone grows a checkpoint; what ends before its first block leaves nothing behind.

    Args:
        folder: the checkpoint to make.
        origin: everything that decides the result.

    Raises:
        ConfigError: when another process grows it, or as `BlockWriter` does.
        SelfpruneError: when the folder cannot be written.
    """
    partial = partial_of(folder)
    refusal = f"output={folder} is being written by another process, in {partial}; wait for it, or choose another output"
    try:
        held = hold_folder(partial, refusal)
    except OSError as error:
        raise disk_error(partial, error, "choose another output") from error
    writer = None
    try:
        writer = BlockWriter(folder, origin)
        yield writer
    except BaseException:  # an interruption too, which can come as an error of any library
        if writer is None or not writer.is_begun:
            if writer is not None:
                writer.clear()
            held.withdraw()
        raise
    finally:
        held.release()
