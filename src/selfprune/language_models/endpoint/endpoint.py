"""An endpoint as a language model: many requests at once, repeated where that may help; what still fails is told in the reply."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

from selfprune.language_models.base import Reply
from selfprune.language_models.endpoint.budget import Clock, Pace, TokenCap, back_off_seconds, estimate_tokens
from selfprune.language_models.endpoint.client import EndpointClient, RequestFailedError
from selfprune.language_models.endpoint.replies import Answer, read_answer
from selfprune.language_models.endpoint.requests import RequestForm

logger = logging.getLogger(__name__)

MAX_REPLY_CHARACTERS = 100_000
REFUSED = (400, 422)
"""Statuses of a request that the server does not understand."""


@dataclass(frozen=True)
class Limits:
    """How an endpoint is asked.

    Attributes:
        n_attempts: how often a reply is asked for.
        n_concurrent: requests in flight at once.
        max_reply_tokens: of one reply.
    """

    n_attempts: int
    n_concurrent: int
    max_reply_tokens: int


class Endpoint:
    """Asks an endpoint for replies. No failure of a request raises: it is told in the reply that is missing.

    Args:
        name: told in the record of the run.
        client: sends requests.
        form: how they are put.
        limits: how many, how often.
        cap: what may be spent.
        pace: how fast.
        clock: what pauses go by.

    Example:
        >>> endpoint = OpenAICompatible(model="qwen2.5:7b").open(key="", clock=Clock())
        >>> replies = endpoint.complete("Name a number as JSON: ", {"type": "integer"}, n=2, seed=0)
    """

    def __init__(
        self, name: str, client: EndpointClient, form: RequestForm, limits: Limits, cap: TokenCap, pace: Pace, clock: Clock
    ) -> None:
        self.name = name
        self._client = client
        self._form = form
        self._limits = limits
        self._cap = cap
        self._pace = pace
        self._clock = clock
        self._is_down = False

    def complete(self, prompt: str, schema: dict[str, Any], n: int, seed: int) -> list[Reply]:
        """`n` replies, asked for at once and returned in their order; one that did not come says why.

        Args:
            prompt: what is asked.
            schema: what the replies should meet; not every endpoint sees to it.
            n: how many replies.
            seed: of the first reply, where the endpoint takes one; the others count on from it.
        """
        n_reserved = estimate_tokens(prompt) + estimate_tokens(str(schema)) + self._limits.max_reply_tokens
        # Decided beforehand and in order, so that it does not hang on which reply comes first.
        n_sent = sum(self._cap.reserve(n_reserved) for _ in range(n))
        replies: list[Reply] = []
        if n_sent:
            # Its threads are daemons, so that an interrupted run need not wait for replies.
            with ThreadPool(min(n_sent, self._limits.n_concurrent)) as pool:
                replies = pool.map(partial(self._reply, prompt, schema, n_reserved), range(seed, seed + n_sent), chunksize=1)
            self._is_down = all(reply.failure for reply in replies)
        return replies + [Reply("", None, 0, 0, self._cap.describe()) for _ in range(n - n_sent)]

    def score(self, prompt: str, options: Sequence[str]) -> list[Reply]:
        """The options without log-probabilities, which an endpoint does not tell; it is not asked."""
        return [Reply(option, None, 0, 0) for option in options]

    def recall(self, replies: Sequence[Reply]) -> None:
        """Counts what these replies, of before the run was resumed, did cost."""
        self._cap.settle(0, sum(reply.n_prompt_tokens + reply.n_reply_tokens for reply in replies))

    def _reply(self, prompt: str, schema: dict[str, Any], n_reserved: int, seed: int) -> Reply:
        """One reply, after as many attempts as it takes; an endpoint that gave none to the call before gets one attempt."""
        n_attempts = 1 if self._is_down else self._limits.n_attempts
        n_prompt = n_reply = 0
        for i in range(1, n_attempts + 1):
            answer = self._attempt(prompt, schema, seed)
            n_now = answer.n_prompt_tokens or 0, answer.n_reply_tokens or 0
            self._cap.settle(n_reserved, sum(n_now))
            n_prompt, n_reply = n_prompt + n_now[0], n_reply + n_now[1]
            if not answer.is_temporary or i == n_attempts:
                break
            if not self._cap.reserve(n_reserved):
                answer = replace(answer, failure=f"{answer.failure}; asked again it was {self._cap.describe()}")
                break
            self._clock.sleep(back_off_seconds(i, answer.retry_after_seconds, self._clock.jitter()))
        failure = self._client.clean(answer.failure)
        if failure:
            failure += f" (after {i} attempts)" if i > 1 else ""
            logger.info("%s gave no reply: %s", self.name, failure)
        return Reply(self._client.clean(answer.text, MAX_REPLY_CHARACTERS), None, n_prompt, n_reply, failure)

    def _attempt(self, prompt: str, schema: dict[str, Any], seed: int) -> Answer:
        """What came of one attempt, with all tokens counted or estimated."""
        try:
            request, body = self._send(prompt, schema, seed)
        except RequestFailedError as error:
            # The endpoint may have worked on what it did not answer.
            n_prompt = estimate_tokens(prompt) if error.was_sent else 0
            return Answer("", error.reason, error.is_temporary, False, n_prompt, 0, error.retry_after_seconds)
        answer, message = read_answer(body), request["messages"][0]["content"]
        if answer.n_prompt_tokens is None:
            answer = replace(answer, n_prompt_tokens=estimate_tokens(message))
        if answer.n_reply_tokens is None:
            answer = replace(answer, n_reply_tokens=estimate_tokens(answer.text))
        if answer.text.startswith(message):
            text = answer.text.removeprefix(message).strip()
            return replace(answer, text=text, failure="" if text else "the reply repeats the prompt and says no more")
        if answer.text and answer.is_complete:
            self._form.check_reply(answer.text, request)
        return answer

    def _send(self, prompt: str, schema: dict[str, Any], seed: int) -> tuple[dict[str, Any], bytes]:
        """The request that the endpoint understood, and its answer; parameters that it refuses are left out one by one."""
        refused, cleared = self._form.refused, self._form.refused
        suspect, complaint = "", ""
        while True:
            request = self._form.request(prompt, schema, seed, refused)
            self._pace.wait()
            try:
                body = self._client.complete(request)
            except RequestFailedError as error:
                if error.status not in REFUSED:
                    raise
                if suspect and error.reason == complaint:
                    # Without it the complaint is the same, so it was not to blame.
                    refused -= {suspect}
                found = self._form.suspect(error.reason, cleared)
                if found is None:
                    raise
                suspect, complaint = found, error.reason
                refused, cleared = refused | {found}, cleared | {found}
            else:
                self._form.learn(refused)
                return request, body
