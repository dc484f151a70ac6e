"""The tokens that a tokenizer puts before every text, at the head of every window.

Windows are cut out of long texts, of which only the beginning has them; a model that never saw text without them is far from
itself in all other windows. Shape suffixes: N windows, T tokens.
"""

from typing import Any

import torch
from torch import Tensor

from selfprune.data.data_config import Bos
from selfprune.data.encoding import surrounding_tokens
from selfprune.errors import ConfigError


def start_tokens(tokenizer: Any, bos: Bos, n_tokens: int) -> tuple[int, ...]:
    """What every window begins with.

    Args:
        tokenizer: the model's.
        bos: whether they shall begin with anything.
        n_tokens: length of a window, of which one token of text at least must remain.

    Returns:
        the ids, mostly that of `<bos>` alone; of several, all but the first are scored as the text is.

    Raises:
        ConfigError: when the tokenizer has no such token, or the windows are no longer than what they should begin with.
    """
    if bos is Bos.NEVER:
        return ()
    surrounding = surrounding_tokens(tokenizer)
    start = tuple(surrounding[0]) if surrounding is not None else ()
    if not start and bos is Bos.ALWAYS:
        if tokenizer.bos_token_id is None:
            raise ConfigError(
                "data.bos=ALWAYS needs a tokenizer with a token that begins a text (bos_token), but that of the model has none; "
                "give data.bos=AUTO or NEVER"
            )
        start = (int(tokenizer.bos_token_id),)
    if len(start) >= n_tokens:
        raise ConfigError(
            f"data.n_tokens_per_window must be above {len(start)}, since every window begins with that many tokens that the "
            f"tokenizer puts before a text, got {n_tokens}; give longer windows or data.bos=NEVER"
        )
    return start


def begin_windows(windows_NT: Tensor, start: tuple[int, ...]) -> Tensor:
    """Puts the start tokens before windows that do not begin with them; the last tokens of these give their places up.

    Windows thus stay where they were cut and as long as they were, and positions are those of the model.
    """
    if not start or not len(windows_NT):
        return windows_NT
    start_T = torch.tensor(start, dtype=windows_NT.dtype)
    begun_NT = torch.cat([start_T.expand(len(windows_NT), -1), windows_NT[:, : -len(start)]], dim=1)
    begins_N = (windows_NT[:, : len(start)] == start_T).all(dim=1)
    return torch.where(begins_N[:, None], windows_NT, begun_NT)
