"""What the command line chooses wins over what an experiment chooses.

In Hydra an experiment's `override /proposer: ...` beats that of a `search=` on the command line, whatever their order. Here
a group that is chosen on the command line brings its own choices along, as if they had been given there, too.
"""

from collections.abc import Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode

EXPERIMENT = "experiment"


def brought_along(config_name: str, overrides: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """The choices that those of a command line bring along, where an experiment might hide them.

    Args:
        config_name: the config that is overridden; Hydra must be initialised.
        overrides: of the command line; choices that are swept over bring nothing, before they are one each.
        more: overrides of Hydra's own options that the choices need to be found.

    Returns:
        overrides to be added, such as `proposer=evopress` for `search=evopress`; none where no experiment is given.

    Raises:
        hydra.errors.HydraException: when an override or a choice cannot be read.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if not any(override.key_or_group == EXPERIMENT for override in parsed):
        return []
    groups = set(GlobalHydra.instance().config_loader().list_groups("")) - {EXPERIMENT, "hydra"}
    chosen = [o.input_line for o in parsed if o.key_or_group in groups and not o.is_sweep_override() and not o.is_delete()]
    given = {key_of(override) for override in parsed}
    before, after = _choices(config_name, [*more]), _choices(config_name, [*more, *filter(None, chosen)])
    return [f"{key}={after[key]}" for key in before if key not in given and after.get(key) not in (None, before[key])]


def key_of(override: Override) -> str:
    """The name under which Hydra keeps what an override chooses: the group, and the place where it goes if it is another."""
    return override.key_or_group if override.package is None else f"{override.key_or_group}@{override.package}"


def _choices(config_name: str, overrides: list[str]) -> dict[str, str | None]:
    # which files are merged says it already; merging them would take as long again
    defaults = GlobalHydra.instance().config_loader().compute_defaults_list(config_name, overrides, RunMode.RUN)
    return dict(defaults.overrides.known_choices)
