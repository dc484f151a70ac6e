"""The windows that candidates are scored on, where the objective mixes kinds of text.

Shape suffixes: N windows, T tokens.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from selfprune.data.self_generated import generate_tokens
from selfprune.data.splits import Splits, hash_windows
from selfprune.data.window_start import begin_windows
from selfprune.errors import DataError
from selfprune.evaluators.harness import Harness
from selfprune.models.loading import LoadedModel
from selfprune.seeds import stable_hash


def mix_search_windows(splits: Splits, kinds: Sequence[str], loaded: LoadedModel, harness: Harness, seed: int) -> Splits:
    """Puts windows of the other kinds among those of the search text, which are taken from its beginning.

    All begin as the windows of the search text do.

    Args:
        splits: the splits as they were drawn.
        kinds: of every window, as of `Objective.kinds`.
        loaded: the model, dense.
        harness: has the documents.
        seed: the run's seed.

    Returns:
        the splits with the mixed search windows, and the hash of every further kind as `search_<kind>`; where all windows are
        of the text, the splits as they were.

    Raises:
        DataError: when the documents of the lm-eval tasks do not fill their windows.
    """
    if set(kinds) <= {"text"}:
        return splits
    n_tokens = splits.search_NT.shape[1]
    draw: dict[str, Callable[[int, int], Tensor]] = {
        "self_generated": lambda n, seed: generate_tokens(loaded.model, loaded.tokenizer, n, n_tokens, seed, splits.start),
        "tasks": lambda n, seed: begin_windows(pack(harness.search_documents(seed), loaded.tokenizer, n, n_tokens), splits.start),
    }
    counts = Counter(kinds)
    windows_NT = {kind: draw[kind](counts[kind], stable_hash("objective", kind, seed)) for kind in draw if counts[kind]}
    hashes = {f"search_{kind}": hash_windows(kind, drawn_NT) for kind, drawn_NT in windows_NT.items()}
    rest = {kind: iter(drawn_NT) for kind, drawn_NT in [("text", splits.search_NT), *windows_NT.items()]}
    return replace(splits, search_NT=torch.stack([next(rest[kind]) for kind in kinds]), hashes=splits.hashes | hashes)


def pack(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, n_windows: int, n_tokens: int) -> Tensor:
    """Encodes one document after the other, without special tokens, until they fill the windows; none is used twice.

    Args:
        documents: texts, each with what separates it from the next.
        tokenizer: the model's.
        n_windows: number of windows N.
        n_tokens: tokens per window T.

    Returns:
        Token ids [N, T].

    Raises:
        DataError: when the documents end before.
    """
    n_wanted = n_windows * n_tokens
    encoded: list[list[int]] = []
    n_found = 0
    for document in documents:
        encoded.append(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"])
        n_found += len(encoded[-1])
        if n_found >= n_wanted:
            return torch.tensor(list(chain.from_iterable(encoded))[:n_wanted], dtype=torch.long).view(n_windows, n_tokens)
    raise DataError(
        f"objective.tasks needs {n_windows} windows of {n_tokens} tokens, but the {len(encoded):,} documents of "
        f"harness.search_tasks that have a right answer fill {n_found // n_tokens}; name more tasks there, or lower "
        "objective.tasks, the last of search.ladder.n_windows, or data.n_tokens_per_window"
    )
