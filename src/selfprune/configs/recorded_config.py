"""What is recorded of a config, so that a later process knows whether it does the same work, and can compose it again."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from selfprune.configs.methods import METHODS
from selfprune.errors import ConfigError
from selfprune.storage.environment import read_environment
from selfprune.storage.recorded_files import read_text

REMEDY = "restore it from a copy, or begin the run anew, in another run_folder"
KINDS = tuple(kind for _, kind in METHODS.values())


def to_record(composed: DictConfig, without: tuple[str, ...]) -> dict[str, Any]:
    """Every value of a config in JSON's types, and under `methods` the class of every method, which no value tells.

    Args:
        composed: the config.
        without: keys that decide where results lie, and not which.
    """
    settings = OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in without])
    record: dict[str, Any] = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]
    methods = methods_of(composed)
    return record | ({"methods": methods} if methods else {})


def methods_of(composed: DictConfig) -> dict[str, str]:
    """Path of every method in a config -> its class."""
    found: dict[str, str] = {}
    for key, node in composed.items_ex(resolve=False):
        if isinstance(node, DictConfig) and not OmegaConf.is_missing(composed, key):
            kind = OmegaConf.get_type(node)
            found |= {str(key): kind.__name__} if isinstance(kind, type) and issubclass(kind, KINDS) else {}
            found |= {f"{key!s}.{path}": name for path, name in methods_of(node).items()}
    return found


def settled_overrides(overrides: list[str], composed: DictConfig) -> list[str]:
    """The overrides of a command line, in which a value that was interpolated is the one that it came to.

    So `seed=${hydra:job.num}` can be composed again where there is no job. A sweep escapes the braces, so that values are looked
    at as they are parsed.
    """
    settled = []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        if "${" in str(override.value()) and _is_value(override, composed):
            override._value = _quoted(OmegaConf.select(composed, override.key_or_group))
            text = f"{override.get_key_element()}={override.get_value_element_as_str()}"
        settled.append(text)
    return settled


def _is_value(override: Override, composed: DictConfig) -> bool:
    """Whether an override sets a value, and not the choice of a group."""
    found = OmegaConf.select(composed, override.key_or_group, default=None)
    return not override.is_delete() and not isinstance(found, DictConfig | None)


def _quoted(value: Any) -> Any:
    if isinstance(value, ListConfig):
        return [_quoted(each) for each in value]
    return QuotedString(value, Quote.single) if isinstance(value, str) else value


def recompose(folder: Path) -> tuple[DictConfig, list[str]]:
    """The config of a run that was begun, composed from its recorded overrides, and these.

    What was interpolated then has the value that it had.

    Raises:
        ConfigError: when the folder is none of a run.
    """
    environment, config = folder / "environment.json", folder / "config.yaml"
    if not environment.is_file() or not config.is_file():
        raise ConfigError(
            f"resume must name a run folder with a config.yaml and an environment.json, got {folder}; give the folder "
            f"of a run that was begun"
        )
    overrides = read_environment(folder)["overrides"]
    try:
        composed = hydra.compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(
            f"{environment} must hold the overrides that the run was begun with, but no config can be made of them "
            f"({str(error).splitlines()[0]}); restore it from a copy, or begin the run anew, in another run_folder"
        ) from error
    composed.run_folder = str(folder)
    recorded = read_text(config, REMEDY)
    try:
        _settle_in_place(composed, OmegaConf.create(recorded))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(
            f"{config} must hold the values that the run was begun with, but cannot be read as that ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); {REMEDY}"
        ) from error
    return composed, overrides


def _settle_in_place(composed: Any, recorded: Any) -> None:
    """Puts recorded values in the place of interpolations."""
    if not isinstance(composed, DictConfig | ListConfig) or type(recorded) is not type(composed):
        return
    keys = list(range(len(composed))) if isinstance(composed, ListConfig) else list(composed)
    for key in keys:
        is_there = key < len(recorded) if isinstance(key, int) else key in recorded
        if is_there and OmegaConf.is_interpolation(composed, key):
            composed[key] = recorded[key]
        elif is_there and not OmegaConf.is_missing(composed, key):
            _settle_in_place(composed[key], recorded[key])
