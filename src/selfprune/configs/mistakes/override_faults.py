"""What is wrong with one override that can be read but not composed, in plain words."""

from collections.abc import Sequence
from dataclasses import fields

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from selfprune.configs.choices import key_of
from selfprune.configs.methods import find_methods
from selfprune.configs.mistakes.expected_values import all_names, expectation, field_type, names_in, node_of
from selfprune.configs.path_options import GROUP_OF
from selfprune.errors import did_you_mean


def fault_of_several(override: Override) -> str:
    """What is wrong with an override of several values outside a sweep.

    Args:
        override: the override.
    """
    key, value = override.get_key_element(), _given(override)
    return (
        f"these are several values for one option; for a run with each of them add -m; a list is written as {key}=[{value}], and "
        f"a text with commas as \"{key}='{value}'\""
    )


def _given(override: Override) -> str:
    return str(override.input_line).partition("=")[2]


def choices_of(override: Override, more: Sequence[str] = ()) -> list[str]:
    """The choices of the config group that an override names; none where it names no group.

    Args:
        override: the override; Hydra must be initialised.
        more: overrides of Hydra's own options that the choices need to be found.
    """
    if "." in override.key_or_group:  # an option, of which Hydra would search every folder for choices
        return []
    found = GlobalHydra.instance().config_loader().get_group_options(override.key_or_group, overrides=list(more))
    return [name for name in found if not name.endswith("_schema")]


def fault_of_choice(override: Override, choices: Sequence[str], before: DictConfig, error: Exception) -> str:
    """What is wrong with an override that chooses from a group.

    Args:
        override: the override.
        choices: what the group holds.
        before: the config as composed without it.
        error: what composing it raised.
    """
    group, key, value = override.key_or_group, key_of(override), override.value()
    chosen = {name: choice for name, choice in before.hydra.runtime.choices.items() if not name.startswith("hydra/")}
    if override.is_delete():
        return f"there is no {key} to leave out; what is chosen, nearest first: {did_you_mean(key, chosen)}"
    nearest = f"the choices, nearest first: {did_you_mean(str(value), choices)}"
    given = _given(override)
    if not isinstance(value, str | list):
        return f"{group} takes the name of a choice, got {given}; {nearest}"
    if isinstance(value, str) and value not in choices:
        return f"there is no choice {given or '(nothing)'} of {group}; {nearest}"
    if key in before.hydra.runtime.choices and (override.is_add() or override.is_force_add()):
        return f"{key} is chosen already; to choose another, leave out the plus: {key}={given}"
    if override.is_force_add():
        return f"a choice is added by one plus: +{key}={given}"
    if key not in before.hydra.runtime.choices and not override.is_add():
        return f"no {key} is chosen that this could replace; add it by a plus: +{key}={given}"
    return f"what the file of this choice says cannot be: {of_exception(error)}"


def fault_of_option(override: Override, before: DictConfig, error: Exception) -> str:
    """What is wrong with an override of an option's value.

    Args:
        override: the override.
        before: the config as composed without it.
        error: what composing it raised.
    """
    name, given = override.key_or_group, _given(override)
    if override.package is not None:
        known = [group for group in dict(before) if _is_group(str(group))]
        return f"there is no group {name}; the groups, nearest first: {did_you_mean(name, map(str, known))}"
    parts = name.split(".")
    depth = next((i for i in range(1, len(parts) + 1) if node_of(before, ".".join(parts[:i])) is None), None)
    if depth:
        return _unknown(before, name, depth)
    if override.is_delete():
        return f"{name} always has a value, so it cannot be left out; give another value, or nothing for its default"
    if override.is_add():
        return f"{name} has a value already; to give another, leave out the plus: {name}={given}"
    node = node_of(before, name)
    if isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict and isinstance(override.value(), dict):
        return f"{name} has no such entries yet; they are added by a plus: +{name}={given}"
    cause = next((e for e in _chain(error) if isinstance(e, ValidationError) and e.full_key), None)
    at = str(cause.full_key).partition("[")[0] if cause else name
    of = field_type(before, at)
    if cause is None or of is None:
        return of_exception(error)
    return f"{at} takes {expectation(of, at, given)}, got {given or 'nothing'}"


def _unknown(config: DictConfig, name: str, depth: int) -> str:
    """What to tell of an option that there is none of.

    Args:
        config: as composed.
        name: dotted name as it was given.
        depth: how many parts of it lead to the first that is unknown.
    """
    parts = name.split(".")
    parent, missing, last = ".".join(parts[: depth - 1]), ".".join(parts[:depth]), parts[-1]
    known = names_in(node_of(config, parent) if parent else config)
    if not known:
        return f"{parent} has no options of its own, so there is no {name}"
    said = f"there is no option {missing}; the options there, nearest first: {did_you_mean(parts[depth - 1], known)}"
    others = [other for other in all_names(config) if other.rpartition(".")[2] == last and not other.startswith("hydra.")]
    group = GROUP_OF.get(parts[0], "")
    methods = find_methods(group) if group and depth > 1 else {}
    of = [f"{group}={method}" for method, kind in methods.items() if last in (f.name for f in fields(kind))]
    if others or of:
        said += f"; {last} is an option of {' and '.join(of)}" if of else f"; did you mean {' or '.join(others)}?"
    return said


def fault_of_reference(config: DictConfig, override: Override) -> str | None:
    """What is wrong with an override whose value refers to another; None where nothing is.

    Args:
        config: as composed with it.
        override: the override.
    """
    name, node = override.key_or_group, node_of(config, override.key_or_group)
    if node is None or isinstance(node, DictConfig):
        return None
    try:
        value = OmegaConf.select(config, name)
        if isinstance(value, ListConfig):
            OmegaConf.to_container(value, resolve=True)
    except ValidationError:
        return f"{name} takes {expectation(field_type(config, name), name, '')}, and what this stands for is none"
    except OmegaConfBaseException:
        return (
            "what this stands for cannot be found; it may name another option, as in ${seed}, a variable of the environment that "
            "is set, as in ${oc.env:HOME}, or, in a sweep, the number of the job, ${hydra:job.num}"
        )
    return None


def of_exception(error: Exception) -> str:
    """The sentence of a composition error that no override of the command line caused.

    Args:
        error: as Hydra or OmegaConf raised it.
    """
    cause = next((e for e in _chain(error) if isinstance(e, OmegaConfBaseException) and e.full_key), None)
    if cause is not None:
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return str(error).strip().partition("\n")[0]


def _chain(error: BaseException) -> list[BaseException]:
    found = [error]
    while found[-1].__cause__ is not None:
        found.append(found[-1].__cause__)
    return found


def _is_group(name: str) -> bool:
    return bool(GlobalHydra.instance().config_loader().get_group_options(name))
