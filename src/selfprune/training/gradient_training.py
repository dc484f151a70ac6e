"""What all trainings by gradients share: how long, how fast, and of what."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.base import WindowMetric
from selfprune.training.base import Course, Lesson, Trained, Training

if TYPE_CHECKING:
    from selfprune.models.loading import LoadedModel

WARM_UP = 0.05
"""Share of all steps over which the learning rate rises."""


@dataclass
class GradientTraining(Training):
    """A training by gradients of a metric on windows of tokens.

    Zeros of single weights stay zeros, whatever is trained, to the last.

    Attributes:
        n_tokens: tokens that the model sees in training, those of every epoch.
        n_epochs: times that it sees each of them.
        rows: rows of the report whose models are trained, as `winner`, or `uniform` for comparison.
        trained: FULL trains every parameter; LORA adds to every unit's matrix a product of two of low rank (Hu et al., 2021,
            arXiv 2106.09685), at weights that are not zero; HIRA adds to every weight itself times such a product (Huang et al.,
            2025, ICLR). Both are merged at the end.
        rank: of these products.
        learning_rate: at its height; it rises over the first twentieth of all steps, and falls by a cosine.
        batch_size: windows of a step of the optimiser.
        micro_batch: windows of a pass, which divides `batch_size`; less memory, and the same step.
        weight_decay: of AdamW.
        max_gradient_norm: to which gradients are cut.
        checkpoint_blocks: keeps no activations within blocks, which are computed again on the way back; less memory, more time.
        n_checks: times that the model is scored on the search split; the best of them is kept.
        patience: checks without a better score after which training ends.
    """

    n_tokens: int = 1_000_000
    n_epochs: int = 1
    rows: list[str] = field(default_factory=lambda: ["winner"])
    trained: Trained = Trained.FULL
    rank: int = 16
    learning_rate: float = 5e-4
    batch_size: int = 8
    micro_batch: int = 8
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    checkpoint_blocks: bool = False
    n_checks: int = 10
    patience: int = 3
    needs_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_epochs", "rank", "batch_size", "micro_batch", "n_checks", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "max_gradient_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training.{name} must be above 0, got {getattr(self, name)}")
        if self.weight_decay < 0:
            raise ConfigError(f"training.weight_decay must not be negative, got {self.weight_decay}")
        if self.batch_size % self.micro_batch:
            raise ConfigError(
                f"training.micro_batch must divide training.batch_size={self.batch_size}, got {self.micro_batch}; give a divisor"
            )
        if not self.rows:
            raise ConfigError("training.rows must name rows of the report, such as [winner], got none; or choose training=none")

    @abstractmethod
    def metric(self) -> WindowMetric | None:
        """What falls as the model learns, with what it must know of the dense model's answers; None where these are not asked."""

    @abstractmethod
    def train_in_place(self, student: "LoadedModel", parameters: dict[str, nn.Parameter], lesson: Lesson) -> Course:
        """Trains a model, and leaves it with the weights of its best check.

        Args:
            student: in evaluation mode.
            parameters: what is trained of it.
            lesson: windows, targets and checks.

        Raises:
            ConfigError: when the lesson's folder holds a broken state, or the model cannot be trained so.
            SelfpruneError: when the disk is full.
        """

    def n_steps(self, n_windows: int, n_blocks: int) -> int:
        """How many steps are told.

        Args:
            n_windows: that differ.
            n_blocks: of the pruned model.
        """
        return n_windows * self.n_epochs // self.batch_size

    def optimizer(self, parameters: Iterable[nn.Parameter], n_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW, and the schedule of its learning rate over so many steps."""
        from transformers import get_scheduler  # here, since configs are checked without transformers

        optimizer = torch.optim.AdamW(parameters, self.learning_rate, betas=(0.9, 0.95), weight_decay=self.weight_decay)
        return optimizer, get_scheduler("cosine", optimizer, math.ceil(WARM_UP * n_steps), n_steps)

    def n_windows(self, n_tokens_per_window: int) -> int:
        """Windows that differ, for one epoch in whole batches, at least one."""
        n_per_epoch = self.n_tokens / self.n_epochs / n_tokens_per_window
        return max(1, round(n_per_epoch / self.batch_size)) * self.batch_size

    def held_bytes(self, n_parameters: int) -> int:
        """The pruned model in fp32 and, of what is trained of it, gradients and two moments of AdamW; activations come on top."""
        return n_parameters * (16 if self.trained is Trained.FULL else 5)

    def disk_bytes(self, n_parameters: int, n_tokens_per_window: int, n_vocabulary: int) -> int:
        """As told by the metric for every token, and in fp32 the best weights, and the last with their moments."""
        metric = self.metric()
        n_each = metric.kept_bytes(n_vocabulary) if metric else 0
        n_kept = self.n_windows(n_tokens_per_window) * n_tokens_per_window * n_each
        return n_kept + n_parameters * (20 if self.trained is Trained.FULL else 5)

    def n_pass_tokens(self) -> int:
        """A step takes a pass forward and one back, which takes as long as two; the dense model sees every window once."""
        return 3 * self.n_tokens * len(self.rows) + (self.n_tokens // self.n_epochs if self.needs_teacher else 0)
