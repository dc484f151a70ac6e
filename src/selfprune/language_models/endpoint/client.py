"""One request to an endpoint at a time, through the official client; whatever fails is one kind of error, without the key."""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from selfprune.language_models.endpoint.budget import Clock, read_retry_after
from selfprune.language_models.endpoint.replies import read_error

if TYPE_CHECKING:
    import httpx2

MAX_BODY_BYTES = 4_000_000
MAX_REASON_CHARACTERS = 300
MIN_KEY_CHARACTERS = 6
"""Shorter ones are what people give to a server that asks for any key; taking them out of replies would break the replies."""
NO_KEY = "none"
TEMPORARY_STATUSES = (408, 409, 429)
NEVER_SENT = ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "LocalProtocolError", "ProxyError")
CHATTY_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")


class RequestFailedError(Exception):
    """A request without an answer.

    Attributes:
        reason: in a few words, without the key.
        status: of the answer; None when there was none.
        is_temporary: whether the same request may succeed later.
        retry_after_seconds: how long the server asks to wait, where it does.
        was_sent: whether the endpoint may have worked on it, for pay.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        is_temporary: bool = False,
        retry_after_seconds: float | None = None,
        was_sent: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.is_temporary = is_temporary
        self.retry_after_seconds = retry_after_seconds
        self.was_sent = was_sent


class EndpointClient:
    """The official client, with a bound on the seconds and the bytes of every answer.

    Args:
        base_url: up to and including `/v1`.
        key: empty for a server that needs none.
        timeout_seconds: for a whole answer.
        clock: what the timeout goes by.
    """

    def __init__(self, base_url: str, key: str, timeout_seconds: float, clock: Clock) -> None:
        # Imported here because it takes a second, and only runs that ask an endpoint need it.
        import openai

        # At DEBUG they tell whole requests, headers and answers.
        for name in CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._client = openai.OpenAI(
            base_url=base_url,
            # Without one, the client would take OPENAI_API_KEY from the environment, whoever it is for.
            api_key=key or NO_KEY,
            timeout=timeout_seconds,
            max_retries=0,
            default_headers={"Connection": "close"},
            http_client=_bounded_http_client(timeout_seconds, clock.now),
        )

    def complete(self, request: dict[str, Any]) -> bytes:
        """The body of the answer to a chat completion.

        Raises:
            RequestFailedError: when there is none.
        """
        return self._ask(lambda: self._client.chat.completions.with_raw_response.create(**request).http_response)

    def models(self) -> list[str] | None:
        """The names of the models that the endpoint lists; None when its answer cannot be understood.

        Raises:
            RequestFailedError: when there is no answer.
        """
        body = self._ask(lambda: self._client.models.with_raw_response.list().http_response)
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return None
        rows = content.get("data") if isinstance(content, dict) else None
        if not isinstance(rows, list):
            return None
        names = [row.get("id") for row in rows if isinstance(row, dict)]
        return [self.clean(name) for name in names if isinstance(name, str)]

    def clean(self, text: str, n_characters: int = MAX_REASON_CHARACTERS) -> str:
        """A text of the server without the key, cut to a length, and fit to be written to a file."""
        if len(self._key) >= MIN_KEY_CHARACTERS:
            text = re.sub(re.escape(self._key), "[key]", text, flags=re.IGNORECASE)
        return text.encode("utf-8", errors="replace").decode("utf-8")[:n_characters]

    def _ask(self, send: "Callable[[], httpx2.Response]") -> bytes:
        try:
            return send().content
        except Exception as error:  # whatever the client or its HTTP library raises at what a server sends
            failure = self._read_failure(error)
        # Outside of the handler, so that no traceback leads to the request and its headers.
        raise failure

    def _read_failure(self, error: Exception) -> RequestFailedError:
        import openai

        if isinstance(error, openai.APIStatusError):
            said = self.clean(read_error(error.body))
            header = error.response.headers.get("retry-after")
            return RequestFailedError(
                f"status {error.status_code}" + (f": {said}" if said else ""),
                error.status_code,
                error.status_code in TEMPORARY_STATUSES or error.status_code >= 500,
                read_retry_after(header, time.time()),
            )
        cause = error.__cause__ or error
        was_sent = type(cause).__name__ not in NEVER_SENT
        if isinstance(error, openai.APITimeoutError):
            return RequestFailedError(f"no answer within {self._timeout_seconds:g} s", is_temporary=True, was_sent=was_sent)
        said = self.clean(str(cause)) or type(cause).__name__
        # One without a cause is our own, about an answer that is too large and would be so again.
        is_temporary = isinstance(error, openai.APIConnectionError) and error.__cause__ is not None
        return RequestFailedError(f"the connection failed: {said}", is_temporary=is_temporary, was_sent=was_sent)


def _bounded_http_client(timeout_seconds: float, now: Callable[[], float]) -> "httpx2.Client":
    """The HTTP client that the official one would make, but no answer takes longer or gets larger than the bounds."""
    import openai

    class Bounded(openai.DefaultHttpxClient):
        def send(self, request: "httpx2.Request", **options: Any) -> "httpx2.Response":
            deadline = now() + timeout_seconds
            if request.headers.get("authorization") == f"Bearer {NO_KEY}":
                del request.headers["authorization"]
            response = super().send(request, **{**options, "stream": True})
            body = bytearray()
            with contextlib.closing(response):
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        said = f"the answer is larger than {MAX_BODY_BYTES:,} bytes"
                        raise openai.APIConnectionError(message=said, request=request)
                    if now() > deadline:
                        raise openai.APITimeoutError(request=request)
            coded = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in coded]
            return type(response)(response.status_code, headers=headers, content=bytes(body), request=response.request)

    return Bounded()
