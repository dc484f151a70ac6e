"""From what Hydra composed to a run in its folder; what takes seconds to import waits until the config is known to be sound."""

import datetime
from pathlib import Path

from omegaconf import DictConfig

from selfprune.configs.config import RunConfig, to_config
from selfprune.configs.signals import naming_on_stop
from selfprune.errors import ConfigError
from selfprune.runs.display import importing
from selfprune.runs.extension import asked_limits, open_stages
from selfprune.runs.run_folder import hold_run_folder, opened


def run_composed(composed: DictConfig, overrides: list[str], named: Path | None = None) -> Path:
    """Runs a composed config, or continues the run folder that its `resume` names.

    Args:
        composed: what Hydra composed.
        overrides: the command line's config overrides, kept for `resume`.
        named: the run folder where the config names none; `runs/<date and time>` when None. One that exists is not taken.

    Returns:
        the run folder.

    Raises:
        SelfpruneError: on a user's mistake.
        KeyboardInterrupt: with the run folder, when the user interrupts.
    """
    asked = asked_limits(composed, overrides) if composed.resume else {}
    if not composed.resume and any(override.startswith("resume=") for override in overrides):
        raise ConfigError(
            "resume must name the folder of a run that was begun, got nothing; give one, as in resume=runs/NAME, or leave "
            "the option out for a new run"
        )
    if not composed.resume:
        to_config(composed, RunConfig)  # a mistake in the config is told before a folder is made
    with importing("the run had not begun"):
        from selfprune.runs.run import run
        from selfprune.runs.run_preflight import preflight
    held = hold_run_folder(composed, named or Path(f"runs/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"))
    with opened(held, composed, overrides) as recorded, naming_on_stop(str(held.folder)):
        config = to_config(recorded, RunConfig)
        expected = preflight(config, held.folder)
        return run(config, held.folder, expected, open_stages(held.folder, config.search, asked))
