import json
import logging
import socket
import ssl
import struct
import threading

import pytest
from fake_endpoint import KEY, FakeClock, Raw, completion, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from selfprune.language_models.base import Reply
from selfprune.language_models.endpoint.budget import TokenCap, back_off_seconds, estimate_tokens, read_retry_after
from selfprune.language_models.endpoint.client import MAX_BODY_BYTES
from selfprune.language_models.endpoint.endpoint import MAX_REPLY_CHARACTERS
from selfprune.language_models.endpoint.replies import read_answer
from selfprune.language_models.endpoint.requests import SchemaMode
from selfprune.language_models.openai_compatible import OpenAICompatible

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
PROMPT = "Name a number as JSON: "


CONTEXT = ssl.create_default_context()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # certificates, which no server here asks for, are read once for all clients
    monkeypatch.setattr("ssl.create_default_context", lambda *_, **__: CONTEXT)
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def ask(server, caplog):
    """Opens the endpoint on a fake clock and asks it once; everything that was logged is told as well."""
    caplog.set_level(logging.DEBUG)

    def call(n=3, seed=100, clock=None, **options):
        options = {"model": "m", "n_attempts": 2, "n_concurrent": 1, "timeout_seconds": 30.0, **options}
        model = OpenAICompatible(base_url=server.url, **options).open(KEY, (clock or FakeClock()).clock)
        return model, model.complete(PROMPT, SCHEMA, n, seed)

    return call


def reset(connection):
    """Drops a connection in the rudest way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def echo_headers(server, status):
    def answer(i, request):
        said = f"unknown key in {server.headers[-1]['authorization']}"
        return Raw({"error": {"message": said}}, status) if status != 200 else said

    return answer


DEEP = b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
# How it answers, how the failure begins, and after how many attempts.
HOSTILE = {
    "drops the connection": (lambda i, r: Raw(length=1000, ending=reset), "the connection failed: ", 2),
    "stops in the middle": (lambda i, r: Raw(b'{"choi', length=1000), "the connection failed: ", 2),
    "is too busy": (lambda i, r: Raw({"error": {"message": "slow down"}}, 429), "status 429: slow down", 2),
    "breaks": (lambda i, r: Raw(b"<html>oh</html>", 500), "status 500 (", 2),
    "breaks in words": (lambda i, r: Raw(b"Internal Server Error", 503), "status 503: Internal Server Error", 2),
    "breaks in half a JSON": (lambda i, r: Raw(b'{"error": "', 502), "status 502 (", 2),
    "forgets who we are": (lambda i, r: Raw({"error": {"message": "who?"}}, 401), "status 401: who?", 1),
    "talks for long": (lambda i, r: Raw({"error": "no " * 10_000}, 404), "status 404: no no", 1),
    "sends half of a JSON": (lambda i, r: Raw(b'{"choices": [{"mess'), "the answer of 19 bytes is no JSON", 2),
    "sends a page": (lambda i, r: Raw(b"<html>", headers={"content-type": "text/html"}), "the answer of 6 bytes is no JSON", 2),
    "sends nothing": (lambda i, r: Raw(b""), "the answer of 0 bytes is no JSON", 2),
    "sends no text": (lambda i, r: Raw(b"\xff\xfe\xfd\x80"), "the answer of 4 bytes is no JSON", 2),
    "nests deeply": (lambda i, r: Raw(DEEP), "the answer of 200,013 bytes is no JSON", 2),
    "says nothing": (lambda i, r: Raw(b"null"), "the answer holds no choices", 1),
    "says a list": (lambda i, r: Raw(b"[1, 2]"), "the answer holds no choices", 1),
    "fails politely": (lambda i, r: {"error": {"message": "no GPU"}}, "the server answered with an error: no GPU", 1),
    "makes no choice": (lambda i, r: {"choices": []}, "the answer holds no choices", 1),
    "makes strange choices": (lambda i, r: {"choices": [7]}, "the reply holds no text", 1),
    "misses the message": (lambda i, r: {"choices": [{"index": 0}]}, "the reply holds no text", 1),
    "sends null": (lambda i, r: completion(None), "the reply holds no text", 1),
    "sends blanks": (lambda i, r: completion(" \n\t"), "the reply holds no text", 1),
    "sends a number": (lambda i, r: completion(7), "the reply holds no text", 1),
    "thinks too long": (lambda i, r: completion("", "length"), "the reply reached max_reply_tokens before it held", 1),
    "filters": (lambda i, r: completion(None, "content_filter"), "the server's filter held the reply back", 1),
    "refuses": (lambda i, r: {"choices": [{"message": {"refusal": "I would not"}}]}, "the model refused: I would not", 1),
    "says the prompt": (lambda i, r: r["messages"][0]["content"], "the reply repeats the prompt and says no more", 1),
    "never ends": (
        lambda i, r: Raw(b" " * (MAX_BODY_BYTES + 1)),
        "the connection failed: the answer is larger than 4,000,000",
        1,
    ),
    "turns in circles": (lambda i, r: Raw(b"", 307, {"location": "/v1/chat/completions"}), "the connection failed: ", 2),
    "sends bad gzip": (lambda i, r: Raw(b"{}", headers={"content-encoding": "gzip"}), "the connection failed: ", 2),
    "sends odd headers": (lambda i, r: Raw(b"{}", headers={"a b\x01": "c"}), "the connection failed: ", 2),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_endpoint_gives_as_many_replies_and_each_says_what_happened(server, ask, caplog, how):
    server.answer, failure, n_attempts = HOSTILE[how]
    _, replies = ask(n=2, schema=SchemaMode.JSON_SCHEMA)
    assert [(reply.text, reply.logprob) for reply in replies] == [("", None)] * 2
    assert len({reply.failure for reply in replies}) == 1
    assert replies[0].failure.startswith(failure)
    assert len(replies[0].failure) < 400
    assert replies[0].failure.endswith("(after 2 attempts)") == (n_attempts == 2)
    assert len(server.requests) >= 2 * n_attempts
    assert KEY not in repr(replies) + caplog.text


def test_an_endpoint_that_is_silent_is_left_after_the_timeout(server, ask):
    server.answer = lambda i, request: Raw(ending=lambda c: None) if server.released.wait(60) else None
    try:
        replies = ask(n=1, n_attempts=1, timeout_seconds=0.1)[1]
    finally:
        server.released.set()
    assert replies == [Reply("", None, estimate_tokens(PROMPT), 0, "no answer within 0.1 s")]


def test_an_endpoint_that_drips_is_left_after_the_timeout(server, ask):
    server.answer = lambda i, request: Raw(b" ", length=100, ending=lambda c: server.released.wait(60))
    clock = FakeClock()
    model, _ = ask(n=0, n_attempts=1, timeout_seconds=15.0, clock=clock)
    clock.seconds_per_look = 20.0  # so that the first byte comes too late already
    try:
        replies = model.complete(PROMPT, SCHEMA, 1, 0)
    finally:
        server.released.set()
    assert replies[0].failure == "no answer within 15 s"


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_an_endpoint_that_repeats_the_key_does_not_get_it_written(server, ask, caplog, status):
    server.answer = echo_headers(server, status)
    _, replies = ask(n=1, n_attempts=1)
    assert "unknown key in Bearer [key]" in replies[0].text + replies[0].failure
    assert KEY not in repr(replies) + caplog.text


def test_the_key_is_found_in_other_letters_and_across_the_cut(server, ask):
    server.answer = lambda i, request: KEY.upper() + "x" * (MAX_REPLY_CHARACTERS - len("[key]") - 4) + KEY
    text = ask(n=1)[1][0].text
    assert len(text) == MAX_REPLY_CHARACTERS
    assert text == "[key]" + "x" * (MAX_REPLY_CHARACTERS - 9) + "[key"


def test_the_librarys_own_loggers_tell_nothing(server, monkeypatch, ask, caplog):
    monkeypatch.setenv("OPENAI_LOG", "debug")
    server.answer = lambda i, request: '{"a": 1}'
    ask()
    assert {record.name.split(".")[0] for record in caplog.records} <= {"selfprune", "asyncio"}


def test_good_replies_come_with_their_tokens(server, ask):
    server.answer = lambda i, request: completion('{"a": 1}', usage=(21, 4))
    assert ask(n=2)[1] == [Reply('{"a": 1}', None, 21, 4)] * 2
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"


def test_a_reply_that_was_cut_off_keeps_its_text(server, ask):
    server.answer = lambda i, request: completion('{"a": 1', finish="length")
    assert ask(n=1)[1] == [Reply('{"a": 1', None, 10, 5)]


def test_the_first_of_many_choices_and_the_parts_of_a_text_are_taken(server, ask):
    parts = completion([{"type": "text", "text": '{"a"'}, {"type": "text", "text": ": 1}"}, {"type": "image"}, 3])
    server.answer = lambda i, request: {**parts, "choices": parts["choices"] * 5}
    assert [reply.text for reply in ask(n=2)[1]] == ['{"a": 1}'] * 2


def test_a_reply_behind_the_prompt_and_one_behind_thoughts_are_kept(server, ask):
    server.answer = lambda i, request: [request["messages"][0]["content"] + '{"a": 1}', '<think>so</think>{"a": 2}'][i]
    assert [reply.text for reply in ask(n=2, schema=SchemaMode.JSON_SCHEMA)[1]] == ['{"a": 1}', '<think>so</think>{"a": 2}']


@pytest.mark.parametrize("usage", [None, (float("nan"), 5), (-1, 5), ("7", 5), (True, 5), (10**400, 5), (1.5, 5), ([], {})])
def test_tokens_that_no_server_can_have_counted_are_estimated(server, ask, usage):
    server.answer = lambda i, request: completion("x" * 40, usage=usage)
    reply = ask(n=1, schema=SchemaMode.JSON_SCHEMA)[1][0]
    assert reply.n_prompt_tokens == estimate_tokens(PROMPT) == 6
    assert reply.n_reply_tokens == (5 if usage and usage[1] == 5 else 10)


def test_half_a_character_does_not_keep_a_reply_from_being_written(server, ask):
    server.answer = lambda i, request: Raw(b'{"choices": [{"message": {"content": "a\\ud800b\\u0000"}}]}')
    assert ask(n=1)[1][0].text == "a?b\0"


def test_replies_are_asked_at_once_and_come_in_the_order_of_their_seeds(server, ask):
    all_four = threading.Barrier(4)

    def answer(i, request):
        all_four.wait(30)
        return json.dumps({"a": request["seed"]})

    server.answer = answer
    _, replies = ask(n=8, n_concurrent=4, clock=FakeClock())
    assert [json.loads(reply.text)["a"] for reply in replies] == list(range(100, 108))


def test_what_may_pass_is_tried_again_with_longer_pauses(server, ask):
    clock = FakeClock()
    trouble = [Raw(b"", status) for status in (408, 409, 429, 500, 502, 503)]
    server.answer = lambda i, request: [*trouble, '{"a": 1}'][i]
    assert ask(n=1, n_attempts=7, clock=clock)[1][0].text == '{"a": 1}'
    assert clock.slept == [0.5, 1, 2, 4, 8, 16]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_cannot_pass_is_not_tried_again(server, ask, status):
    clock = FakeClock()
    server.answer = lambda i, request: Raw(b"", status)
    assert ask(n=1, n_attempts=5, clock=clock, schema=SchemaMode.NONE)[1][0].failure == f"status {status}"
    assert (len(server.requests), clock.slept) == (1, [])


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("1000000", 60), ("-3", 0.5), ("nan", 0.5), ("soon", 0.5), ("", 0.5)])
def test_a_server_that_asks_for_patience_is_given_it_up_to_a_bound(server, ask, header, seconds):
    clock = FakeClock()
    server.answer = lambda i, request: Raw(b"", 429, {"retry-after": header}) if i == 0 else '{"a": 1}'
    assert ask(n=1, clock=clock)[1][0].failure == ""
    assert clock.slept == [seconds]


def test_a_date_to_come_back_at_is_understood():
    assert read_retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 70.0) == 30.0
    assert read_retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 100.0) is None
    assert read_retry_after("Thu, 99 Jan 1970", 0.0) is None
    assert read_retry_after(None, 0.0) is None


def test_pauses_are_spread_and_bounded():
    assert [back_off_seconds(1, None, jitter) for jitter in (0.0, 0.5, 0.9)] == [0.25, 0.5, pytest.approx(0.7)]
    assert back_off_seconds(10**6, None, 0.5) == 30.0


def test_an_endpoint_that_is_down_costs_one_attempt_a_reply_until_it_answers(server, ask):
    server.answer = lambda i, request: Raw(b"", 500)
    model, _ = ask(n=2, n_attempts=3)
    assert len(server.requests) == 6
    model.complete(PROMPT, SCHEMA, 2, 0)
    assert len(server.requests) == 8
    server.answer = lambda i, request: '{"a": 1}'
    model.complete(PROMPT, SCHEMA, 1, 0)
    server.answer = lambda i, request: Raw(b"", 500)
    model.complete(PROMPT, SCHEMA, 1, 0)
    assert len(server.requests) == 8 + 1 + 3


def test_requests_are_spaced(server, ask):
    clock = FakeClock()
    server.answer = lambda i, request: '{"a": 1}'
    ask(n=4, clock=clock, requests_per_minute=20)
    assert clock.slept == [3.0, 3.0, 3.0]


def reserved(max_reply_tokens):
    return estimate_tokens(PROMPT) + estimate_tokens(str(SCHEMA)) + max_reply_tokens


def test_once_the_cap_leaves_no_room_nothing_is_sent(server, ask):
    server.answer = lambda i, request: completion('{"a": 1}', usage=(90, 10))
    model, replies = ask(n=2, max_reply_tokens=10, max_total_tokens=200 + reserved(10))
    assert [reply.failure for reply in replies] == ["", ""]
    replies = model.complete(PROMPT, SCHEMA, 3, 0)
    assert [reply.text for reply in replies] == ['{"a": 1}', "", ""]
    assert replies[2] == Reply(
        "", None, 0, 0, f"not sent: max_total_tokens={200 + reserved(10)} leaves no room for it, 300 tokens are spent"
    )
    assert len(server.requests) == 3
    assert [bool(reply.failure) for reply in model.complete(PROMPT, SCHEMA, 2, 0)] == [True, True]
    assert len(server.requests) == 3


def test_what_was_spent_before_a_resume_counts(server, ask):
    server.answer = lambda i, request: '{"a": 1}'
    model, _ = ask(n=1, max_reply_tokens=10, max_total_tokens=500)
    model.recall([Reply("a", None, 300, 100), Reply("", None, 50, 0, "status 500")])
    assert "465 tokens are spent" in model.complete(PROMPT, SCHEMA, 1, 0)[0].failure


def test_attempts_that_may_have_been_worked_on_count_and_stop_at_the_cap(server, ask):
    server.answer = lambda i, request: Raw(b"x" * 400)
    _, replies = ask(n=1, n_attempts=9, max_reply_tokens=10, max_total_tokens=150 + reserved(10))
    assert len(server.requests) == 2
    assert replies[0].n_prompt_tokens == 2 * 6
    assert replies[0].n_reply_tokens == 2 * 100
    assert "no JSON; asked again it was not sent: max_total_tokens" in replies[0].failure


def test_without_a_cap_anything_is_sent():
    cap = TokenCap(0)
    assert cap.reserve(10**12)
    cap.settle(10**12, 10**12)
    assert cap.reserve(1)


def formats(server):
    return [request.get("response_format", {}).get("type") for request in server.requests]


def test_the_schema_is_sent_strictly_and_left_out_of_the_prompt(server, ask):
    server.answer = lambda i, request: '{"a": 1}'
    ask(n=1, temperature=0.25, max_reply_tokens=33, seed=2**31 + 5)
    schema = {"name": "reply", "strict": True, "schema": SCHEMA}
    assert server.requests == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": 33,
            "temperature": 0.25,
            "seed": 5,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
    ]


def refuse(name, status=400, words="unsupported parameter: {}"):
    def answer(i, request):
        return Raw({"error": {"message": words.format(name)}}, status) if name in request else '{"a": 1}'

    return answer


@pytest.mark.parametrize("words", ["unsupported parameter: {}", "json_schema is not available", "bad request"])
@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_schema_is_told_it_in_the_prompt_from_then_on(server, ask, caplog, status, words):
    server.answer = refuse("response_format", status, words)
    _, replies = ask(n=3)
    assert [reply.text for reply in replies] == ['{"a": 1}'] * 3
    assert formats(server) == ["json_schema", None, None, None]
    content = server.requests[-1]["messages"][0]["content"]
    assert content.startswith(PROMPT)
    assert content.endswith(json.dumps(SCHEMA))
    assert caplog.text.count("requests go without response_format from now on") == 1


def test_a_server_that_ignores_the_schema_is_told_it_in_the_prompt_from_then_on(server, ask, caplog):
    server.answer = lambda i, request: "Well, 7." if "response_format" in request else '{"a": 1}'
    assert [reply.text for reply in ask(n=3)[1]] == ["Well, 7.", '{"a": 1}', '{"a": 1}']
    assert formats(server) == ["json_schema", None, None]
    assert caplog.text.count("replies are no JSON all the same") == 1


def test_a_reply_that_is_cut_off_does_not_cost_the_schema(server, ask):
    server.answer = lambda i, request: completion('{"a":', finish="length")
    ask(n=2)
    assert formats(server) == ["json_schema", "json_schema"]


@pytest.mark.parametrize(("mode", "kind"), [(SchemaMode.JSON_OBJECT, "json_object"), (SchemaMode.NONE, None)])
def test_other_ways_to_tell_the_schema_end_the_prompt_in_it(server, ask, mode, kind):
    server.answer = lambda i, request: '{"a": 1}'
    ask(n=1, schema=mode)
    assert formats(server) == [kind]
    assert server.requests[0]["messages"][0]["content"].endswith(json.dumps(SCHEMA))


def test_a_schema_that_was_asked_for_by_name_is_never_given_up(server, ask):
    server.answer = refuse("response_format")
    _, replies = ask(n=2, schema=SchemaMode.JSON_SCHEMA)
    assert [reply.failure for reply in replies] == ["status 400: unsupported parameter: response_format"] * 2


@pytest.mark.parametrize("name", ["seed", "temperature"])
def test_parameters_that_a_server_refuses_are_left_out(server, ask, name):
    server.answer = refuse(name)
    assert [reply.failure for reply in ask(n=2)[1]] == ["", ""]
    assert [name in request for request in server.requests] == [True, False, False]
    assert formats(server) == ["json_schema"] * 3


def test_a_server_that_knows_only_the_new_name_of_the_limit_gets_that(server, ask):
    server.answer = refuse("max_tokens")
    ask(n=1, max_reply_tokens=33)
    assert server.requests[-1]["max_completion_tokens"] == 33
    assert "max_tokens" not in server.requests[-1]


def test_a_request_that_is_wrong_in_itself_costs_no_parameter(server, ask, caplog):
    server.answer = lambda i, request: Raw({"detail": "more tokens than the context holds; max_tokens is 9"}, 400)
    model, replies = ask(n=1)
    assert replies[0].failure == "status 400: more tokens than the context holds; max_tokens is 9"
    server.answer = lambda i, request: '{"a": 1}'
    server.requests.clear()
    model.complete(PROMPT, SCHEMA, 1, 0)
    assert formats(server) == ["json_schema"]
    assert "max_tokens" in server.requests[0]
    assert "go without" not in caplog.text


def test_options_are_returned_unscored_and_nothing_is_sent(server, ask):
    server.answer = lambda i, request: '{"a": 1}'
    model, _ = ask(n=1)
    n_before = len(server.headers)
    assert model.score("which?", ["x", "y"]) == [Reply("x", None, 0, 0), Reply("y", None, 0, 0)]
    assert len(server.headers) == n_before


NAMES = ["choices", "message", "content", "text", "usage", "prompt_tokens", "completion_tokens"]
NAMES += ["finish_reason", "error", "refusal"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=300)
@given(st.one_of(json_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)))
def test_any_answer_is_a_text_or_a_failure(body):
    answer = read_answer(body)
    assert isinstance(answer.text, str)
    assert isinstance(answer.failure, str)
    assert bool(answer.text) != bool(answer.failure)
    assert all(n is None or (type(n) is int and n >= 0) for n in (answer.n_prompt_tokens, answer.n_reply_tokens))
