"""Trackers of experiments, by accelerate: TensorBoard, Weights & Biases, MLflow, Trackio.

They are told the config, the best score of every search over the tokens that it spent, and the rows of the report. Nothing is
read back from them. A run that is continued tells everything once more, since its first rounds are recalled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from selfprune.errors import ConfigError, did_you_mean
from selfprune.reports.comparisons.finished_runs import flat, recorded_config
from selfprune.search.loop import Progress

PROJECT = "selfprune"
FOLDER = "tracking"
"""In the run folder, for trackers that keep files."""
OPEN: dict[str, tuple[str, Callable[[Path], GeneralTracker]]] = {
    "tensorboard": ("tensorboard", lambda folder: TensorBoardTracker(PROJECT, logging_dir=folder)),
    "wandb": ("wandb", lambda folder: WandBTracker(PROJECT, dir=str(folder))),
    "mlflow": ("mlflow", lambda folder: MLflowTracker(PROJECT, logging_dir=str(folder.resolve()))),
    "trackio": ("trackio", lambda _: TrackioTracker(PROJECT)),
}
"""Name -> the package that it needs, and how it is opened; what else they need stands in their own environment variables."""


@dataclass
class Trackers:
    """Those of one run; none by default.

    Attributes:
        trackers: that are told.
    """

    trackers: list[GeneralTracker] = field(default_factory=list)

    @classmethod
    def open(cls, names: Sequence[str], folder: Path) -> "Trackers":
        """Begins a record with every tracker, and tells them the config.

        Args:
            names: of trackers, as checked by `check_trackers`.
            folder: of the run.
        """
        if not names:
            return cls()
        PartialState()  # which accelerate's trackers ask whether they may write
        place, told = folder / FOLDER, flat(recorded_config(folder))
        place.mkdir(exist_ok=True)
        opened = [OPEN[name][1](place) for name in names]
        for tracker in opened:
            tracker.start()
            tracker.store_init_configuration(told)
        return cls(opened)

    def round(self, state: Progress) -> None:
        """Tells where a search stands.

        Args:
            state: after a round.
        """
        values = {f"{state.search}/candidates": state.n_candidates}
        scores = {} if state.best_score is None else {f"{state.search}/score": state.best_score}
        for tracker in self.trackers:
            tracker.log({**values, **scores}, step=state.n_tokens)

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tells the rows of the report, and ends the records.

        Args:
            rows: of `report.json`.
        """
        values = {f"report/{row['name']}/{name}": row[name] for row in rows for name in ("kl", "perplexity", "sparsity")}
        for tracker in self.trackers:
            tracker.log(values, step=max((row["n_tokens"] for row in rows), default=0))
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that are unknown or not installed.

    Raises:
        ConfigError: then.
    """
    for name in names:
        if name not in OPEN:
            raise ConfigError(f"trackers takes {did_you_mean(name, OPEN)}, got {name}")
        package, _ = OPEN[name]
        if find_spec(package) is None:
            raise ConfigError(
                f"trackers=[{name}] needs the package {package}, which is not installed here; install it with pip install "
                f"{package}, or leave trackers out"
            )
