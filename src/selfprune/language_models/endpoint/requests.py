"""How a prompt is put to an endpoint, and what the endpoint was seen not to understand."""

import json
import logging
import threading
from enum import Enum
from importlib.resources import files
from string import Template
from typing import Any

logger = logging.getLogger(__name__)

SCHEMA_PARAMETER = "response_format"
SCHEMA_WORDS = (SCHEMA_PARAMETER, "schema", "grammar", "guided", "structured")
"""Words of a refusal that tell that the schema was not understood."""
N_SEEDS = 2**31
"""Seeds beyond this are refused by servers that keep them in 32 bits."""


class SchemaMode(str, Enum):
    """How an endpoint is told the schema of the replies.

    AUTO: as JSON_SCHEMA, until the server refuses or ignores it, then as NONE. JSON_SCHEMA: by the parameter for it, strictly.
    JSON_OBJECT: the server keeps to JSON, and the prompt ends in the schema. NONE: the prompt ends in the schema.
    """

    AUTO = "AUTO"
    JSON_SCHEMA = "JSON_SCHEMA"
    JSON_OBJECT = "JSON_OBJECT"
    NONE = "NONE"


class RequestForm:
    """The parameters of a request; those that the server refuses are left out for good.

    Args:
        model: its name at the endpoint.
        temperature: of the sampling.
        max_reply_tokens: a reply is cut off after so many tokens.
        mode: how the schema is told.

    Attributes:
        refused: parameters that are no longer sent.
    """

    def __init__(self, model: str, temperature: float, max_reply_tokens: int, mode: SchemaMode) -> None:
        self._model = model
        self._temperature = temperature
        self._max_reply_tokens = max_reply_tokens
        self._mode = mode
        self._template = Template(files(__package__).joinpath("prompts", "schema.txt").read_text(encoding="utf-8").rstrip("\n"))
        self._lock = threading.Lock()
        self.refused: frozenset[str] = frozenset()

    def request(self, prompt: str, schema: dict[str, Any], seed: int, refused: frozenset[str]) -> dict[str, Any]:
        """The parameters of one chat completion.

        Args:
            prompt: what is asked.
            schema: what the reply should meet.
            seed: of the sampling.
            refused: parameters to leave out.
        """
        response_format = None if SCHEMA_PARAMETER in refused else self._response_format(schema)
        if response_format is None or response_format["type"] == "json_object":
            prompt = self._template.substitute(prompt=prompt, schema=json.dumps(schema))
        limit = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
        request = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            limit: self._max_reply_tokens,
            "temperature": self._temperature,
            "seed": seed % N_SEEDS,
        }
        if response_format is not None:
            request[SCHEMA_PARAMETER] = response_format
        return {name: value for name, value in request.items() if name not in refused}

    def suspect(self, refusal: str, cleared: frozenset[str]) -> str | None:
        """The parameter that the server most likely refused; None when it must be something else.

        Args:
            refusal: the words of the server.
            cleared: parameters that were left out already or are known to be innocent.
        """
        words: dict[str, tuple[str, ...]] = {name: (name,) for name in ("max_tokens", "seed", "temperature")}
        if self._mode is SchemaMode.AUTO:
            words = {SCHEMA_PARAMETER: SCHEMA_WORDS, **words}
        open_to_blame = [name for name in words if name not in cleared]
        named = [name for name in open_to_blame if any(word in refusal.lower() for word in words[name])]
        # Some servers do not say what they refuse; then it is the parameter that the fewest of them know.
        return next(iter([*named, *(name for name in open_to_blame if name == SCHEMA_PARAMETER)]), None)

    def learn(self, refused: frozenset[str], why: str = "the endpoint refuses it") -> None:
        """Leaves parameters out from now on."""
        with self._lock:
            for name in sorted(refused - self.refused):
                logger.warning("requests go without %s from now on: %s", name, why)
            self.refused |= refused

    def check_reply(self, text: str, request: dict[str, Any]) -> None:
        """Tells from a complete reply whether the server takes the schema but ignores it."""
        if self._mode is not SchemaMode.AUTO or SCHEMA_PARAMETER not in request:
            return
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            self.learn(frozenset({SCHEMA_PARAMETER}), "the endpoint takes it, but its replies are no JSON all the same")

    def _response_format(self, schema: dict[str, Any]) -> dict[str, Any] | None:
        if self._mode is SchemaMode.NONE:
            return None
        if self._mode is SchemaMode.JSON_OBJECT:
            return {"type": "json_object"}
        return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}
