"""From what Hydra composed to a run in its folder; what takes seconds to import waits until the config is known to be sound."""

import datetime
from pathlib import Path

from omegaconf import DictConfig

from selfprune.configs.config import RunConfig, to_config
from selfprune.configs.signals import naming_on_stop
from selfprune.configs.sweep_records import SweepJob
from selfprune.errors import ConfigError
from selfprune.runs.extension import asked_limits, open_stages
from selfprune.runs.run_folder import config_content, hold_run_folder, is_finished, opened
from selfprune.runs.showing.display import Display, importing


def run_composed(composed: DictConfig, overrides: list[str], job: SweepJob | None = None) -> Path:
    """Runs a composed config, or continues the run folder that its `resume` names.

    Args:
        composed: what Hydra composed.
        overrides: the command line's config overrides, kept for `resume`.
        job: of a sweep, in which a run that is finished is left as it is. Where the config names no folder, it is one named after
            the config, and outside of sweeps `runs/<date and time>`.

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
    if job:
        content = config_content(composed)
        composed.run_folder = composed.run_folder or str(job.own_folder(content))
        if is_finished(folder := Path(composed.run_folder).expanduser(), content):
            Display().say(f"{folder} is finished, and left as it is")
            job.works_in(folder)
            return folder
    with importing("the run had not begun"):
        from selfprune.runs.run import run
        from selfprune.runs.run_preflight import preflight
    held = hold_run_folder(composed, Path(f"runs/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"))
    if job:
        job.works_in(held.folder)
    with opened(held, composed, overrides) as recorded, naming_on_stop(str(held.folder)):
        config = to_config(recorded, RunConfig)
        expected = preflight(config, held.folder)
        return run(config, held.folder, expected, open_stages(held.folder, config.search, asked))
