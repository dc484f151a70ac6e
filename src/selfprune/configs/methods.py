"""Finds the methods, and says what a file that should hold one lacks.

Every method is a dataclass and its own config schema. A method's YAML file names its schema in its defaults: `wanda_schema` is
the dataclass in `pruners/weights/wanda.py`. There is no registry to keep: the modules of the method folders are imported, and the
dataclass of the contract's kind in each is offered under its file's name.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import traceback
from pathlib import Path
from types import ModuleType

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from selfprune import language_models, proposers, pruners, recoveries, training
from selfprune.configs.conf_path import conf_folder
from selfprune.evaluators import window_metrics
from selfprune.evaluators.window_metrics.base import WindowMetric
from selfprune.language_models.base import LanguageModelConfig
from selfprune.proposers.base import ProposerConfig
from selfprune.pruners.base import Pruner
from selfprune.recoveries.base import Recovery
from selfprune.training.base import Training

METHODS: dict[str, tuple[ModuleType, type]] = {
    "pruner": (pruners, Pruner),
    "recovery": (recoveries, Recovery),
    "training": (training, Training),
    "proposer": (proposers, ProposerConfig),
    "evaluator": (window_metrics, WindowMetric),
    "language_model": (language_models, LanguageModelConfig),
}
"""Config group -> the folder of its methods, and the class that they derive from."""


def find_methods(group: str) -> dict[str, type]:
    """The methods of a config group: file name -> dataclass.

    Args:
        group: a key of `METHODS`.
    """
    looked = {name: _method_or_fault(group, module) for name, module in _modules(group).items()}
    return {name: method for name, method in looked.items() if isinstance(method, type)}


def _modules(group: str) -> dict[str, str]:
    """The modules of a family's folder and of the folders in it: file name -> dotted name."""
    package = METHODS[group][0]
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return {info.name.rpartition(".")[2]: info.name for info in found if not info.ispkg}


def register_methods() -> None:
    """Offers the schema of every method to Hydra."""
    store = ConfigStore.instance()
    for group in METHODS:
        for name, method in find_methods(group).items():
            store.store(group=group, name=f"{name}_schema", node=method)


def why_missing(config_name: str) -> str | None:
    """What to tell when Hydra finds no config of this name; None where that has nothing to do with a method's files.

    Args:
        config_name: as in `pruner/mine_schema`.
    """
    group, _, choice = config_name.partition("/")
    if group not in METHODS:
        return None
    name, package = choice.removesuffix("_schema"), METHODS[group][0]
    module = _modules(group).get(name)
    file = _file(module) if module else Path(package.__path__[0]) / f"{name}.py"
    yaml = conf_folder() / group / f"{name}.yaml"
    if name == choice:
        if name not in find_methods(group):
            return None
        return (
            f"{group}={name} was not found: {file} holds the method, but {yaml}, which offers it, is missing; write that file, "
            f'with the lines "defaults:" and "  - {name}_schema"'
        )
    fault = _method_or_fault(group, module) if module else "there is no such file"
    return (
        f"{group}={name} cannot be used: {yaml} asks for {choice}, which must be the one dataclass in {file} that derives from "
        f"{METHODS[group][1].__name__} and has all its methods, but {fault}; see docs/extending.md"
    )


def _file(module: str) -> Path:
    """Where a module of this dotted name lies; it is not imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    return Path(str(spec.origin))


def _method_or_fault(group: str, dotted: str) -> type | str:
    """The method that a module of this dotted name holds, or what it lacks."""
    kind = METHODS[group][1]
    try:
        module = importlib.import_module(dotted)
    except Exception as error:  # whatever a file under work does when it is run
        *_, last = traceback.extract_tb(error.__traceback__)
        return f"it cannot be imported ({type(error).__name__}: {error}; {Path(last.filename).name}, line {last.lineno})"
    own = [value for _, value in inspect.getmembers(module, inspect.isclass) if value.__module__ == module.__name__]
    derived = [value for value in own if issubclass(value, kind)]
    faults = {value.__name__: fault for value in derived if (fault := _fault(value))}
    sound = [value for value in derived if value.__name__ not in faults]
    if len(sound) == 1:
        return sound[0]
    if sound:
        return f"it holds {len(sound)}, {' and '.join(value.__name__ for value in sound)}: give each a file of its own"
    if faults:
        return " and ".join(f"its class {name} {fault}" for name, fault in faults.items())
    return f"no class in it does (found {', '.join(value.__name__ for value in own) or 'none'})"


def _fault(method: type) -> str:
    """Why a class that derives from a contract cannot be used; empty where it can."""
    faults = []
    # the marks of a dataclass are inherited, its fields are not
    if "__dataclass_fields__" not in vars(method):
        faults.append("is not decorated with @dataclass")
    if missing := sorted(getattr(method, "__abstractmethods__", ())):
        faults.append(f"lacks {' and '.join(f'{name}()' for name in missing)}")
    if not faults and dataclasses.is_dataclass(method):
        try:
            OmegaConf.structured(method)
        except Exception as error:  # OmegaConf tells a wrong field by errors of several kinds
            faults.append(f"has a field that is no option ({str(error).splitlines()[0]})")
    return " and ".join(faults)
