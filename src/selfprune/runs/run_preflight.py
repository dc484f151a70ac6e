"""What is told of a run before any weight is read: that it makes sense, fits, and can reach what it needs."""

from pathlib import Path

from selfprune.configs.config import RunConfig
from selfprune.data.splits import check_texts
from selfprune.errors import ConfigError
from selfprune.models.model_config import Placement
from selfprune.runs.forecasts.run_forecast import forecast_run
from selfprune.runs.showing.display import Display
from selfprune.runs.showing.tracking import check_trackers
from selfprune.timing.resources import Resources


def preflight(config: RunConfig, folder: Path) -> Resources:
    """Refuses a run that cannot be finished, before any weight is read or anything written, and says what it needs.

    Args:
        config: of the run.
        folder: of the run.

    Returns:
        what the run needs; the seconds are not known before the model runs.

    Raises:
        ConfigError: when the model would stay on disk, where a search cannot change it, or a tracker is not there.
        DataError: when a text is missing or out of reach.
        LanguageModelError: when the language model of a new run cannot serve, though a search will ask it.
        ModelError: when the model does not fit into memory.
        SelfpruneError: when the results do not fit onto the disk.
    """
    if config.model.placement is Placement.STREAM:
        raise ConfigError(
            "a search needs the whole model at hand, but model.placement=STREAM leaves it on disk; choose WHOLE or SPREAD, or "
            "prune it without a search: python -m selfprune.prune"
        )
    check_trackers(config.trackers)
    check_texts(config.data)
    expected, needs = forecast_run(config, folder)
    asks = any(proposer.asks_language_model for proposer in (config.proposer, *config.controls.values()))
    # A run that was begun may hold all the replies that it needs.
    if asks and not (folder / "language_model_calls.jsonl").exists():
        config.language_model.check()
    Display().say(needs)
    return expected
