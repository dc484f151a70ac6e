"""A Llama of random weights in the proportions of Llama-2, for the benchmarks beside it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selfprune.models.loading import LoadedModel
from selfprune.models.units import find_blocks, list_units

HEAD_WIDTH = 128


def random_llama(width: int, n_blocks: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """A model whose MLP is 8/3 as wide as its hidden state, rounded up to 256; of width 4096 and 32 blocks it is Llama-2-7B."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=-(-8 * width // 3 // 256) * 256,
        num_hidden_layers=n_blocks,
        num_attention_heads=max(1, width // HEAD_WIDTH),
    )
    with device:
        model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    return LoadedModel(model, None, list_units(model), find_blocks(model)[1], device)


def synchronise(device: torch.device) -> None:
    """Waits for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
