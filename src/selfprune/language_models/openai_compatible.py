"""Any endpoint that speaks OpenAI's chat completions proposes: vLLM, llama.cpp, Ollama, or a hosted one.

Limits: sampling is the server's, so a search repeats exactly only from its record (`language_model=scripted`). Such endpoints do
not tell the log-probability of a given text, so options are returned without one. Base models need a server with a chat template.
"""

import logging
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from selfprune.errors import ConfigError, LanguageModelError, did_you_mean
from selfprune.language_models.base import LanguageModel, LanguageModelConfig
from selfprune.language_models.endpoint.budget import Clock, Pace, TokenCap
from selfprune.language_models.endpoint.client import EndpointClient, RequestFailedError
from selfprune.language_models.endpoint.endpoint import Endpoint, Limits
from selfprune.language_models.endpoint.requests import RequestForm, SchemaMode

logger = logging.getLogger(__name__)

N_MODELS_SHOWN = 10
KEY_REFUSED = (401, 403)
MODEL_REFUSED = (400, 404, 422)


@dataclass
class OpenAICompatible(LanguageModelConfig):
    """How an endpoint is asked, and for how much.

    Attributes:
        base_url: of the endpoint, up to and including `/v1`.
        model: its name there; empty for the only one that the endpoint serves.
        key_variable: environment variable that holds the key; none is sent where it is unset or this is empty.
        temperature: of the sampling.
        max_reply_tokens: a reply is cut off after so many tokens; reasoning models need many more.
        timeout_seconds: for a whole reply.
        n_attempts: how often a reply is asked for, when the endpoint is busy, silent or broken for a moment.
        n_concurrent: requests in flight at once.
        requests_per_minute: no faster than that; 0 for no limit.
        max_total_tokens: of prompts and replies of the run, by the endpoint's own count; 0 for no limit. A request that could go
            beyond it is not sent, and its reply is a failure.
        schema: how the endpoint is told the schema of the replies.
    """

    base_url: str = "http://localhost:8000/v1"
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 1.0
    max_reply_tokens: int = 400
    timeout_seconds: float = 60.0
    n_attempts: int = 4
    n_concurrent: int = 4
    requests_per_minute: float = 0.0
    max_total_tokens: int = 1_000_000
    schema: SchemaMode = SchemaMode.AUTO

    def __post_init__(self) -> None:
        # What might be a key is never repeated: the complaint would end up in a terminal or a log.
        if not _is_plain_address(self.base_url):
            raise ConfigError(
                "language_model.base_url must be an http or https address without a user, password or query, such as "
                "http://localhost:8000/v1; a key goes into the environment variable that language_model.key_variable names"
            )
        if not re.fullmatch(r"([A-Za-z_]\w*)?", self.key_variable, re.ASCII):
            raise ConfigError(
                "language_model.key_variable must be the name of an environment variable, such as OPENAI_API_KEY, got something "
                "else; the key itself never goes into the config"
            )
        for name, low, high in (
            ("temperature", 0, 100), ("max_reply_tokens", 1, 10**7), ("timeout_seconds", 0.01, 86_400), ("n_attempts", 1, 100),
            ("n_concurrent", 1, 256), ("requests_per_minute", 0, 10**6), ("max_total_tokens", 0, 10**15),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"language_model.{name} must lie in [{low}, {high}], got {getattr(self, name)}")

    def check(self) -> None:
        """Reaches the endpoint once.

        Raises:
            LanguageModelError: when the key is missing or turned away, or the endpoint cannot be reached or does not serve the
                model.
        """
        if self.key_variable not in ("", OpenAICompatible.key_variable, *os.environ):
            # It may be the key itself, so it is not repeated.
            raise LanguageModelError(
                "language_model.key_variable must name an environment variable that is set, but none of the given name is; "
                "export the key under that name, or leave the option empty for a server that needs no key"
            )
        self.build(None, None)

    def build(self, model: Any, tokenizer: Any) -> LanguageModel:
        """The endpoint, once it has been reached; the model that is pruned is left alone.

        Raises:
            LanguageModelError: when it cannot be reached, turns the key away or does not serve the model.
        """
        return self.open(os.environ.get(self.key_variable, "").strip(), Clock())

    def open(self, key: str, clock: Clock) -> Endpoint:
        """The endpoint with this key.

        Args:
            key: empty for a server that needs none.
            clock: what pauses and timeouts go by.

        Raises:
            LanguageModelError: when it cannot be reached, turns the key away or does not serve the model.
        """
        if not key.isascii() or not key.isprintable() or " " in key:
            raise LanguageModelError(
                f"the environment variable {self.key_variable} must hold the key of {self.base_url}, but holds characters that "
                "no key has, such as spaces or line ends; set it to the key alone"
            )
        client = EndpointClient(self.base_url, key, self.timeout_seconds, clock)
        model = self._find_model(client, bool(key))
        form = RequestForm(model, self.temperature, self.max_reply_tokens, self.schema)
        limits = Limits(self.n_attempts, self.n_concurrent, self.max_reply_tokens)
        cap, pace = TokenCap(self.max_total_tokens), Pace(self.requests_per_minute, clock)
        return Endpoint(f"{model} at {self.base_url}", client, form, limits, cap, pace, clock)

    def _find_model(self, client: EndpointClient, has_key: bool) -> str:
        """The name of the model, after one request that shows whether the endpoint is there and serves it."""
        try:
            known = client.models()
        except RequestFailedError as error:
            self._check_probe(error, has_key)
            known = None
        # Ollama lists the tag that it takes when none is given.
        if self.model and (known is None or self.model in known or f"{self.model}:latest" in known):
            return self.model
        known = known or []
        if not self.model and len(known) == 1:
            return known[0]
        refusal = self._refusal(client) if self.model else "no model is named"
        if not refusal:
            return self.model
        nearest = did_you_mean(self.model, known).split(", ")[:N_MODELS_SHOWN]
        raise LanguageModelError(
            f"language_model.model must name a model that {self.base_url} serves, got {self.model!r} ({refusal}); "
            + (f"it serves {len(known)}, nearest first: {', '.join(nearest)}" if known else "it does not list what it serves")
        )

    def _check_probe(self, error: RequestFailedError, has_key: bool) -> None:
        if error.status in KEY_REFUSED:
            given = f"the key in {self.key_variable}" if has_key else "a request without a key"
            raise LanguageModelError(
                f"{self.base_url} turns away {given} ({error.reason}); put a key that it knows into the environment variable "
                "that language_model.key_variable names"
            )
        if error.status is None:
            raise LanguageModelError(
                f"language_model.base_url must be an endpoint that can be reached, but {self.base_url} cannot ({error.reason}); "
                "start the server, or correct the address, which mostly ends in /v1"
            )
        logger.warning("%s does not list its models (%s); if requests fail too, check base_url", self.base_url, error.reason)

    def _refusal(self, client: EndpointClient) -> str:
        """What the endpoint says to one token of a model that it does not list; empty where it would serve it all the same."""
        request = {"model": self.model, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
        try:
            client.complete(request)
        except RequestFailedError as error:
            return error.reason if error.status in MODEL_REFUSED else ""
        return ""


def _is_plain_address(url: str) -> bool:
    try:
        address = urlsplit(url)
    except ValueError:
        return False
    return address.scheme in ("http", "https") and bool(address.hostname) and "@" not in address.netloc and not address.query
