"""A loaded causal LM, such as the very model that is being pruned, answering under a JSON schema.

Shapes: N replies, W tokens fed at once, V vocabulary.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from selfprune.errors import LanguageModelError
from selfprune.language_models.base import Reply
from selfprune.language_models.cached_batch import CachedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Sampler:
    """Samples replies of a loaded causal LM; every token is one that the JSON schema allows.

    The prompt is computed once for all replies of a call. Tokens that the schema forces are fed together, without sampling.

    Args:
        model: in eval mode; only read.
        tokenizer: its tokenizer, of the fast kind.
        temperature: divides the logits before sampling.
        max_reply_tokens: a reply is cut off after so many tokens.

    Raises:
        LanguageModelError: when the tokenizer cannot serve constrained decoding.

    Example:
        >>> language_model = Sampler(model, tokenizer, temperature=1.0, max_reply_tokens=8)
        >>> language_model.complete("A number: ", {"type": "integer", "minimum": 1, "maximum": 9}, n=1, seed=0)[0].text
        '7'
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", temperature: float, max_reply_tokens: int
    ) -> None:
        # Imported here because they take seconds, and looking for the language models imports this module.
        from llguidance.hf import from_tokenizer

        from selfprune.models.loading import max_positions

        assert not model.training, "dropout would draw from the global generator"
        self.name: str = model.config.name_or_path or "self"
        self._model = model
        self._tokenizer = tokenizer
        self._temperature = temperature
        self._max_reply_tokens = max_reply_tokens
        self._n_positions = max_positions(model)
        try:
            self._vocabulary: LLTokenizer = from_tokenizer(tokenizer)  # type: ignore[arg-type]  # it checks
        except ValueError as error:
            raise LanguageModelError(
                f"constrained decoding needs a fast tokenizer, which llguidance can read, got {type(tokenizer).__name__} "
                f"of {self.name} ({error}); choose another language_model"
            ) from error

    def complete(self, prompt: str, schema: dict[str, Any], n: int, seed: int) -> list[Reply]:
        """`n` replies that meet the schema, unless `max_reply_tokens` cuts them off.

        Args:
            prompt: the text to continue; cut from the left when the model has too few positions for it.
            schema: the JSON schema that the replies meet; they hold no white space between tokens.
            n: how many replies, sampled in one batch.
            seed: fixes the replies; the global random generators are neither read nor moved.

        Raises:
            LanguageModelError: when the schema cannot be compiled, the prompt is empty or the logits are not finite.
        """
        prompt_ids = self._encode(prompt, self._max_reply_tokens)
        n_left = self._max_reply_tokens if self._n_positions is None else self._n_positions - len(prompt_ids)
        rows = self._sample(prompt_ids, schema, n, seed, min(self._max_reply_tokens, n_left))
        texts = [self._vocabulary.decode_bytes(row.reply_ids).decode("utf-8", errors="replace") for row in rows]
        return _replies(len(prompt_ids), [(text, row.logprob, len(row.reply_ids)) for text, row in zip(texts, rows, strict=True)])

    @torch.no_grad()
    def score(self, prompt: str, options: Sequence[str]) -> list[Reply]:
        """Every option with the sum of its tokens' log-probabilities after the prompt, which is computed once.

        Args:
            prompt: the text to continue; cut from the left when the model has too few positions for it.
            options: the texts that may continue it; each is split into tokens on its own.

        Raises:
            LanguageModelError: when the prompt or an option is empty, or the logits are not finite.
        """
        ids = [[int(i) for i in self._tokenizer(option, add_special_tokens=False)["input_ids"]] for option in options]
        if not all(ids):
            raise LanguageModelError(f"an option must hold at least one token, got {options[ids.index([])]!r}; name it")
        prompt_ids = self._encode(prompt, max(map(len, ids)))
        batch = CachedBatch(self._model, prompt_ids[:-1], len(options))
        logprobs_NWV = batch.logits([[prompt_ids[-1], *row[:-1]] for row in ids]).float().log_softmax(dim=-1).cpu()
        sums = [float(logprobs_WV[range(len(row)), row].sum()) for logprobs_WV, row in zip(logprobs_NWV, ids, strict=True)]
        if not all(map(math.isfinite, sums)):
            raise LanguageModelError(f"the logits of {self.name} must be finite, got {min(sums)}; is the model intact?")
        return _replies(len(prompt_ids), list(zip(options, sums, map(len, ids), strict=True)))

    def _encode(self, prompt: str, n_reply_tokens: int) -> list[int]:
        """Token ids of the prompt, in the model's chat form if it has one, cut from the left if it leaves too few for a reply."""
        prompt_ids = self._tokenize(prompt)
        if not prompt_ids:
            raise LanguageModelError(f"a prompt must hold at least one token, got {prompt!r}; check the prompt file")
        if self._n_positions is None:
            return prompt_ids
        # Replies are far shorter than their limit, so a small context is not all reserved for them.
        room = max(self._n_positions - n_reply_tokens, self._n_positions // 2)
        if len(prompt_ids) <= room:
            return prompt_ids
        logger.warning(
            "the prompt of %d tokens is cut from the left to the %d that %s has room for", len(prompt_ids), room, self.name
        )
        content_ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        kept = str(self._tokenizer.decode(content_ids[len(prompt_ids) - room :]))
        return self._tokenize(kept)[-room:]

    def _tokenize(self, prompt: str) -> list[int]:
        if self._tokenizer.chat_template is None:
            ids = self._tokenizer(prompt)["input_ids"]
        else:
            messages = [{"role": "user", "content": prompt}]
            # The schema leaves no room for thoughts; templates without that switch ignore it.
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids]

    def _matcher(self, schema: dict[str, Any]) -> LLMatcher:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise LanguageModelError(
                f"the schema of the replies must be JSON schema that llguidance compiles, got {schema}: {matcher.get_error()}"
            )
        return matcher

    @torch.no_grad()
    def _sample(self, prompt_ids: list[int], schema: dict[str, Any], n: int, seed: int, n_max: int) -> "list[_Row]":
        """The finished rows of one batch."""
        matcher = self._matcher(schema)
        rows = [_Row(matcher.deep_copy(), n_max) for _ in range(n)]
        batch = CachedBatch(self._model, prompt_ids[:-1], n)
        chunks = [[prompt_ids[-1], *row.take_forced()] for row in rows]
        generator = torch.Generator().manual_seed(seed)
        while not all(row.is_done for row in rows):
            logprobs_NV = self._constrained_logprobs(batch.next_logits(chunks), rows)
            drawn_N = torch.multinomial(logprobs_NV.exp(), 1, generator=generator)[:, 0].tolist()
            for i, (row, token) in enumerate(zip(rows, drawn_N, strict=True)):
                chunks[i] = [] if row.is_done else row.take(token, float(logprobs_NV[i, token]), self._vocabulary.eos_tokens)
        return rows

    def _constrained_logprobs(self, logits_NV: torch.Tensor, rows: "list[_Row]") -> torch.Tensor:
        """Log-probabilities over the allowed tokens; finished rows get some distribution, which is ignored."""
        # On the CPU whatever the model's device, so that one kind of generator serves all.
        logits_NV = logits_NV.float().cpu() / self._temperature
        allowed_NV = torch.zeros(logits_NV.shape, dtype=torch.bool)
        for allowed_V, row in zip(allowed_NV, rows, strict=True):
            if row.is_done:
                allowed_V[0] = True
                continue
            bits = np.unpackbits(np.frombuffer(row.matcher.compute_bitmask(), np.uint8), bitorder="little")
            # Model and tokenizer may differ in vocabulary size: padding rows of the embedding, or tokens added later.
            size = min(self._vocabulary.vocab_size, allowed_V.numel())
            allowed_V[:size] = torch.from_numpy(bits[:size]).bool()
        logits_NV = logits_NV.masked_fill(~allowed_NV, float("-inf"))
        is_live_N = torch.tensor([not row.is_done for row in rows])
        if not logits_NV.amax(dim=1)[is_live_N].isfinite().all():
            raise LanguageModelError(
                f"the logits of {self.name} must be finite for some allowed token, got none; is the model intact?"
            )
        logits_NV[~is_live_N] = 0.0
        return logits_NV.log_softmax(dim=1)


def _replies(n_prompt_tokens: int, told: Sequence[tuple[str, float, int]]) -> list[Reply]:
    """Replies to one prompt, which was read once, from their text, log-probability and number of tokens."""
    read = [n_prompt_tokens, *[0] * (len(told) - 1)]
    return [Reply(text, logprob, n, n_tokens) for n, (text, logprob, n_tokens) in zip(read, told, strict=True)]


@dataclass
class _Row:
    """One reply in the making."""

    matcher: LLMatcher
    n_max: int
    reply_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    is_done: bool = False

    def take(self, token: int, logprob: float, eos_tokens: list[int]) -> list[int]:
        """Appends a sampled token and what it forces; the tokens to feed next."""
        self.logprob += logprob
        self.matcher.consume_token(token)
        if token in eos_tokens:
            self.is_done = True
            return []
        self.reply_ids.append(token)
        return [token, *self.take_forced()]

    def take_forced(self) -> list[int]:
        """Appends the tokens that are the only way to go on, of log-probability 0."""
        forced = [] if self.matcher.is_stopped() else self.matcher.compute_ff_tokens()[: self.n_max - len(self.reply_ids)]
        self.matcher.consume_tokens(forced)
        self.reply_ids += forced
        self.is_done = self.matcher.is_stopped() or len(self.reply_ids) >= self.n_max
        return forced
