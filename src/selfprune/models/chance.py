"""Whether a model predicts a text better than chance.

Shape suffixes: N windows, T tokens, V vocabulary.
"""

import math

import torch
from torch import Tensor


def unigram_nll(windows_NT: Tensor, n_vocabulary: int) -> float:
    """Nats per token of guessing by frequency, each token by the counts of all others.

    Counts are mixed with an even guess as Witten & Bell (1991) do, with the weight of the number of kinds of tokens seen.

    Args:
        windows_NT: token ids; the first of each window, which nothing predicts, does not count.
        n_vocabulary: tokens among which an even guess is made.
    """
    counts_V = torch.bincount(windows_NT[:, 1:].flatten()).double()
    counts_V = counts_V[counts_V > 0]
    n_tokens, n_seen = float(counts_V.sum()), len(counts_V)
    guessed_V = (counts_V - 1 + n_seen / n_vocabulary) / (n_tokens - 1 + n_seen)
    return float(-(counts_V * guessed_V.log()).sum() / n_tokens)


def doubt_of_chance(nll_per_token: float, windows_NT: Tensor, n_vocabulary: int, split: str = "search") -> str | None:
    """The paragraph that warns of a model that is no better than chance; None for one that is.

    Args:
        nll_per_token: of the dense model on the windows, in nats.
        windows_NT: the windows.
        n_vocabulary: tokens that the model knows.
        split: whose windows they are.
    """
    by_frequency, evenly = unigram_nll(windows_NT, n_vocabulary), math.log(n_vocabulary)
    if nll_per_token < min(by_frequency, evenly):
        return None
    return (
        f"the dense model predicts the {split} windows no better than chance: its perplexity is "
        f"{_perplexity(nll_per_token)}, that of guessing by the frequency of tokens {_perplexity(by_frequency)}, and that of "
        f"guessing evenly among all tokens {n_vocabulary:,}; the checkpoint is broken or never was trained, or its tokenizer or "
        f"the text is not its own, and pruning it says nothing about a sound model; check model.path and the {split} text"
    )


def _perplexity(nll: float) -> str:
    return f"{math.exp(nll):,.1f}" if nll < 30 else f"e^{nll:,.0f}"
