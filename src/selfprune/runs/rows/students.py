"""The models that are trained: cut to their size before, or whole and cut on the way; and how they are saved."""

import gc
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from selfprune.allocations.levels import Levels
from selfprune.allocations.unit import Allocation
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.exports.save import holds_checkpoint, save_checkpoint
from selfprune.models.blocks.walk import windows_per_pass
from selfprune.models.loading import LoadedModel, load_model
from selfprune.models.model_config import DType, Placement
from selfprune.models.units import stored_weight
from selfprune.pruning.sequential import prune_in_place
from selfprune.runs.preparation import PreparedRun
from selfprune.runs.rows.row_measurer import RowMeasurer
from selfprune.storage.whole_files import RESUME_A_RUN, whole_folder
from selfprune.training.gradual_cuts import GradualCuts

FOLDER = "trained"
"""Of the winner, in the run folder."""
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")


@contextmanager
def cut_student(
    prepared: PreparedRun, measurer: RowMeasurer, name: str, allocation: Allocation, work: Path
) -> Iterator[LoadedModel]:
    """While open, the pruned model of a row, cut to its size, in fp32.

    Args:
        prepared: what is shared; its model is made dense.
        measurer: prunes.
        name: of the row.
        allocation: of it.
        work: where it is saved, unless it is the winner, who is saved already.
    """
    folder = prepared.folder / "model" if name == "winner" else work / "model"
    if not holds_checkpoint(folder):
        measurer.prune(allocation)
        save_checkpoint(PrunedCheckpoint(prepared.loaded, folder, by_block=False), folder)
    prepared.store.restore()
    student = _load(prepared, folder)
    try:
        yield student
    finally:
        gc.collect()


@contextmanager
def whole_student(prepared: PreparedRun) -> Iterator[LoadedModel]:
    """While open, the dense model once more, in fp32, to be cut on the way.

    Args:
        prepared: what is shared; its model is made dense.
    """
    prepared.store.restore()
    config = replace(prepared.config.model, dtype=DType.FLOAT32, placement=Placement.WHOLE)
    student = load_model(config).for_items(prepared.config.method.items())
    try:
        yield student
    finally:
        gc.collect()


def gradual_cuts(prepared: PreparedRun, student: LoadedModel, allocation: Allocation, n_steps: int) -> GradualCuts:
    """The cuts of a schedule.

    Args:
        prepared: what is shared.
        student: the whole model.
        allocation: what is gone at the end.
        n_steps: of the training.
    """
    windows_NT = prepared.splits.calibration_NT

    def cut(share: float) -> None:
        here = part_of(allocation, prepared.space.grid.levels, share)
        prune_in_place(student, windows_NT, prepared.config.method, here, windows_per_pass(windows_NT.shape[1]))

    pruned = {id(stored_weight(student.model, unit)) for unit in student.units}
    matrices = {name: matrix for name, matrix in student.model.named_parameters() if id(matrix) in pruned}
    return GradualCuts(matrices, prepared.config.schedule.cuts(n_steps), cut)


def part_of(allocation: Allocation, levels: Mapping[str, Levels], share: float) -> Allocation:
    """An allocation on the way: the levels at a share of its own, or below; of units with one level, so many of the first.

    Args:
        allocation: where it ends.
        levels: of the units.
        share: of it, in [0, 1].
    """
    whole = [name for name, level in allocation.items() if level and levels[name].n_steps == 1]
    part = {name: levels[name].items[levels[name].index(share * level)] for name, level in allocation.items()}
    return part | {name: allocation[name] if i < round(share * len(whole)) else 0 for i, name in enumerate(whole)}


def save_cut(prepared: PreparedRun, student: LoadedModel) -> None:
    """Writes the trained winner as a checkpoint beside the pruned one, with the same files.

    Args:
        prepared: what is shared.
        student: cut to its size before.
    """
    with whole_folder(prepared.folder / FOLDER) as folder:
        student.model.save_pretrained(folder)
        _copy_files(prepared, folder)


def save_whole(prepared: PreparedRun, student: LoadedModel, work: Path) -> None:
    """Writes the trained winner as a checkpoint beside the pruned one, cut to its size, with the same files.

    Args:
        prepared: what is shared.
        student: with zeros where something went.
        work: where it is written with its zeros first, since a checkpoint takes all but its units from its source.
    """
    with whole_folder(work / "whole") as folder:
        student.model.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
    with_zeros = _load(prepared, work / "whole").for_items(prepared.config.method.items())
    with whole_folder(prepared.folder / FOLDER) as folder:
        PrunedCheckpoint(with_zeros, folder, by_block=False).write(folder, RESUME_A_RUN)
        _copy_files(prepared, folder)


def _load(prepared: PreparedRun, folder: Path) -> LoadedModel:
    """A checkpoint that a run wrote, in fp32."""
    config = replace(prepared.config.model, path=str(folder), dtype=DType.FLOAT32, placement=Placement.WHOLE, revision=None)
    return load_model(config)


def _copy_files(prepared: PreparedRun, folder: Path) -> None:
    """Copies all files of the pruned winner but the weights, which has the same widths."""
    shutil.copytree(prepared.folder / "model", folder, ignore=shutil.ignore_patterns(*WEIGHTS), dirs_exist_ok=True)
