"""Draws the calibration, search and report splits: disjoint windows of tokens, fixed by a seed.

Every text is encoded as by one tokenizer call and cut into consecutive windows of T tokens (a last, shorter piece is dropped);
a split is a random choice of them. Since all splits of a text cut it at the same places, windows that differ cannot overlap.
Where windows begin with `<bos>` (`data.bos`), it takes the place of the last token of each: places and lengths stay.

Shape suffixes: N windows, T tokens, V vocabulary, K all tokens of a text.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfprune.data.data_config import SPLITS, DataConfig, Source
from selfprune.data.hub_texts import check_hub_text
from selfprune.data.split_texts import Generate, SplitTexts, sha256, token_bytes
from selfprune.data.window_start import begin_windows, start_tokens
from selfprune.errors import ConfigError, DataError

N_DOUBLINGS = 6


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of windows.

    Attributes:
        calibration_NT: token ids that the pruners' statistics come from.
        search_NT: token ids that candidates are scored on.
        report_NT: token ids that only the report sees; the same for every seed.
        hashes: split -> SHA-256 of its source and its tokens.
        start: what every window begins with; empty where windows are left as they were cut.
    """

    calibration_NT: Tensor
    search_NT: Tensor
    report_NT: Tensor
    hashes: dict[str, str]
    start: tuple[int, ...] = ()


def check_texts(config: DataConfig, splits: Sequence[str] = SPLITS) -> None:
    """Refuses texts that are not there, before a model is loaded for them.

    Raises:
        DataError: when a file is missing or shared by unlike splits, or a text on the hub is unknown or out of reach.
    """
    texts = SplitTexts(config, None, 0, None)
    texts.check_files(splits)
    for split in splits:
        for part in texts.parts(split):
            if part.source(split) is Source.HUB:
                check_hub_text(part.spec(split), split, whole=part.n_windows(split) == 0)


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
        ConfigError: when a window is longer than the model's positions, or cannot begin as `data.bos` says.
    """
    windows = _draw(config, tokenizer, seed, SPLITS, generate, max_positions)
    hashes = {split: windows[split][1] for split in sorted(SPLITS)}
    start = start_tokens(tokenizer, config.bos, config.n_tokens_per_window)
    return Splits(windows["calibration"][0], windows["search"][0], windows["report"][0], hashes, start)


def draw_calibration(
    config: DataConfig, tokenizer: Any, seed: int, generate: Generate | None = None, max_positions: int | None = None
) -> Tensor:
    """Draws the calibration windows alone, for a pruning without search or report; arguments and errors as of `draw_splits`."""
    return _draw(config, tokenizer, seed, ("calibration",), generate, max_positions)["calibration"][0]


def draw_training(
    config: DataConfig,
    tokenizer: Any,
    seed: int,
    n_windows: int,
    before: Splits,
    generate: Generate | None = None,
    max_positions: int | None = None,
) -> Tensor:
    """Draws windows of the calibration text for a training; none of them is in a split.

    Args:
        config: texts and sizes.
        tokenizer: the model's.
        seed: the run's seed.
        n_windows: how many.
        before: the splits of the run.
        generate: samples tokens from the model; needed for SELF_GENERATED only.
        max_positions: the longest window that the model has positions for, if it says.

    Raises:
        DataError: when the text is too short.
    """
    splits = before.calibration_NT, before.search_NT, before.report_NT
    taken = {hashlib.sha256(token_bytes(window_T)).digest() for windows_NT in splits for window_T in windows_NT}
    texts = SplitTexts(replace(config, n_calibration=n_windows), tokenizer, seed, generate)
    try:
        return _deal_parts(texts, "calibration", before.start, taken, "training.n_tokens, raise training.n_epochs, or lower")
    except DataError as error:
        raise DataError(f"training needs text that is in no split: {error}") from error


def _draw(
    config: DataConfig, tokenizer: Any, seed: int, splits: Sequence[str], generate: Generate | None, max_positions: int | None
) -> dict[str, tuple[Tensor, str]]:
    """Split -> its windows and their hash; the report is dealt first, so that it is the same for every seed."""
    if max_positions is not None and config.n_tokens_per_window > max_positions:
        raise ConfigError(
            f"data.n_tokens_per_window must be at most the model's {max_positions} positions, got {config.n_tokens_per_window}"
        )
    start = start_tokens(tokenizer, config.bos, config.n_tokens_per_window)
    texts = SplitTexts(config, tokenizer, seed, generate)
    texts.check_files(splits)
    taken: set[bytes] = set()
    windows = {split: _deal_parts(texts, split, start, taken, f"data.n_{split} or") for split in splits}
    return {split: (windows_NT, hash_windows(texts.label(split), windows_NT)) for split, windows_NT in windows.items()}


def hash_windows(label: str, windows_NT: Tensor) -> str:
    """SHA-256 of windows and of a label that says where they come from."""
    return sha256(label.encode() + token_bytes(windows_NT))


def _deal_parts(texts: SplitTexts, split: str, start: tuple[int, ...], taken: set[bytes], to_lower: str) -> Tensor:
    """The windows of a split, of one text after the other where it mixes several; see `_deal`."""
    return torch.cat([_deal(part, split, start, taken, to_lower) for part in texts.parts(split)])


def _deal(texts: SplitTexts, split: str, start: tuple[int, ...], taken: set[bytes], to_lower: str) -> Tensor:
    """Chooses a split's windows at random among those that no split has; asks an endless text for more when they run out.

    Where the text is too short, `to_lower` says which option to lower besides the length of windows.
    """
    n_wanted = texts.n_windows(split)
    n_tokens = texts.config.n_tokens_per_window
    for doubling in range(N_DOUBLINGS):
        tokens_K = texts.tokens(split, max(n_wanted, 1) * 2**doubling)
        windows_NT = begin_windows(tokens_K[: len(tokens_K) // n_tokens * n_tokens].view(-1, n_tokens), start)
        keys = [hashlib.sha256(token_bytes(window_T)).digest() for window_T in windows_NT]
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
        f"{n_tokens}, of which {len(chosen)} differ from each other and from those already dealt to other splits, but "
        f"{max(n_wanted, 1)} ({max(n_wanted, 1) * n_tokens:,} tokens) are needed; give a longer or another text, or lower "
        f"{to_lower} data.n_tokens_per_window"
    )
