"""lm-eval's model class, with memory for the logits of scored tokens alone.

lm-eval holds the logits of every token of a batch, of which it scores the few that answer; with a vocabulary of 262,144 every
token takes 1 MB, and again as much for the softmax. Here the output embedding sees the scored tokens only, and so many at once
that their logits are bounded. All else is lm-eval's, and so are the results, up to the rounding of a matrix product of another
shape, but where answers of several lengths follow from the same tokens: lm-eval reads the shorter ones at the wrong place.

Shape suffixes: B inputs, T tokens, K scored tokens, H hidden size, V vocabulary, P pairs of a scored token and a wanted one.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import pad_and_concat
from torch import Tensor, nn

from selfprune.errors import DataError
from selfprune.models.blocks.walk import N_LOGITS_AT_ONCE

Request = tuple[Any, list[int], list[int]]
"""What lm-eval calls the request, the tokens of its context, and those of the answer that is scored."""


class ScoredTokensLM(HFLM):  # type: ignore[misc]
    """A causal language model for lm-eval."""

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, after one token that begins them and is not scored.

        lm-eval puts that token before a text to which the tokenizer has added it already, and so scores it once.

        Args:
            requests: lm-eval's, one text each.
            disable_tqdm: show no bar.
        """
        before: bool | None = self.add_bos_token
        self.add_bos_token: bool | None = False
        try:
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
            return found
        finally:
            self.add_bos_token = before

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        # Answers of one token share the input of their context, as in lm-eval, whose order of inputs this is too.
        of_input: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, (said, context, answer) in enumerate(requests):
            if not 0 < len(answer) <= self.max_length:
                raise DataError(
                    f"an answer that lm-eval scores must have between 1 and {self.max_length} tokens, the most that the model "
                    f"has positions for, got {len(answer)}: {str(said)[-200:]!r}; leave its task out of harness.tasks and "
                    "harness.search_tasks"
                )
            of_input[tuple((context + answer)[-(self.max_length + 1) : -1])].append(number)
        inputs = sorted(of_input, key=lambda tokens: (-len(tokens), tokens))
        found: dict[int, tuple[float, bool]] = {}
        n_at_once = override_bs or self.batch_size
        for start in range(0, len(inputs), n_at_once):
            batch = inputs[start : start + n_at_once]
            numbers = [of_input[tokens] for tokens in batch]
            found |= self._score(batch, [{number: requests[number][2] for number in each} for each in numbers])
        return [found[number] for number in range(len(requests))]

    def _score(self, inputs: list[tuple[int, ...]], answers: list[dict[int, list[int]]]) -> dict[int, tuple[float, bool]]:
        """Log-likelihood of every answer, and whether each of its tokens is the likeliest.

        Args:
            inputs: tokens, the longest first.
            answers: of each input, number -> the tokens that its last ones are followed by.
        """
        n_tokens = len(inputs[0])
        input_BT = pad_and_concat(n_tokens, [torch.tensor(tokens, device=self.device) for tokens in inputs])
        positions: list[int] = []
        pairs: list[tuple[int, int]] = []
        lengths: dict[int, int] = {}
        for i, (tokens, of_input) in enumerate(zip(inputs, answers, strict=True)):
            end = len(positions) + max(map(len, of_input.values()))
            positions += range(i * n_tokens + len(tokens) - (end - len(positions)), i * n_tokens + len(tokens))
            for number, answer in of_input.items():
                lengths[number] = len(answer)
                pairs += zip(range(end - len(answer), end), answer, strict=True)
        place_P, wanted_P = torch.tensor(pairs).unbind(dim=1)
        value_P, is_likeliest_P = torch.zeros(len(pairs)), torch.zeros(len(pairs), dtype=torch.bool)
        start = 0
        for logits_KV in self._logits(input_BT, torch.tensor(positions, device=self.device)):
            logprobs_KV = logits_KV.log_softmax(dim=-1, dtype=torch.float32)
            here_P = (place_P >= start) & (place_P < start + len(logits_KV))
            at_P, answer_P = (place_P[here_P] - start).to(logits_KV.device), wanted_P[here_P].to(logits_KV.device)
            value_P[here_P] = logprobs_KV[at_P, answer_P].cpu()
            is_likeliest_P[here_P] = (logprobs_KV.argmax(dim=-1)[at_P] == answer_P).cpu()
            start += len(logits_KV)
        each = (torch.split(whole_P, [*lengths.values()]) for whole_P in (value_P, is_likeliest_P))
        rows = zip(lengths, *each, strict=True)
        return {number: (float(values.sum()), bool(likeliest.all())) for number, values, likeliest in rows}

    @torch.no_grad()
    def _logits(self, input_BT: Tensor, positions_K: Tensor) -> Iterator[Tensor]:
        """Logits at some positions of the flattened input, in order, a bounded number at once."""
        head = self.model.get_output_embeddings()
        n_at_once = max(1, N_LOGITS_AT_ONCE // self.model.config.get_text_config().vocab_size)
        hidden_KH: Tensor | None = None

        def replace(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal hidden_KH
            if hidden_KH is None:
                hidden_KH = arguments[0].flatten(0, -2)[positions_K.to(arguments[0].device)]
            return (hidden_KH[None, start : start + n_at_once], *arguments[1:])

        start = 0  # which `replace` reads
        handle = head.register_forward_pre_hook(replace) if head is not None else None
        try:
            logits = self.model(input_BT, use_cache=False).logits
            if hidden_KH is None:  # a model whose logits do not come out of its output embedding
                yield from logits.flatten(0, -2)[positions_K].split(n_at_once)
                return
            yield logits[0]
            while (start := start + n_at_once) < len(positions_K):
                # What a model does to its logits, such as capping them, is done to these too; one token costs next to nothing.
                yield self.model(input_BT[:1, :1], use_cache=False).logits[0]
        finally:
            if handle is not None:
                handle.remove()
