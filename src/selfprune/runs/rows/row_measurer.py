"""How every row of the report is pruned and measured, in whatever process."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from selfprune.allocations.unit import Allocation
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.window_metrics.perplexity import Perplexity
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.levels.level_store import LevelStore
from selfprune.models.blocks.walk import windows_per_pass
from selfprune.models.loading import LoadedModel
from selfprune.pruners.base import Pruner
from selfprune.pruning.sequential import prune_in_place
from selfprune.runs.preparation import PreparedRun
from selfprune.statistics.coverage import Coverage


@dataclass
class RowMeasurer:
    """Prunes for good, and measures on the report split and on the tasks of lm-eval; a copy does so elsewhere.

    Attributes:
        store: brings its model back to dense.
        method: prunes it.
        calibration_NT: token ids that its statistics come from.
        report_NT: token ids of the report split.
        batch_size: windows that share a forward pass.
        harness: the tasks; None where there are none.
    """

    store: LevelStore
    method: Pruner
    calibration_NT: Tensor
    report_NT: Tensor
    batch_size: int
    harness: Harness | None

    @classmethod
    def of(cls, prepared: PreparedRun) -> "RowMeasurer":
        """That of a run."""
        config, splits = prepared.config, prepared.splits
        harness = prepared.harness if config.harness.report_tasks else None
        return cls(prepared.store, config.method, splits.calibration_NT, splits.report_NT, config.search.batch_size, harness)

    @cached_property
    def evaluator(self) -> WindowEvaluator:
        """The report split with the dense model's answers; to be asked for first while the model is dense."""
        loaded, metrics = self.store.loaded, {"kl": KLDivergence(), "nll": Perplexity()}
        return WindowEvaluator(metrics, loaded.model, loaded.blocks, self.report_NT, self.batch_size)

    def prune(self, allocation: Allocation) -> Coverage:
        """Prunes the dense model block by block, by the method itself.

        Args:
            allocation: what goes.

        Returns:
            the calibration tokens that reached each unit.
        """
        self.store.restore()
        coverage = Coverage(self.store.loaded)
        if any(allocation.values()):
            n_at_once = windows_per_pass(self.calibration_NT.shape[1])
            prune_in_place(self.store.loaded, self.calibration_NT, self.method, allocation, n_at_once, coverage=coverage)
        return coverage

    def measure(self, loaded: LoadedModel) -> dict[str, Any]:
        """`kl` and `window_kl` to the dense model, `perplexity` and `tasks` of a model as it stands."""
        scores = self.evaluator.on(loaded.model, loaded.blocks).evaluate(range(len(loaded.blocks)))
        means = {metric: math.fsum(values) / len(values) for metric, values in scores.items()}
        tasks = self.harness.evaluate(loaded.model, loaded.tokenizer) if self.harness else {}
        kl = {"kl": means["kl"], "window_kl": scores["kl"]}
        return {**kl, "perplexity": math.exp(means["nll"]), "tasks": tasks}

    def row(self, allocation: Allocation) -> dict[str, Any]:
        """Prunes and measures."""
        self.prune(allocation)
        return self.measure(self.store.loaded)
