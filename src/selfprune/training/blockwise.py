"""Block by block: each block of the pruned model learns what the dense model's block puts out.

As BRECQ does for quantisation (Li et al., 2021, arXiv 2102.05426, §3.2). The inputs of a block are those that the pruned model
gives it, the blocks before it trained; its targets are what the dense block puts out on the dense model's inputs, so that errors
do not pile up. The loss is the mean squared difference over the mean square of the targets. An eighth of the windows is held out:
a block keeps what it learnt only where that came nearer there.

Limits: the pruned model must have every block of the dense one. Hidden states of all windows are held twice. What lies outside
the blocks is not trained.

Shape suffixes: N windows, T tokens, D hidden width.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from selfprune.errors import ConfigError
from selfprune.training.base import Course, Lesson
from selfprune.training.gradient_training import GradientTraining
from selfprune.training.kept_state import KeptState

if TYPE_CHECKING:
    from selfprune.models.blocks.walk import BlockVisit
    from selfprune.models.loading import LoadedModel

HELD_OUT = 8
"""One window of so many is not trained on."""


@dataclass
class Blockwise(GradientTraining):
    """Blocks learn one after the other, each from its own outputs.

    `n_tokens` counts what every block sees, and `n_checks` and `patience` are of no use: the model is scored before and after.
    """

    n_tokens: int = 262_144
    n_epochs: int = 4
    learning_rate: float = 3e-4

    def metric(self) -> None:
        """The dense model's answers are not asked, but what its blocks put out."""

    def n_steps(self, n_windows: int, n_blocks: int) -> int:
        """One for every block."""
        return n_blocks

    def train_in_place(self, student: "LoadedModel", parameters: dict[str, nn.Parameter], lesson: Lesson) -> Course:
        """See `GradientTraining`."""
        from selfprune.models.blocks.walk import walk_blocks  # here, since configs are checked without transformers

        dense = lesson.dense
        if len(dense.blocks) != len(student.blocks):
            raise ConfigError(
                f"training=blockwise compares blocks of the dense model with those of the pruned one, but the former has "
                f"{len(dense.blocks)} and the latter {len(student.blocks)}, since whole blocks went; choose training=distillation"
            )
        kept = KeptState(lesson.folder, parameters, {})  # every block begins an optimiser of its own
        first, course = kept.resume()
        if not course.scores:
            course.scores.append(lesson.check())
            kept.keep_best()
        walks = [walk_blocks(each, lesson.windows_NT, self.micro_batch) for each in (dense, student)]
        for index, (theirs, ours) in enumerate(zip(*walks, strict=True)):
            theirs.forward()
            if index >= first:
                began = time.perf_counter()
                own = {name: p for name, p in parameters.items() if name.startswith(student.block_prefix(index))}
                before, after = self._fit(ours, theirs.hidden, own, lesson.seed)
                course.seconds += time.perf_counter() - began
                course.n_tokens = self.n_windows(lesson.windows_NT.shape[1]) * lesson.windows_NT.shape[1] * self.n_epochs
                kept.keep(index + 1, course)
                lesson.on_step(index + 1, f"relative error {before:.3g} -> {after:.3g}")
            ours.forward()
        course.scores.append(lesson.check())
        if course.scores[-1] < course.scores[0]:
            course.best = 1
            kept.keep_best()
        course.ending = "every block had its turn"
        kept.restore_best()
        return course

    def _fit(
        self, visit: "BlockVisit", targets: Sequence[Tensor], parameters: dict[str, nn.Parameter], seed: int
    ) -> tuple[float, float]:
        """Trains one block; its relative error on the windows that are held out, before and after."""
        train = [i for i in range(len(targets)) if i % HELD_OUT or len(targets) < HELD_OUT]
        held_out = [i for i in range(len(targets)) if i not in train] or train
        best = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        before = _error(visit, targets, held_out)
        if not parameters:
            return before, before
        n_together = self.batch_size // self.micro_batch
        n_steps = max(1, len(train) * self.n_epochs // n_together)
        optimizer, schedule = self.optimizer(parameters.values(), n_steps)
        generator = torch.Generator().manual_seed(seed + visit.index)
        for _ in range(n_steps):
            for place in torch.randint(len(train), (n_together,), generator=generator).tolist():
                i = train[place]
                with torch.enable_grad():
                    loss = _loss(_run(visit, i), targets[i]) / n_together
                    loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters.values(), self.max_gradient_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        after = _error(visit, targets, held_out)
        if not after < before:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(best[name])
        return before, after


def _run(visit: "BlockVisit", batch: int) -> Tensor:
    hidden_NTD = visit.inputs[batch].detach()
    return visit.calls[batch].run(visit.index, visit.block, hidden_NTD)


def _loss(found_NTD: Tensor, wanted_NTD: Tensor) -> Tensor:
    """The squared difference over the square of what is wanted."""
    wanted_NTD = wanted_NTD.float()
    return (found_NTD.float() - wanted_NTD).square().mean() / wanted_NTD.square().mean().clamp_min(1e-12)


@torch.no_grad()
def _error(visit: "BlockVisit", targets: Sequence[Tensor], batches: Sequence[int]) -> float:
    return math.fsum(float(_loss(_run(visit, i), targets[i])) for i in batches) / len(batches)
