"""Draws the calibration, search and report splits: disjoint windows of tokens, fixed by a seed.

Every text is encoded by one tokenizer call and cut into consecutive windows of T tokens (a last, shorter piece is dropped);
a split is a random choice of them. Since all splits of a text cut it at the same places, windows that differ cannot overlap.

Shape suffixes: N windows, T tokens, V vocabulary, K all tokens of a text.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfprune.embedded.world import stable_hash, write_corpus
from selfprune.errors import ConfigError, DataError, did_you_mean
from selfprune.models import hub_is_reachable

SPLITS = ("report", "calibration", "search")
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
CHARACTERS_PER_TOKEN = 6
N_DOUBLINGS = 6
SPARE_FACTOR = 4
GENERATE_BATCH = 32

Generate = Callable[[int, int], Tensor]
"""(number of tokens, seed) -> that many token ids, sampled from the model that is pruned."""


class Source(str, Enum):
    """Where the texts come from."""

    EMBEDDED = "embedded"
    FILES = "files"
    HUB = "hub"
    SELF_GENERATED = "self_generated"


@dataclass(frozen=True)
class HubText:
    """A text column of a dataset on the hub.

    Attributes:
        dataset: its id.
        config: its configuration, if it has several.
        split: the split for calibration and search.
        report_split: the split for the report.
        column: the column that holds the text.
        data_files: split -> file to read instead of the whole split.
        streaming: read only as much as is needed.
    """

    dataset: str
    config: str | None
    split: str
    report_split: str
    column: str = "text"
    data_files: dict[str, str] | None = None
    streaming: bool = True


HUB_TEXTS = {
    "c4": HubText(
        "allenai/c4",
        None,
        "train",
        "validation",
        data_files={"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"},
    ),
    "wikitext2": HubText("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "test", streaming=False),
    "fineweb_edu": HubText("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", "train"),
}


@dataclass
class DataConfig:
    """Which texts to draw windows from, and how many.

    Attributes:
        source: where the texts come from; with SELF_GENERATED the model writes calibration and search itself.
        calibration: FILES: a text file, or a folder of .txt, .md and .jsonl (field `text`) files. HUB: `c4`, `wikitext2`,
            `fineweb_edu` or `dataset_id:config:split:column`, later parts optional.
        search: the same for the search.
        report: the same for the report; with SELF_GENERATED a file, a folder, or nothing for the embedded text.
        n_tokens_per_window: length of every window.
        n_calibration: windows for calibration.
        n_search: windows for the search.
        n_report: windows for the report; 0 takes the whole text in order, as WikiText-2 perplexity is measured.
    """

    source: Source = Source.EMBEDDED
    calibration: str = ""
    search: str = ""
    report: str = ""
    n_tokens_per_window: int = 256
    n_calibration: int = 64
    n_search: int = 64
    n_report: int = 128

    def __post_init__(self) -> None:
        for name, least in (("n_tokens_per_window", 2), ("n_calibration", 1), ("n_search", 1), ("n_report", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} must be at least {least}, got {getattr(self, name)}")
        for name in SPLITS:
            text = getattr(self, name)
            if self.source in (Source.FILES, Source.HUB) and not text:
                raise ConfigError(
                    f"data.source={self.source.name} needs data.calibration, data.search and data.report, but data.{name} is "
                    "empty"
                )
            if text and (self.source is Source.EMBEDDED or (self.source is Source.SELF_GENERATED and name != "report")):
                raise ConfigError(
                    f"data.source={self.source.name} makes its own text, but data.{name}={text}; give data.source=FILES or "
                    "leave it out"
                )
        if self.n_report == 0 and not self.report:
            raise ConfigError(
                "data.n_report=0 takes the whole report text, but the embedded text has no end; give data.n_report of at least 1"
            )


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of windows.

    Attributes:
        calibration_NT: token ids that the pruners' statistics come from.
        search_NT: token ids that candidates are scored on.
        report_NT: token ids that only the report sees; the same for every seed.
        hashes: split -> SHA-256 of its source and its tokens.
    """

    calibration_NT: Tensor
    search_NT: Tensor
    report_NT: Tensor
    hashes: dict[str, str]


def draw_splits(
    config: DataConfig, tokenizer: Any, seed: int, generate: Generate | None = None, max_positions: int | None = None
) -> Splits:
    """Draws the three splits; calibration and search vary with the seed, the report does not.

    Args:
        config: texts and sizes.
        tokenizer: the model's Hugging Face tokenizer, called once per text with its own special tokens.
        seed: the run's seed.
        generate: samples tokens from the model; needed for SELF_GENERATED only.
        max_positions: the longest window that the model has positions for, if it says.

    Raises:
        DataError: when a text is missing, empty, unreadable, out of reach or too short for disjoint windows.
        ConfigError: when a window is longer than the model's positions.
    """
    if max_positions is not None and config.n_tokens_per_window > max_positions:
        raise ConfigError(
            f"data.n_tokens_per_window must be at most the model's {max_positions} positions, got {config.n_tokens_per_window}"
        )
    texts = _Texts(config, tokenizer, seed, generate)
    texts.check_files()
    taken: set[bytes] = set()
    windows = {split: _deal(texts, split, taken) for split in SPLITS}
    hashes = {split: _sha256(texts.label(split).encode() + _token_bytes(windows[split])) for split in sorted(SPLITS)}
    return Splits(windows["calibration"], windows["search"], windows["report"], hashes)


def generate_tokens(model: Any, tokenizer: Any, n_windows: int, n_tokens: int, seed: int) -> Tensor:
    """Samples windows from the model at temperature 1, each beginning with its start token.

    It samples step by step and not by `model.generate`, whose random numbers come from the global generator and whose
    settings (top-k, early ends) come from the checkpoint.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: gives the start token: BOS, else EOS, else token 0.
        n_windows: number of windows N.
        n_tokens: tokens per window T.
        seed: fixes the text.

    Returns:
        Token ids [N, T] on the CPU.
    """
    start = next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), 0)
    generator = torch.Generator(model.device).manual_seed(seed % 2**63)
    sizes = [min(GENERATE_BATCH, n_windows - done) for done in range(0, n_windows, GENERATE_BATCH)]
    return torch.cat([_generate_batch(model, torch.full((n, 1), start, device=model.device), n_tokens, generator) for n in sizes])


@torch.no_grad()
def _generate_batch(model: Any, tokens_NT: Tensor, n_tokens: int, generator: torch.Generator) -> Tensor:
    cache = None
    while tokens_NT.shape[1] < n_tokens:
        mask_NT = torch.ones_like(tokens_NT)
        fresh_NT = tokens_NT if cache is None else tokens_NT[:, -1:]
        output = model(input_ids=fresh_NT, attention_mask=mask_NT, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        probabilities_NV = output.logits[:, -1].float().softmax(-1)
        tokens_NT = torch.cat([tokens_NT, torch.multinomial(probabilities_NV, 1, generator=generator)], dim=1)
    return tokens_NT.cpu()


def _deal(texts: "_Texts", split: str, taken: set[bytes]) -> Tensor:
    """Chooses a split's windows at random among those that no split has; asks an endless text for more when they run out."""
    n_wanted = texts.n_windows(split)
    n_tokens = texts.config.n_tokens_per_window
    for doubling in range(N_DOUBLINGS):
        tokens_K = texts.tokens(split, max(n_wanted, 1) * 2**doubling)
        windows_NT = tokens_K[: len(tokens_K) // n_tokens * n_tokens].view(-1, n_tokens)
        keys = [hashlib.sha256(_token_bytes(window_T)).digest() for window_T in windows_NT]
        if n_wanted == 0 and keys:
            taken.update(keys)
            return windows_NT
        chosen: list[int] = []
        for index in torch.randperm(len(keys), generator=torch.Generator().manual_seed(texts.seed_of(split))).tolist():
            if len(chosen) < n_wanted and keys[index] not in taken:
                taken.add(keys[index])
                chosen.append(index)
        if len(chosen) == n_wanted > 0:
            return windows_NT[chosen].clone()
        taken -= {keys[index] for index in chosen}
        if not texts.is_endless(split):
            break
    raise DataError(
        f"the {split} text ({texts.label(split)}) is too short: it has {len(tokens_K):,} tokens, that is {len(keys)} windows of "
        f"{n_tokens}, of which "
        f"{len(chosen)} differ from each other and from those already dealt to other splits, but {max(n_wanted, 1)} "
        f"({max(n_wanted, 1) * n_tokens:,} tokens) are needed; give a longer or another text, or lower data.n_{split} or "
        "data.n_tokens_per_window"
    )


@dataclass
class _Texts:
    """The tokens of each split's text."""

    config: DataConfig
    tokenizer: Any
    seed: int
    generate: Generate | None
    cache: dict[str, Tensor] = field(default_factory=dict)

    def n_windows(self, split: str) -> int:
        return int(getattr(self.config, f"n_{split}"))

    def spec(self, split: str) -> str:
        return str(getattr(self.config, split))

    def source(self, split: str) -> Source:
        """Where this split comes from; a self-generated run reports on real text."""
        if self.config.source is Source.SELF_GENERATED and split == "report":
            return Source.FILES if self.config.report else Source.EMBEDDED
        return self.config.source

    def label(self, split: str) -> str:
        return f"{self.source(split).value}:{self.spec(split)}".rstrip(":")

    def seed_of(self, split: str) -> int:
        """Report windows do not depend on the run's seed, so that runs with different seeds can be compared."""
        return stable_hash("split", split, *([] if split == "report" else [self.seed])) % 2**63

    def is_endless(self, split: str) -> bool:
        return self.source(split) in (Source.EMBEDDED, Source.SELF_GENERATED) or (
            self.source(split) is Source.HUB and _hub_text(self.spec(split)).streaming
        )

    def check_files(self) -> None:
        """Refuses a file within several splits' folders: cut from different texts, its windows could overlap.

        Raises:
            DataError: when two different texts share a file.
        """
        found = {split: set(_text_files(self.spec(split), split)) for split in SPLITS if self.source(split) is Source.FILES}
        for split, other in (("calibration", "report"), ("search", "report"), ("search", "calibration")):
            shared = found.get(split, set()) & found.get(other, set())
            if shared and found[split] != found[other]:
                raise DataError(
                    f"data.{split} and data.{other} share the file {min(shared)} but are not the same text, so their windows "
                    "could overlap; "
                    f"give both the same file or folder, or separate ones"
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
            text = "\n\n".join(_read_text(path) for path in _text_files(self.spec(split), split))
        elif source is Source.HUB:
            text = _read_hub(
                self.spec(split), split, SPARE_FACTOR * n_tokens * CHARACTERS_PER_TOKEN, whole=self.n_windows(split) == 0
            )
        else:
            text = write_corpus(self.seed_of(split), n_tokens * CHARACTERS_PER_TOKEN)
        if not text.strip():
            raise DataError(
                f"the {split} text ({self.label(split)}) is empty; give a text file, or a folder of {', '.join(TEXT_SUFFIXES)} "
                "files"
            )
        return self._encode(text)

    def _encode(self, text: str) -> Tensor:
        key = _sha256(text.encode())
        if key not in self.cache:
            self.cache[key] = torch.tensor(
                self.tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"], dtype=torch.long
            )
        return self.cache[key]


def _text_files(spec: str, split: str) -> list[Path]:
    path = Path(spec).expanduser().resolve()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(
            f"data.{split}={spec}: there is no file or folder {path}; give a text file, or a folder of "
            f"{', '.join(TEXT_SUFFIXES)} files"
        )
    found = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
    if not found:
        raise DataError(
            f"data.{split}={spec}: the folder holds no {', '.join(TEXT_SUFFIXES)} file; give one that does, or a single text file"
        )
    return found


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be UTF-8 text, but its byte {error.start} is not; convert it, for instance by iconv -t utf-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if path.suffix != ".jsonl":
        return text
    documents = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            documents += [str(json.loads(line)["text"])] if line.strip() else []
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f'{path}, line {number}: expected a JSON object with a field "text", got {line[:80]!r}') from error
    return "\n\n".join(documents)


def _hub_text(spec: str) -> HubText:
    """A named text, or one spelt out."""
    if spec in HUB_TEXTS:
        return HUB_TEXTS[spec]
    if ":" not in spec and "/" not in spec:
        raise DataError(
            f"an unknown hub text {spec!r}; the known ones, nearest first: {did_you_mean(spec, HUB_TEXTS)}; others are written "
            "as "
            f"dataset_id:config:split:column"
        )
    dataset, config, split, column, *_ = [*spec.split(":"), "", "", "", ""]
    return HubText(dataset, config or None, split or "train", split or "train", column or "text")


def _read_hub(spec: str, split: str, n_characters: int, whole: bool) -> str:
    """Rows joined by a blank line, as the reference measures WikiText-2; of a streamed text only the first `n_characters`."""
    import datasets  # here, because it takes a second that only a hub run should pay

    hub_text = _hub_text(spec)
    if whole and hub_text.streaming:
        raise DataError(
            f"data.n_report=0 takes the whole report text, but {spec} is read as a stream; give data.n_report of at least 1"
        )
    remedy = (
        "check the name and the network, or download the text elsewhere and give "
        "data=files data.calibration=… data.search=… data.report=…"
    )
    if not hub_is_reachable() and not datasets.config.HF_HUB_OFFLINE:
        raise DataError(
            f"data.{split}={spec} lies on the hub, which does not answer; {remedy}; with HF_HUB_OFFLINE=1 a cached copy is used"
        )
    name = hub_text.report_split if split == "report" else hub_text.split
    try:
        rows = datasets.load_dataset(
            hub_text.dataset, hub_text.config, split=name, data_files=hub_text.data_files, streaming=hub_text.streaming
        )
        return _join(rows, hub_text.column, n_characters if hub_text.streaming else None)
    except Exception as error:  # the client raises anything here, from ValueError to its HTTP library's errors
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"data.{split}={spec} could not be read from the hub ({type(error).__name__}: {said}); {remedy}"
        ) from error


def _join(rows: Iterable[dict[str, Any]], column: str, n_characters: int | None) -> str:
    documents, length = [], 0
    for row in rows:
        documents.append(str(row[column]))
        length += len(documents[-1]) + 2
        if n_characters is not None and length >= n_characters:
            break
    return "\n\n".join(documents)


def _token_bytes(tokens: Tensor) -> bytes:
    """Little-endian 64-bit token ids, so that hashes agree between machines."""
    return tokens.contiguous().numpy().astype("<i8").tobytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
