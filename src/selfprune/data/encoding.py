"""Encodes long texts in pieces, to the tokens that one call of the tokenizer gives, in memory that does not grow with them.

A tokenizer holds several hundred bytes for every token of a call. Pieces overlap by two margins, and are joined near the middle
of an overlap in which both give the same tokens and words at the same places: what a token depends on is nearer to it than that.
A tokenizer that splits words first encodes each by itself, so such pieces are joined where a word begins. Where pieces differ, or
no word begins, the piece is encoded anew together with the next; a text without a place to join is encoded by one call.

Shape suffixes: K all tokens of a text.
"""

import re
from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor

PIECE = 2**18
"""Characters of a piece besides its overlap."""
MARGIN = 2048
"""Characters from a place where pieces are joined to either end of the overlap."""
CHARACTERS_PER_AGREEING_TOKEN = 16
PROBE = "a"
WORD = re.compile(r"(?<=\S)\s(?=\w)")
"""Where a word begins, and with it most pieces' tokens as they would in the whole text."""


def surrounding_tokens(tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """What a tokenizer puts before and after every text; None when it does something else to it."""
    whole = list(tokenizer(PROBE, verbose=False)["input_ids"])
    text = list(tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"])
    places = (at for at in range(len(whole) - len(text) + 1) if whole[at : at + len(text)] == text)
    at = next(places, None)
    return None if at is None else (whole[:at], whole[at + len(text) :])


def encode_text(tokenizer: Any, text: str, piece: int = PIECE, margin: int = MARGIN) -> Tensor:
    """The token ids of a text as one call of its tokenizer gives them, with its special tokens [K].

    Args:
        tokenizer: a Hugging Face tokenizer; a slow one, which tells no places, and a Unigram model that sees no words are called
            once.
        text: of any length.
        piece: characters of a piece, its overlap apart.
        margin: characters from a join to either end of its overlap.
    """
    if len(text) > 2 * (piece + margin) and _is_local(tokenizer):
        surrounding = surrounding_tokens(tokenizer)
        parts = None if surrounding is None else _encode_pieces(tokenizer, text, piece, margin)
        if surrounding is not None and parts is not None:
            before, after = (torch.tensor(tokens, dtype=torch.long) for tokens in surrounding)
            return torch.cat([before, *parts, after])
    return torch.tensor(tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"], dtype=torch.long)


def _is_local(tokenizer: Any) -> bool:
    """Whether tokens have places, and depend on what is near: a Unigram model breaks ties by rounding, over all of a word."""
    if not getattr(tokenizer, "is_fast", False):
        return False
    return type(tokenizer.backend_tokenizer.model).__name__ != "Unigram" or _splits_words(tokenizer)


def _splits_words(tokenizer: Any) -> bool:
    """Whether a fast tokenizer encodes words one by one; its normalizer may leave none to split."""
    return len(set(tokenizer(f"{PROBE} {PROBE}", add_special_tokens=False).word_ids())) > 1


def _encode_pieces(tokenizer: Any, text: str, piece: int, margin: int) -> list[Tensor] | None:
    """The tokens of consecutive parts of a text; None where a join that was found does not hold."""
    parts: list[Tensor] = []
    at_words = _splits_words(tokenizer)
    current, first = _Piece(tokenizer, text, 0, _end(text, piece, margin)), 0
    last_join: tuple[_Piece, tuple[int, int]] | None = None
    while current.end < len(text):
        following = _Piece(tokenizer, text, current.end - 2 * margin, _end(text, current.end + piece, margin))
        join = current.join(following, margin, at_words)
        if join is None:
            size = 2 * (current.end - current.start)
            current = _Piece(tokenizer, text, current.start, _end(text, current.start + size, margin))
            if last_join is not None and last_join[0].join(current, margin, at_words) != last_join[1]:
                return None
            continue
        parts.append(current.ids(first, join[0]))
        last_join, current, first = (current, join), following, join[1]
    return [*parts, current.ids(first, None)]


def _end(text: str, least: int, margin: int) -> int:
    """Where a piece ends: two margins after a word, at which the next piece will begin."""
    word = WORD.search(text, least)
    return len(text) if word is None else min(word.start() + 2 * margin, len(text))


class _Piece:
    """The tokens of a part of the text, by their places in the whole."""

    def __init__(self, tokenizer: Any, text: str, start: int, end: int) -> None:
        self.start, self.end = start, end
        encoded = tokenizer(
            text[start:end],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        self._ids, self._offsets = encoded["input_ids"], encoded["offset_mapping"]
        self._words = encoded.word_ids()

    def ids(self, first: int, last: int | None) -> Tensor:
        """A range of its tokens."""
        return torch.tensor(self._ids[first:last], dtype=torch.long)

    def join(self, following: "_Piece", margin: int, at_word: bool) -> tuple[int, int] | None:
        """The numbers of the first token after a join, here and in the next piece; None where there is none.

        The halves of both margins that are nearer to the join must agree, and hold enough tokens to say something.

        Args:
            following: a piece that begins two margins before the end of this one.
            margin: characters from the middle of their overlap to its ends.
            at_word: whether the join must be where a word begins.
        """
        places = [following.start + quarters * margin // 4 for quarters in (2, 4, 6)]
        (low, middle, high), (next_low, next_middle, next_high) = map(self._at, places), map(following._at, places)
        is_sure = high - low >= margin // CHARACTERS_PER_AGREEING_TOKEN and middle - low == next_middle - next_low
        if not is_sure or self._tokens(low, high) != following._tokens(next_low, next_high):
            return None
        n_after = next((n for n in range(high - middle) if self._begins_word(middle + n)), None) if at_word else 0
        return None if n_after is None else (middle + n_after, next_middle + n_after)

    def _at(self, place: int) -> int:
        """The number of the first token that begins at a place of the text or after it."""
        return bisect_left(self._offsets, place - self.start, key=lambda offsets: offsets[0])

    def _begins_word(self, n: int) -> bool:
        return n == 0 or self._words[n] != self._words[n - 1]

    def _tokens(self, first: int, last: int) -> list[tuple[int, int, int, bool]]:
        places = ((n, *(self.start + offset for offset in self._offsets[n])) for n in range(first, last))
        return [(self._ids[n], low, high, self._begins_word(n)) for n, low, high in places]
