"""Text that the model writes itself.

Shape suffixes: N windows, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from selfprune.data.data_config import DataConfig
from selfprune.data.window_start import start_tokens

GENERATE_BATCH = 32


def text_writer(model: Any, tokenizer: Any, config: DataConfig) -> Callable[[int, int], Tensor]:
    """Makes what writes the splits: (number of tokens, seed) -> at least that many ids, whole windows one after the other."""
    n_per_window = config.n_tokens_per_window

    def write(n_tokens: int, seed: int) -> Tensor:
        start = start_tokens(tokenizer, config.bos, n_per_window)
        return generate_tokens(model, tokenizer, math.ceil(n_tokens / n_per_window), n_per_window, seed, start).flatten()

    return write


def generate_tokens(model: Any, tokenizer: Any, n_windows: int, n_tokens: int, seed: int, start: Sequence[int] = ()) -> Tensor:
    """Samples windows from the model at temperature 1, each beginning with start tokens.

    It samples step by step and not by `model.generate`, whose random numbers come from the global generator and whose
    settings (top-k, early ends) come from the checkpoint.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: gives the start token where none is given: BOS, else EOS, else token 0.
        n_windows: number of windows N.
        n_tokens: tokens per window T, those of the start included.
        seed: fixes the text.
        start: what every window begins with; a model cannot begin with nothing.

    Returns:
        Token ids [N, T] on the CPU.
    """
    if not start:
        start = [next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), 0)]
    generator = torch.Generator(model.device).manual_seed(seed % 2**63)
    sizes = [min(GENERATE_BATCH, n_windows - done) for done in range(0, n_windows, GENERATE_BATCH)]
    start_T = torch.tensor(start, device=model.device)
    return torch.cat([_generate_batch(model, start_T.expand(n, -1), n_tokens, generator) for n in sizes])


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
