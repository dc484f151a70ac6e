"""Tells a user's mistake from a defect, and says it in one paragraph."""

from collections.abc import Callable

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from selfprune.configs.methods import why_missing
from selfprune.configs.mistakes.override_faults import of_exception
from selfprune.configs.mistakes.override_mistakes import CommandLine
from selfprune.errors import SelfpruneError, refused_path

LAUNCHERS = {
    "submitit_slurm": "hydra-submitit-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
    "ray_aws": "hydra-ray-launcher",
    "rq": "hydra-rq-launcher",
}
"""Launcher of a sweep -> the package that brings it."""


def mistake_of(error: Exception, line: Callable[[], CommandLine]) -> str | None:
    """The paragraph for a user's mistake; None for any other error.

    Args:
        error: what a command met.
        line: gives the overrides that it was given.
    """
    if isinstance(error, SelfpruneError):
        return str(error)
    if isinstance(error, OSError) and (refusal := refused_path(error)):
        return refusal
    if isinstance(error, MissingConfigException) and (reason := _why_missing(error.missing_cfg_file or "")):
        return reason
    # Hydra tells some mistakes by a ValueError, which may be a defect as well; the overrides decide
    if not isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        return None
    said = line().mistake()
    if said is None and not isinstance(error, ValueError):
        return f"{of_exception(error)}; `selfprune options` describes every option"
    return said


def _why_missing(config_name: str) -> str | None:
    if reason := why_missing(config_name):
        return reason
    group, _, launcher = config_name.rpartition("/")
    if group == "hydra/launcher" and (package := LAUNCHERS.get(launcher)):
        return (
            f"hydra/launcher={launcher} comes with the package {package}, which is not installed here; install it with "
            f"pip install {package}, or leave hydra/launcher out to run one job after the other"
        )
    return None
