"""Several replies to one prompt, token by token.

Shapes: N replies, T tokens so far, W tokens fed at once, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CachedBatch:
    """The key-value cache of N replies to one prompt, which is computed once.

    Rows may take different numbers of tokens at once; the gaps are masked. Under sliding attention they still count as tokens
    of the window, which then reaches that much less far back.

    Args:
        model: in eval mode.
        prefix_ids: the tokens that all replies continue; may be empty.
        n: how many replies.
    """

    def __init__(self, model: "PreTrainedModel", prefix_ids: list[int], n: int) -> None:
        # Imported here because it takes seconds, and looking for the language models imports this module.
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._is_real_NT = torch.ones(n, len(prefix_ids), dtype=torch.long, device=model.device)
        self._n_seen_N = [len(prefix_ids)] * n
        if prefix_ids:
            ids_1T = torch.tensor([prefix_ids], device=model.device)
            model(input_ids=ids_1T, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache.batch_repeat_interleave(n)

    def next_logits(self, chunks: list[list[int]]) -> torch.Tensor:
        """Logits_NV after each row's last token of its chunk; those of a row with an empty chunk mean nothing."""
        logits_NWV = self.logits(chunks)
        last_N = torch.tensor([max(len(chunk) - 1, 0) for chunk in chunks], device=logits_NWV.device)
        return logits_NWV[torch.arange(len(chunks), device=logits_NWV.device), last_N]

    def logits(self, chunks: list[list[int]]) -> torch.Tensor:
        """Logits_NWV after every token of each row's chunk; those past the end of a chunk mean nothing."""
        width = max(map(len, chunks))
        padded = [chunk + [0] * (width - len(chunk)) for chunk in chunks]
        is_real = [[1] * len(chunk) + [0] * (width - len(chunk)) for chunk in chunks]
        positions = [
            [seen + min(i, max(len(chunk) - 1, 0)) for i in range(width)]
            for seen, chunk in zip(self._n_seen_N, chunks, strict=True)
        ]
        device = self._model.device
        self._is_real_NT = torch.cat([self._is_real_NT, torch.tensor(is_real, device=device)], dim=1)
        logits_NWV: torch.Tensor = self._model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=self._is_real_NT,
            position_ids=torch.tensor(positions, device=device),
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self._n_seen_N = [seen + len(chunk) for seen, chunk in zip(self._n_seen_N, chunks, strict=True)]
        return logits_NWV
