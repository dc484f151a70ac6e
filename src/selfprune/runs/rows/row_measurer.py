"""How every row of the report is measured, whatever model it is of."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.window_metrics.perplexity import Perplexity
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.loading import LoadedModel
from selfprune.runs.preparation import PreparedRun


@dataclass
class RowMeasurer:
    """Measures models on the report split, and on the tasks of lm-eval.

    Attributes:
        prepared: what is shared.
    """

    prepared: PreparedRun

    @cached_property
    def evaluator(self) -> WindowEvaluator:
        """The report split with the dense model's answers; to be asked for first while the model is dense."""
        loaded, config = self.prepared.loaded, self.prepared.config
        metrics = {"kl": KLDivergence(), "nll": Perplexity()}
        return WindowEvaluator(metrics, loaded.model, loaded.blocks, self.prepared.splits.report_NT, config.search.batch_size)

    def measure(self, loaded: LoadedModel) -> dict[str, Any]:
        """`kl` and `window_kl` to the dense model, `perplexity` and `tasks` of a model as it stands."""
        scores = self.evaluator.on(loaded.model, loaded.blocks).evaluate(range(len(loaded.blocks)))
        means = {metric: math.fsum(values) / len(values) for metric, values in scores.items()}
        harness = self.prepared.harness
        tasks = harness.evaluate(loaded.model, loaded.tokenizer) if self.prepared.config.harness.tasks else {}
        kl = {"kl": means["kl"], "window_kl": scores["kl"]}
        return {**kl, "perplexity": math.exp(means["nll"]), "tasks": tasks}
