"""The loop: steps of AdamW on windows in a drawn order, checked on other windows, and resumed where it was broken off.

accelerate gives mixed precision, transformers the schedule. The order of the windows and all first values come from the seed, and
no dropout is on, so that on CPU a training that was killed and resumed ends with the very same weights.

Shape suffixes: N windows, T tokens, V vocabulary.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from selfprune.errors import ConfigError
from selfprune.training.base import Course, Lesson, Trained
from selfprune.training.gradient_training import GradientTraining
from selfprune.training.hidden_states import hidden_loss
from selfprune.training.kept_state import KeptState
from selfprune.training.schedule import Schedule

if TYPE_CHECKING:
    from accelerate import Accelerator

    from selfprune.models.loading import LoadedModel


@dataclass
class WholeModelTraining(GradientTraining):
    """A training whose every step is one of the whole model."""

    def check_schedule(self, schedule: Schedule) -> None:
        """See `Training`; every parameter must be trained."""
        if schedule.n_cuts > 1 and self.trained is not Trained.FULL:
            raise ConfigError(
                f"schedule.n_cuts={schedule.n_cuts} cuts weights while they learn, but training.trained={self.trained.name} "
                "leaves them as they are; choose training.trained=FULL, or schedule=one_shot"
            )

    def weight_of_hidden(self) -> float:
        """What the loss on hidden states counts beside the metric; 0 does without."""
        return 0.0

    def train_in_place(self, student: "LoadedModel", parameters: dict[str, nn.Parameter], lesson: Lesson) -> Course:
        """See `GradientTraining`."""
        from accelerate import Accelerator  # here, since configs are checked without accelerate

        model: Any = student.model
        n_windows = len(lesson.windows_NT)
        n_steps = self.n_steps(n_windows, len(student.blocks))
        accelerator = Accelerator(cpu=model.device.type == "cpu", mixed_precision="no" if model.device.type == "cpu" else "bf16")
        optimizer, schedule = self.optimizer(parameters.values(), n_steps)
        cuts, others = lesson.cuts, {"optimizer": optimizer, "schedule": schedule}
        kept = KeptState(lesson.folder, parameters, others | ({"cuts": cuts} if cuts else {}))
        first, course = kept.resume()

        def check_first() -> None:
            course.scores.append(lesson.check())
            kept.keep_best()

        if not course.scores and not cuts:
            check_first()
        checks = {round(n_steps * (i + 1) / self.n_checks) for i in range(self.n_checks)} - {0}
        if self.checkpoint_blocks:
            _keep_activations(model, False)
        for step in range(first, n_steps):
            if course.scores and _is_over(course, self):
                break
            if cuts and cuts.before(step, optimizer) and step == cuts.last:
                check_first()
            began = time.perf_counter()
            windows = _order(step, n_windows, self.batch_size, lesson.seed)
            loss = _step(model, windows, lesson, self, accelerator)
            norm = accelerator.clip_grad_norm_(parameters.values(), self.max_gradient_norm)
            if not math.isfinite(loss) or not math.isfinite(float(norm)):
                course.ending = f"the loss was not finite at step {step + 1} of {n_steps}"
                break
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            course.seconds += time.perf_counter() - began
            course.n_tokens += self.batch_size * lesson.windows_NT.shape[1]
            if step + 1 in checks:
                if course.scores:
                    course.scores.append(score := lesson.check())
                    if score < course.scores[course.best]:
                        course.best = len(course.scores) - 1
                        kept.keep_best()
                kept.keep(step + 1, course)
            best = f", best check {min(course.scores):.4g}" if course.scores else ""
            lesson.on_step(step + 1, f"loss {loss:.4g}, {course.n_tokens / course.seconds:,.0f} tokens a second{best}")
        if self.checkpoint_blocks:
            _keep_activations(model, True)
        if cuts and not course.scores:
            cuts.finish(optimizer)
            check_first()
        kept.restore_best()
        course.n_cuts = cuts.n_made if cuts else 0
        return course


def _keep_activations(model: Any, is_kept: bool) -> None:
    """Whether activations within blocks are kept, by the name that transformers has for it, which changes with version 6."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if is_kept:
        getattr(model, f"{name}_checkpointing_disable")()
    else:
        getattr(model, f"{name}_checkpointing_enable")(**{f"{name}_checkpointing_kwargs": {"use_reentrant": False}})
    model.train(not is_kept)


def _step(model: Any, windows: Sequence[int], lesson: Lesson, config: WholeModelTraining, accelerator: "Accelerator") -> float:
    """The mean loss of a batch, whose gradients are left on the parameters."""
    total, weight = 0.0, config.weight_of_hidden()
    for start in range(0, len(windows), config.micro_batch):
        part = list(windows[start : start + config.micro_batch])
        tokens_NT = lesson.windows_NT[part].to(model.device)
        with accelerator.autocast():
            output = model(input_ids=tokens_NT, use_cache=False, output_hidden_states=weight > 0)
        assert lesson.targets is not None
        loss = lesson.targets.scores(output.logits, tokens_NT, part).mean()
        if weight:
            loss = loss + weight * hidden_loss(output.hidden_states, lesson.dense.model, tokens_NT)
        loss = loss * len(part) / len(windows)
        accelerator.backward(loss)
        total += float(loss.detach())
    return total


def _order(step: int, n_windows: int, batch_size: int, seed: int) -> list[int]:
    """The windows of a step: every epoch draws an order of its own."""
    epoch, place = divmod(step * batch_size, n_windows)
    order = torch.randperm(n_windows, generator=torch.Generator().manual_seed(seed + 7919 * epoch))
    found: list[int] = order[place : place + batch_size].tolist()
    return found


def _is_over(course: Course, config: GradientTraining) -> bool:
    """Whether the checks say that more steps are in vain; then the course says why."""
    if not math.isfinite(course.scores[-1]):
        course.ending = f"the score of check {len(course.scores) - 1} was not finite"
    elif len(course.scores) - 1 - course.best >= config.patience:
        course.ending = f"{config.patience} checks brought no better score"
    else:
        return False
    return True
