"""Reads the answers of endpoints, which may hold anything."""

import json
from dataclasses import dataclass
from typing import Any

MAX_PLAUSIBLE_TOKENS = 10**9


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        text: the reply; empty where there is a failure.
        failure: why there is no reply.
        is_temporary: whether the same request may succeed later.
        is_complete: whether the server says that the reply ended by itself.
        n_prompt_tokens: by the server's count; None where it gives no number that can be one.
        n_reply_tokens: likewise.
        retry_after_seconds: how long the server asks to wait, where it does.
    """

    text: str = ""
    failure: str = ""
    is_temporary: bool = False
    is_complete: bool = False
    n_prompt_tokens: int | None = None
    n_reply_tokens: int | None = None
    retry_after_seconds: float | None = None


def read_answer(body: bytes) -> Answer:
    """The reply in the body of a chat completion.

    Args:
        body: what the server sent with a status of success.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        # Nothing of it is quoted: a secret that it repeats may be spelled so that it is not recognised.
        return Answer(failure=f"the answer of {len(body):,} bytes is no JSON", is_temporary=True, n_reply_tokens=len(body) // 4)
    usage = _get(content, "usage")
    n_prompt_tokens, n_reply_tokens = (_count(_get(usage, f"{kind}_tokens")) for kind in ("prompt", "completion"))
    choices = _get(content, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _get(choice, "message")
    text = _text(_get(message, "content"))
    return Answer(
        text if text.strip() else "",
        "" if text.strip() else _why_empty(content, choice, message),
        is_complete=_get(choice, "finish_reason") == "stop",
        n_prompt_tokens=n_prompt_tokens,
        n_reply_tokens=n_reply_tokens,
    )


def read_error(content: Any, depth: int = 4) -> str:
    """The words of a server's error, wherever it puts them; empty where there are none.

    Args:
        content: a JSON value.
        depth: how far to look into it.
    """
    if isinstance(content, str):
        # Pages and broken JSON are no words, and may spell a secret so that it is not recognised.
        return "" if content.lstrip().startswith(("<", "{", "[", '"')) else content
    if isinstance(content, list) and depth:
        return "; ".join(filter(None, (read_error(part, depth - 1) for part in content[:3])))
    if isinstance(content, dict) and depth:
        said = (read_error(content.get(name), depth - 1) for name in ("error", "message", "detail", "msg"))
        return next(filter(None, said), "")
    return ""


def _why_empty(content: Any, choice: Any, message: Any) -> str:
    if choice is None:
        said = read_error(content) if _get(content, "error") is not None else ""
        return f"the server answered with an error: {said}" if said else "the answer holds no choices"
    if refusal := _text(_get(message, "refusal")):
        return f"the model refused: {refusal}"
    if _get(choice, "finish_reason") == "length":
        return "the reply reached max_reply_tokens before it held any text, as reasoning models do when they think for longer"
    if _get(choice, "finish_reason") == "content_filter":
        return "the server's filter held the reply back"
    return "the reply holds no text"


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(content: Any) -> str:
    """The text of a message, which some servers give in parts."""
    if isinstance(content, list):
        return "".join(text for text in (_get(part, "text") for part in content) if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int | None:
    """A number of tokens, or None for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # No comparison holds for NaN.
    return int(value) if 0 <= value <= MAX_PLAUSIBLE_TOKENS and value == int(value) else None
