"""What is wrong with the overrides of a command line, found by composing them one after the other, in plain words."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import hydra
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from selfprune.configs.choices import EXPERIMENT
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.mistakes.override_faults import (
    choices_of,
    fault_of_choice,
    fault_of_option,
    fault_of_reference,
    fault_of_several,
    of_exception,
)
from selfprune.configs.mistakes.override_syntax import unreadable
from selfprune.configs.path_options import GROUP_OF
from selfprune.errors import ConfigError

WRONG = (HydraException, OmegaConfBaseException, ValueError)
"""What Hydra raises for what it cannot compose."""


@dataclass(frozen=True)
class CommandLine:
    """The overrides of a command line.

    Attributes:
        config_name: the config that is overridden.
        typed: the overrides as they were given.
        read: the same, as Hydra is to read them.
        in_sweep: whether several values may be given for one option.
        more: overrides of Hydra's own options that the choices need to be found.
    """

    config_name: str
    typed: Sequence[str] = ()
    read: Sequence[str] = ()
    in_sweep: bool = False
    more: Sequence[str] = ()

    def mistake(self) -> str | None:
        """What is wrong with the first override that cannot be, and what to do; None where each can be."""
        for typed, read in zip(self.typed, self.read, strict=True):
            if said := unreadable(typed, read):
                return self._told(typed, said)
        parsed = OverridesParser.create().parse_overrides(list(self.read))
        swept = next((o for o in parsed if o.is_sweep_override()), None)
        if swept and not self.in_sweep:
            return self._told(str(swept.input_line), fault_of_several(swept))
        is_ready = GlobalHydra.instance().is_initialized()  # inside a job it is, and cannot be twice
        with nullcontext() if is_ready else initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return next(filter(None, (self._mistake_of_job(job) for job in self._jobs(parsed))), None)

    def refuse(self) -> None:
        """Refuses what no job can be made of, before a sweep makes its folder, and to leave out what every config needs.

        Raises:
            ConfigError: when a group is left out that every config needs, or is given what no choice can be.
            hydra.errors.HydraException: when an override cannot be read or composed.
        """
        parsed = OverridesParser.create().parse_overrides(list(self.read))
        for override in parsed:
            choices, group = choices_of(override, self.more), override.key_or_group
            if override.is_delete() and override.package is None and choices and group != EXPERIMENT:
                raise ConfigError(self._told(f"~{group}", f"{group} cannot be left out; choose one of {', '.join(choices)}"))
            # Hydra takes a list of choices for one, and stumbles over what is no name in it
            named = override.value() if choices else []
            if isinstance(named, list) and not all(isinstance(name, str) for name in named):
                typed = str(override.input_line)
                raise ConfigError(self._told(typed, f"{group} takes one of {', '.join(choices)}, got a list of other things"))
        for job in self._jobs(parsed) if self.in_sweep else []:
            self._composed([*self.more, *job])

    def _jobs(self, parsed: list[Override]) -> list[list[str]]:
        has_many = any(override.is_sweep_override() for override in parsed)
        return BasicSweeper.split_arguments(parsed, None)[0] if has_many else [list(self.read)]

    def _told(self, typed: str, said: str) -> str:
        """The paragraph: the override, what is wrong with it, and where the options beside it are described."""
        first = re.split(r"[.@=]", typed.lstrip("+~"), maxsplit=1)[0]
        group = GROUP_OF.get(first, first)
        has_options = group not in ("", EXPERIMENT) and not group.startswith("hydra") and (conf_folder() / group).is_dir()
        place = group if has_options else {"config": "run"}.get(self.config_name, self.config_name)
        return f"{typed}: {said}; `selfprune options {place}` describes the options there"

    def _mistake_of_job(self, job: Sequence[str]) -> str | None:
        parsed = OverridesParser.create().parse_overrides(list(job))
        typed = {} if self.in_sweep else dict(zip(job, self.typed, strict=True))
        try:
            config = self._composed([*self.more, *job])
        except WRONG as error:
            override, said = self._first_wrong(parsed, error)
        else:
            wrong = [(override, fault) for override in parsed if (fault := fault_of_reference(config, override))]
            if not wrong:
                return None
            override, said = wrong[0]
        line = str(override.input_line)
        # the jobs of a sweep are given interpolations with escapes
        return self._told(typed.get(line, re.sub(r"\\(\W)", r"\1", line)), said)

    def _first_wrong(self, parsed: list[Override], error: Exception) -> tuple[Override, str]:
        """The first override that cannot be composed with those before it, where choices come first, and what is wrong."""
        ordered = sorted(parsed, key=lambda o: not choices_of(o, self.more))
        lines = [str(override.input_line) for override in ordered]
        n_right, n_wrong, before, fault = 0, len(lines) + 1, self._composed(list(self.more)), error
        # by halves, since composing takes a while; the last try is all of them in this order, which might be right
        while n_wrong - n_right > 1:
            n = (n_right + n_wrong) // 2
            try:
                before, n_right = self._composed([*self.more, *lines[:n]]), n
            except WRONG as found:
                fault, n_wrong = found, n
        if n_right == len(lines):
            return parsed[-1], of_exception(error)
        override = ordered[n_right]
        choices = choices_of(override, self.more)
        return override, (
            fault_of_choice(override, choices, before, fault) if choices else fault_of_option(override, before, fault)
        )

    def _composed(self, overrides: list[str]) -> DictConfig:
        return hydra.compose(self.config_name, overrides=overrides, return_hydra_config=True)
