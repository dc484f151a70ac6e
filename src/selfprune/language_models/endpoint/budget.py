"""What an endpoint may be asked: tokens in total, requests per minute, and how long to wait between two attempts."""

import email.utils
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_BACK_OFF_SECONDS = 0.5
MAX_BACK_OFF_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 60.0
"""A server that asks for more patience than this is asked again all the same; the search goes on without the reply after that."""


@dataclass(frozen=True)
class Clock:
    """Time and chance, so that tests need neither.

    Attributes:
        now: seconds of a clock that never goes back.
        sleep: waits for so many seconds.
        jitter: draws from [0, 1); decides nothing but when a request is repeated, so it need not repeat itself.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.SystemRandom().random


class TokenCap:
    """The tokens that a run may spend on an endpoint; requests in flight count with the most that they can cost.

    Args:
        max_tokens: prompts and replies together; 0 for no limit.

    Attributes:
        n_spent: tokens spent so far.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._n_reserved = 0
        self._lock = threading.Lock()
        self.n_spent = 0

    def reserve(self, n_tokens: int) -> bool:
        """Whether a request that costs `n_tokens` at most may be sent; if so, they are set aside."""
        with self._lock:
            if self._max_tokens and self.n_spent + self._n_reserved + n_tokens > self._max_tokens:
                return False
            self._n_reserved += n_tokens
            return True

    def settle(self, n_reserved: int, n_spent: int) -> None:
        """Gives back what was set aside for a request, and counts what it did cost."""
        with self._lock:
            self._n_reserved -= n_reserved
            self.n_spent += n_spent

    def describe(self) -> str:
        """Why a request was not sent."""
        return f"not sent: max_total_tokens={self._max_tokens} leaves no room for it, {self.n_spent} tokens are spent"


class Pace:
    """Spaces requests evenly, whichever thread sends them.

    Args:
        requests_per_minute: 0 for no limit.
        clock: what to wait by.
    """

    def __init__(self, requests_per_minute: float, clock: Clock) -> None:
        self._seconds_between = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._clock = clock
        self._next_start = -math.inf
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Returns when the next request may be sent."""
        if not self._seconds_between:
            return
        with self._lock:
            now = self._clock.now()
            start = max(now, self._next_start)
            self._next_start = start + self._seconds_between
        if start > now:
            self._clock.sleep(start - now)


def back_off_seconds(n_failures: int, retry_after_seconds: float | None, jitter: float) -> float:
    """How long to wait before the next attempt: twice as long after every failure, and at least as long as the server asks for.

    Args:
        n_failures: failures of this request so far, at least 1.
        retry_after_seconds: what the server asks for, where it does.
        jitter: from [0, 1); keeps requests that failed together from being repeated together.
    """
    doubled: float = FIRST_BACK_OFF_SECONDS * 2 ** min(n_failures - 1, 30)
    waited = min(doubled, MAX_BACK_OFF_SECONDS) * (0.5 + jitter)
    return max(waited, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))


def read_retry_after(header: str | None, wall_seconds: float) -> float | None:
    """The seconds that a Retry-After header asks for; None where it says nothing that can be understood.

    Args:
        header: a number of seconds, or a date.
        wall_seconds: the time now, in seconds since 1970.
    """
    try:
        seconds = float(header or "")
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header or "").timestamp() - wall_seconds
        except (ValueError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def estimate_tokens(text: str) -> int:
    """Tokens of a text whose tokenizer is not at hand: one for every four bytes."""
    return math.ceil(len(text.encode("utf-8", errors="replace")) / 4)
