"""The tokens of each split's text, wherever it comes from.

Shape suffixes: K all tokens of a text.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from selfprune.data.data_config import DataConfig, Source
from selfprune.data.encoding import encode_text
from selfprune.data.hub_texts import find_hub_text, read_hub_text
from selfprune.data.text_files import TEXT_SUFFIXES, find_text_files, read_text_file
from selfprune.embedded.corpus import write_corpus
from selfprune.errors import DataError
from selfprune.seeds import stable_hash

CHARACTERS_PER_TOKEN = 6
SPARE_FACTOR = 4

Generate = Callable[[int, int], Tensor]
"""(number of tokens, seed) -> that many token ids, sampled from the model that is pruned."""


@dataclass
class SplitTexts:
    """The tokens of each split's text.

    Attributes:
        config: which texts.
        tokenizer: the model's.
        seed: the run's.
        generate: samples tokens from the model; needed for SELF_GENERATED only.
        cache: text -> its tokens.
    """

    config: DataConfig
    tokenizer: Any
    seed: int
    generate: Generate | None
    cache: dict[str, Tensor] = field(default_factory=dict)

    def parts(self, split: str) -> "list[SplitTexts]":
        """These, or the texts that a split mixes, each alone."""
        if split != "calibration" or not self.config.mixture:
            return [self]
        return [replace(self, config=part) for part in self.config.parts()]

    def n_windows(self, split: str) -> int:
        """As the config says."""
        return int(getattr(self.config, f"n_{split}"))

    def spec(self, split: str) -> str:
        """Its name in the config."""
        return str(getattr(self.config, split))

    def source(self, split: str) -> Source:
        """Where this split comes from; a self-generated run reports on real text."""
        if self.config.source is Source.SELF_GENERATED and split == "report":
            return Source.FILES if self.config.report else Source.EMBEDDED
        return self.config.source

    def label(self, split: str) -> str:
        """Where it comes from, in words."""
        if split == "calibration" and self.config.mixture:
            return " and ".join(part.label(split) for part in self.parts(split))
        return f"{self.source(split).value}:{self.spec(split)}".rstrip(":")

    def seed_of(self, split: str) -> int:
        """Report windows do not depend on the run's seed, so that runs with different seeds can be compared."""
        return stable_hash("split", split, *([] if split == "report" else [self.seed])) % 2**63

    def is_endless(self, split: str) -> bool:
        """Whether more can be had of it than was asked for."""
        return self.source(split) in (Source.EMBEDDED, Source.SELF_GENERATED) or (
            self.source(split) is Source.HUB and find_hub_text(self.spec(split)).streaming
        )

    def check_files(self, splits: Sequence[str]) -> None:
        """Refuses a file within several splits' folders: cut from different texts, its windows could overlap."""
        found: list[tuple[str, set[Path]]] = []
        for split in sorted(splits, key=("calibration", "search", "report").index):
            parts = [part for part in self.parts(split) if part.source(split) is Source.FILES]
            found += [(split, set(find_text_files(part.spec(split), split))) for part in parts]
        for (split, files), (other, others) in combinations(found, 2):
            if files & others and files != others:
                raise DataError(
                    f"data.{split} and data.{other} share the file {min(files & others)} but are not the same text, so their "
                    "windows could overlap; give both the same file or folder, or separate ones"
                )

    def tokens(self, split: str, n_windows: int) -> Tensor:
        """At least `n_windows` windows of tokens, or all that there are."""
        n_tokens = n_windows * self.config.n_tokens_per_window
        source = self.source(split)
        if source is Source.SELF_GENERATED:
            if self.generate is None:
                raise DataError(
                    "data.source=SELF_GENERATED needs the model, but none was given to write the text; pass `generate`"
                )
            return self.generate(n_tokens, self.seed_of(split)).reshape(-1)
        if source is Source.FILES:
            text = "\n\n".join(read_text_file(path) for path in find_text_files(self.spec(split), split))
        elif source is Source.HUB:
            text = read_hub_text(
                self.spec(split), split, SPARE_FACTOR * n_tokens * CHARACTERS_PER_TOKEN, whole=self.n_windows(split) == 0
            )
        else:
            text = write_corpus(self.seed_of(split), n_tokens * CHARACTERS_PER_TOKEN)
        if not text.strip():
            raise DataError(
                f"the {split} text ({self.label(split)}) is empty; give a text file, or a folder of "
                f"{', '.join(TEXT_SUFFIXES)} files"
            )
        return self._encode(text)

    def _encode(self, text: str) -> Tensor:
        key = sha256(text.encode())
        if key not in self.cache:
            self.cache[key] = encode_text(self.tokenizer, text)
        return self.cache[key]


def token_bytes(tokens: Tensor) -> bytes:
    """Little-endian 64-bit token ids, so that hashes agree between machines."""
    return tokens.contiguous().numpy().astype("<i8").tobytes()


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
