"""Which texts the splits are drawn from."""

from dataclasses import dataclass
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

    def __post_init__(self) -> None:
        for name, least in (("n_tokens_per_window", 2), ("n_calibration", 1), ("n_search", 1), ("n_report", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} must be at least {least}, got {getattr(self, name)}")
        self.require("calibration")
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
        empty = [split for split in splits if not getattr(self, split)]
        if self.source in (Source.FILES, Source.HUB) and empty:
            raise ConfigError(
                f"data.source={self.source.name} needs {' and '.join(f'data.{split}' for split in splits)}, but "
                f"data.{empty[0]} is empty; give a text for each"
            )
