"""Which texts the splits are drawn from."""

import math
import os
from dataclasses import dataclass, field, replace
from enum import Enum

from selfprune.errors import ConfigError
from selfprune.storage.path_fields import path_field

HUB_NAMES = ("c4", "wikitext2", "fineweb_edu")
"""Texts of the hub that go by a name; a folder of such a name is given as `./c4`."""
SPLITS = ("report", "calibration", "search")


class Source(str, Enum):
    """Where the texts come from."""

    EMBEDDED = "embedded"
    FILES = "files"
    HUB = "hub"
    SELF_GENERATED = "self_generated"


class Bos(str, Enum):
    """Whether windows begin with the token that begins a text."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass
class DataConfig:
    """Which texts to draw windows from, and how many.

    Attributes:
        source: where the texts come from; with SELF_GENERATED the model writes calibration and search itself.
        calibration: FILES: a text file, or a folder of .txt, .md and .jsonl (field `text`) files. HUB: `c4`, `wikitext2`,
            `fineweb_edu` or `dataset_id:config:split:column`, later parts optional.
        search: the same for the search.
        report: the same for the report; with SELF_GENERATED a file, a folder, or nothing for the embedded text.
        n_tokens_per_window: length of every window, with the tokens that it begins with.
        bos: whether every window begins with the token that begins a text (`<bos>`), which is not scored: what stands after it
            is. AUTO does as the tokenizer does before a whole text; ALWAYS puts it there in any case; NEVER leaves the windows
            as they were cut, as published protocols do.
        n_calibration: windows for calibration.
        n_search: windows for the search.
        n_report: windows for the report; 0 takes the whole text in order, as WikiText-2 perplexity is measured.
        mixture: in place of `calibration`, text -> weight: `embedded`, `self_generated`, or what `calibration` takes of FILES, as
            a whole path, or of HUB; each has its share of the calibration windows, and one of weight 0 is left out.
    """

    source: Source = Source.EMBEDDED
    calibration: str = path_field(names=HUB_NAMES, or_hub=True)
    search: str = path_field(names=HUB_NAMES, or_hub=True)
    report: str = path_field(names=HUB_NAMES, or_hub=True)
    n_tokens_per_window: int = 256
    bos: Bos = Bos.AUTO
    n_calibration: int = 64
    n_search: int = 64
    n_report: int = 128
    mixture: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("n_tokens_per_window", 2), ("n_calibration", 1), ("n_search", 1), ("n_report", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} must be at least {least}, got {getattr(self, name)}")
        self.require("calibration")
        self._check_mixture()
        for name in SPLITS:
            text = getattr(self, name)
            if text and (self.source is Source.EMBEDDED or (self.source is Source.SELF_GENERATED and name != "report")):
                raise ConfigError(
                    f"data.source={self.source.name} makes its own text, but data.{name}={text}; give data.source=FILES or "
                    "leave it out"
                )
        if self.n_report == 0 and not self.report:
            raise ConfigError(
                "data.n_report=0 takes the whole report text, but the embedded text has no end; give data.n_report of at least 1"
            )

    def require(self, *splits: str) -> None:
        """Checks that texts are named where they have to be.

        Raises:
            ConfigError: when one is not.
        """
        empty = [split for split in splits if not getattr(self, split) and not (split == "calibration" and self.mixture)]
        if self.source in (Source.FILES, Source.HUB) and empty:
            raise ConfigError(
                f"data.source={self.source.name} needs {' and '.join(f'data.{split}' for split in splits)}, but "
                f"data.{empty[0]} is empty; give a text for each"
            )

    def parts(self) -> "list[DataConfig]":
        """The texts that the calibration windows come from, each with its share of them; this alone where nothing is mixed.

        Shares are rounded so that they add up, the largest remainders up.
        """
        if not self.mixture:
            return [self]
        weights = {text: weight for text, weight in self.mixture.items() if weight}
        exact = [self.n_calibration * weight / math.fsum(weights.values()) for weight in weights.values()]
        n_left = self.n_calibration - sum(map(math.floor, exact))
        rounded_up = sorted(range(len(exact)), key=lambda i: math.floor(exact[i]) - exact[i])[:n_left]
        sizes = [math.floor(one) + (i in rounded_up) for i, one in enumerate(exact)]
        alone = replace(self, mixture={}, source=Source.EMBEDDED, calibration="", search="", report="", n_report=1)
        return [
            replace(alone, source=source, calibration=text if source in (Source.FILES, Source.HUB) else "", n_calibration=size)
            for (text, source), size in zip(((text, _source_of(text)) for text in weights), sizes, strict=True)
            if size
        ]

    def _check_mixture(self) -> None:
        if not self.mixture:
            return
        if self.calibration:
            raise ConfigError(
                f"data.mixture takes the place of data.calibration, but that is {self.calibration}; leave one of them out"
            )
        wrong = [text for text, weight in self.mixture.items() if not (weight >= 0 and math.isfinite(weight))]
        if wrong or not any(self.mixture.values()):
            raise ConfigError(f"the weights of data.mixture must not be negative, nor all 0, got {self.mixture}")
        near = [text for text in self.mixture if _source_of(text) is Source.FILES and not os.path.isabs(text)]
        if near:
            raise ConfigError(
                f"data.mixture names {near[0]}, a path that means another file elsewhere; give {os.path.abspath(near[0])}"
            )
        if len(self.parts()) < sum(weight > 0 for weight in self.mixture.values()):
            raise ConfigError(
                f"data.n_calibration={self.n_calibration} windows are too few for the weights of data.mixture, by which a text "
                "has none; give more windows, or weights that are nearer to each other"
            )


def _source_of(text: str) -> Source:
    """Where a text of a mixture comes from."""
    if text in (Source.EMBEDDED.value, Source.SELF_GENERATED.value):
        return Source(text)
    is_path = text.startswith((os.sep, ".", "~")) or os.path.exists(text) or text.endswith((".txt", ".md", ".jsonl"))
    return Source.FILES if is_path and text not in HUB_NAMES else Source.HUB
