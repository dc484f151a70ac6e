"""Rows of the report whose models are trained after they were pruned.

Each is loaded from its checkpoint, trained and measured; the trained winner is saved beside the pruned one.

Limits: dense and pruned model are in memory together, the pruned one in fp32 while it is trained.
"""

import math
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from selfprune.allocations.unit import Allocation, Item
from selfprune.checkpoints.source import open_source
from selfprune.data.self_generated import text_writer
from selfprune.data.splits import draw_training
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.loading import LoadedModel, max_positions
from selfprune.models.units import weight_view
from selfprune.reports.conclusions import TRAINED
from selfprune.runs.preparation import PreparedRun
from selfprune.runs.rows.report_rows import Measured, Row
from selfprune.runs.rows.row_measurer import RowMeasurer
from selfprune.runs.rows.students import cut_student, gradual_cuts, save_cut, save_whole, whole_student
from selfprune.search.scoring import digest
from selfprune.training.base import Lesson
from selfprune.training.gradient_training import GradientTraining
from selfprune.training.targets import Targets, prepare_targets
from selfprune.training.trained_parameters import trained_parameters

WORK = "training"
"""Of what a training needs while it lasts, in the run folder."""


def train_rows(
    prepared: PreparedRun,
    measurer: RowMeasurer,
    allocations: Mapping[str, Allocation],
    before: Mapping[str, Row],
    is_repeated: bool = False,
) -> dict[str, Row]:
    """Trains the models of the rows that the config names, and measures them as all rows are.

    Args:
        prepared: what is shared; its model is made dense.
        measurer: measures what was trained.
        allocations: row -> what was pruned.
        before: rows of an earlier stage, which are not trained again where their allocation is the same.
        is_repeated: whether only what was recorded is read back.

    Returns:
        row -> what was measured, under the names of rows with ` trained` behind them.

    Raises:
        ConfigError: when a row is named that there is not, or a state on disk is broken.
        SelfpruneError: when the disk is full.
    """
    training: GradientTraining = prepared.config.training
    if not training.rows:
        return {}
    # a control that scored nothing has no row
    training.check([name for name in allocations if name != "dense"])
    rows: dict[str, Row] = {}
    teacher = _Teacher(prepared)
    with prepared.journal.recalling() if is_repeated else nullcontext():
        for name in training.rows:
            title, allocation = name + TRAINED, allocations[name]
            if title in before and before[title].allocation == allocation:
                rows[title] = before[title]
                continue
            train = partial(_train_and_measure, prepared, measurer, teacher, name, allocation)
            rows[title] = Row(allocation, prepared.journal.once({"row": title}, train, Measured))
    if not is_repeated:
        shutil.rmtree(prepared.folder / WORK, ignore_errors=True)
    return rows


@dataclass
class _Teacher:
    """What the dense model says, asked when it is first needed.

    Attributes:
        prepared: what is shared; its model is dense when something is asked.
    """

    prepared: PreparedRun

    @cached_property
    def lesson(self) -> tuple[Tensor, Targets | None]:
        """The windows of the training, and the answers to them."""
        config, loaded = self.prepared.config, self.prepared.loaded
        n_windows = config.training.n_windows(config.data.n_tokens_per_window)
        writer = text_writer(loaded.model, loaded.tokenizer, config.data)
        windows_NT = draw_training(
            config.data, loaded.tokenizer, config.seed, n_windows, self.prepared.splits, writer, max_positions(loaded.model)
        )
        metric = config.training.metric()
        if metric is None:
            return windows_NT, None
        with self.prepared.display.stage("asking the dense model", total=n_windows) as update:
            work = self.prepared.folder / WORK
            return windows_NT, prepare_targets(metric, loaded.model, windows_NT, config.search.batch_size, work, update)

    @cached_property
    def on_search(self) -> WindowEvaluator:
        """The search windows, which checks look at."""
        config, loaded = self.prepared.config, self.prepared.loaded
        search_NT = self.prepared.splits.search_NT[: config.n_search_windows]
        return WindowEvaluator({"kl": KLDivergence()}, loaded.model, loaded.blocks, search_NT, config.search.batch_size)


def _train_and_measure(
    prepared: PreparedRun, measurer: RowMeasurer, teacher: _Teacher, name: str, allocation: Allocation
) -> dict[str, Any]:
    training: GradientTraining = prepared.config.training
    is_gradual, work = prepared.config.schedule.n_cuts > 1, _work(prepared, name, allocation)
    with whole_student(prepared) if is_gradual else cut_student(prepared, measurer, name, allocation, work) as student:
        windows_NT, targets = teacher.lesson
        check = teacher.on_search.on(student.model, student.blocks)

        def score() -> float:
            values = check.evaluate(range(len(student.blocks)))["kl"]
            check.forward.clear()
            return math.fsum(values) / len(values)

        units, seed, n_steps = student.units, prepared.config.seed, training.n_steps(len(windows_NT), len(student.blocks))
        with (
            prepared.display.stage(f"training {name}", total=n_steps) as update,
            trained_parameters(student.model, units, training.trained, training.rank, seed) as parameters,
        ):
            cuts = gradual_cuts(prepared, student, allocation, n_steps) if is_gradual else None
            lesson = Lesson(windows_NT, targets, score, prepared.loaded, seed, work, update, cuts)
            course = training.train_in_place(student, parameters, lesson)
        for parameter in student.model.parameters():  # not the buffers, whose format is the model's own choice
            parameter.data = parameter.data.to(prepared.loaded.model.dtype)
        moved = {} if is_gradual else _moved(student, len(prepared.loaded.blocks))
        if name == "winner" and is_gradual:
            save_whole(prepared, student, work)
        elif name == "winner":
            save_cut(prepared, student)
        with prepared.display.stage(f"measuring {name} after training"):
            measured = measurer.measure(student)
        return {**measured, "training": {**asdict(course), "sparsity": _sparsity(prepared, student), "moved": moved}}


def _work(prepared: PreparedRun, name: str, allocation: Allocation) -> Path:
    """Where a training keeps its state; another winner has another place."""
    return prepared.folder / WORK / f"{name}-{digest(allocation, prepared.space.grid)[:16]}"


def _moved(student: LoadedModel, n_blocks: int) -> dict[str, float]:
    """Block -> norm of what training changed of its weights, over their norm in the checkpoint that it began with.

    Nothing is told where whole blocks went, whose numbers are others than those of the dense model.
    """
    if len(student.blocks) != n_blocks or student.source is None:
        return {}
    stored = open_source(student.source)
    found = {}
    for index in range(n_blocks):
        prefix = student.block_prefix(index)
        pairs = [(p, stored[n]) for n, p in student.model.named_parameters() if n.startswith(prefix) and n in stored]
        before = [(p, tensor.read().to(p.device).float()) for p, tensor in pairs if tuple(tensor.shape) == tuple(p.shape)]
        if whole := math.fsum(float(was.square().sum()) for _, was in before):
            changed = math.fsum(float((p.detach().float() - was).square().sum()) for p, was in before)
            found[str(index)] = round(math.sqrt(changed / whole), 8)
    return found


def _sparsity(prepared: PreparedRun, student: LoadedModel) -> float | None:
    """The exact zeros among the weights of units, as a share of them; None where whole heads and channels went."""
    if any(unit.item is not Item.WEIGHT for unit in prepared.loaded.units):
        return None
    matrices = [weight_view(student.model, unit) for unit in student.units]
    n_zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    return n_zeros / sum(matrix.numel() for matrix in matrices)
