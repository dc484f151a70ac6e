import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fake_endpoint import KEY, FakeClock, Raw, instance, serving
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

import selfprune.embedded
from selfprune.allocations.archive import read_archive
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import RunConfig, register_schemas, to_config
from selfprune.errors import ConfigError, LanguageModelError
from selfprune.language_models.openai_compatible import OpenAICompatible
from selfprune.runs.composed_run import run_composed
from selfprune.runs.run_preflight import preflight

EMBEDDED = Path(selfprune.embedded.__file__).parent / "weights"
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with serving() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def transformers_server(tmp_path_factory):
    """The address of `transformers serve`, in a process of its own, and the folder of the embedded model that it serves."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        pytest.skip("`transformers serve` needs fastapi and uvicorn: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("served") / "embedded"
    shutil.copytree(EMBEDDED, folder)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # Port 0 is any free one, which the server then tells.
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu", "--port", "0"]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail(f"the server ended: {''.join(said)}")
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield f"{found[1]}/v1", folder
        finally:
            process.terminate()


def test_a_real_server_gives_the_replies_of_the_model_behind_it(transformers_server, caplog):
    url, folder = transformers_server
    settings = OpenAICompatible(base_url=url, model=str(folder), max_reply_tokens=12, n_concurrent=2)
    language_model = settings.open("", FakeClock().clock)
    tokenizer, model = AutoTokenizer.from_pretrained(EMBEDDED), AutoModelForCausalLM.from_pretrained(EMBEDDED)
    prompt = "The favourite colour of"
    replies = language_model.complete(prompt, DIGIT, n=3, seed=5)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert [reply.failure for reply in replies] == [""] * 3
    assert [reply.text for reply in replies] == [tokenizer.decode(expected, skip_special_tokens=True)] * 3
    assert [(reply.n_prompt_tokens, reply.n_reply_tokens) for reply in replies] == [(ids.shape[1], 12)] * 3


def test_a_real_server_that_serves_another_model_is_told(transformers_server):
    url, folder = transformers_server
    with pytest.raises(LanguageModelError, match=f"must name a model that {url} serves, got 'other'.*pinned to '{folder}'"):
        OpenAICompatible(base_url=url, model="other").open("", FakeClock().clock)


def opened(server, key="", **options):
    return OpenAICompatible(base_url=server.url, **options).open(key, FakeClock().clock)


def test_the_only_model_need_not_be_named_and_ollamas_default_tag_is_understood(server):
    server.models = ["qwen:latest"]
    assert opened(server).name == f"qwen:latest at {server.url}"
    assert opened(server, model="qwen").name == f"qwen at {server.url}"
    assert server.requests == []


def test_an_unknown_model_is_told_with_the_known_ones(server):
    server.models = ["zeta", "qwen2.5-7b", "llama-8b"]
    server.answer = lambda i, request: Raw({"error": {"message": "no such model"}}, 404)
    with pytest.raises(LanguageModelError, match=r"got 'qwen2-7b' \(status 404: no such model\); it serves 3, .*: qwen2.5-7b, "):
        opened(server, model="qwen2-7b")
    with pytest.raises(LanguageModelError, match=r"got '' \(no model is named\); it serves 3"):
        opened(server)
    server.models = []
    with pytest.raises(LanguageModelError, match="it does not list what it serves"):
        opened(server)


def test_a_model_that_is_served_without_being_listed_is_taken(server):
    server.models = ["other"]
    server.answer = lambda i, request: "x"
    assert opened(server, model="mine").name.startswith("mine at")
    assert [request["max_tokens"] for request in server.requests] == [1]


@pytest.mark.parametrize("status", [404, 405, 429, 500, 501])
def test_an_endpoint_that_lists_no_models_is_taken_at_its_word(server, status, caplog):
    server.models = Raw(b"", status)
    server.answer = lambda i, request: "7"
    assert [reply.text for reply in opened(server, model="m").complete("a", DIGIT, n=1, seed=0)] == ["7"]
    assert f"does not list its models (status {status})" in caplog.text


@pytest.mark.parametrize("listed", [b"[]", b"null", b'{"data": 3}', b"<html>", b"[" * 9999])
def test_a_list_that_cannot_be_understood_is_left_aside(server, listed):
    server.models = Raw(listed)
    assert opened(server, model="m").name.startswith("m at")


@pytest.mark.parametrize(("key", "given"), [("", "a request without a key"), (KEY, "the key in SOME_KEY")])
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_turned_away_is_told_without_the_key(server, status, key, given):
    server.models = Raw({"error": {"message": f"bad key {KEY}"}}, status)
    with pytest.raises(LanguageModelError, match=f"turns away {given}") as caught:
        opened(server, key, key_variable="SOME_KEY")
    if key:
        assert KEY not in str(caught.getrepr(chain=True))
        assert caught.value.__context__.__context__ is None


def test_an_endpoint_that_is_not_there_is_told():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(LanguageModelError, match=f"{url} cannot .*refused.*start the server"):
            OpenAICompatible(base_url=url).open("", FakeClock().clock)


def test_the_key_comes_from_the_variable_that_the_config_names_and_no_other(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MY_KEY", "another-key\n")
    for variable, header in (("OPENAI_API_KEY", f"Bearer {KEY}"), ("MY_KEY", "Bearer another-key"), ("UNSET", None), ("", None)):
        OpenAICompatible(base_url=server.url, key_variable=variable).build(None, None)
        assert server.headers[-1].get("authorization") == header


def test_a_key_that_no_header_can_hold_is_told_without_the_key(server):
    for key in ("two words", "schlüssel", "a\nb"):
        with pytest.raises(LanguageModelError, match="must hold the key") as caught:
            opened(server, key)
        assert key not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "localhost:8000"}, {"base_url": "ftp://a/v1"}, {"base_url": f"http://u:{KEY}@a/v1"}, {"base_url": ""},
        {"base_url": f"http://a/v1?key={KEY}"}, {"base_url": "http://[/v1"}, {"key_variable": KEY}, {"temperature": -1.0},
        {"temperature": float("nan")}, {"max_reply_tokens": 0}, {"timeout_seconds": 0.0}, {"n_attempts": 0}, {"n_concurrent": 0},
        {"requests_per_minute": -1.0}, {"max_total_tokens": -1},
    ],
)  # fmt: skip
def test_settings_out_of_range_fail_and_what_might_be_a_key_is_not_repeated(options):
    with pytest.raises(ConfigError, match=f"language_model.{next(iter(options))} must") as caught:
        OpenAICompatible(**options)
    assert KEY not in str(caught.value)


def run_here(folder, model_folder, *overrides):
    """The smoke experiment on a tiny model, with the language model as the only proposer."""
    register_schemas()
    tiny = ["model=local", f"model.path={model_folder}", "model.device=cpu", "data.n_tokens_per_window=32", "harness=none"]
    small = ["data.n_calibration=4", "search.max_tokens=3_000", "proposer=self_pruner", "~controls.random"]
    chosen = ["+experiment=smoke", *tiny, *small, *overrides, f"run_folder={folder}"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return run_composed(compose("config", overrides=chosen), chosen, None)


def written(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_writes_the_key_nowhere_survives_errors_and_can_be_repeated_without_the_endpoint(
    server, tiny_model_folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("PLANTED_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def answer(i, request):
        said = {"error": {"message": f"is {server.headers[-1]['authorization']} yours?"}}
        schema = request["response_format"]["json_schema"]["schema"]
        return [instance(schema, i), Raw(said, 400), instance(schema, i), KEY, Raw(said, 500)][i % 5]

    server.answer = answer
    endpoint = ["language_model=openai_compatible", f"language_model.base_url={server.url}", "language_model.n_concurrent=1"]
    more = ["language_model.key_variable=PLANTED_KEY", "language_model.n_attempts=1", "language_model.schema=JSON_SCHEMA"]
    first = run_here(tmp_path / "first", tiny_model_folder("llama"), *endpoint, *more)
    assert f"Bearer {KEY}" in {headers.get("authorization") for headers in server.headers}
    files = written(first)
    expected = {"archive.jsonl", "language_model_calls.jsonl", "environment.json", "config.yaml", "report.md"}
    assert expected <= {path.name for path in files}
    for path, content in files.items():
        assert KEY.encode() not in content, path
    assert KEY not in caplog.text
    calls = (first / "language_model_calls.jsonl").read_text()
    assert "is Bearer [key] yours?" in calls
    asked = [c for c in read_archive(first / "archive.jsonl") if c.proposal.proposer == "self_pruner"]
    assert {c.proposal.allocation is None for c in asked} == {True, False}
    n_asked = len(server.headers)
    script = ["language_model=scripted", f"language_model.path={first / 'language_model_calls.jsonl'}"]
    second = run_here(tmp_path / "second", tiny_model_folder("llama"), *script)
    assert (second / "archive.jsonl").read_bytes() == (first / "archive.jsonl").read_bytes()
    assert len(server.headers) == n_asked
    replies = [json.loads(line)["replies"] for line in calls.splitlines()]
    assert [json.loads(line)["replies"] for line in (second / "language_model_calls.jsonl").read_text().splitlines()] == replies


def test_a_search_whose_endpoint_only_fails_goes_on_to_its_report(server, tiny_model_folder, tmp_path):
    server.answer = lambda i, request: Raw(b"", 500)
    options = [f"language_model.base_url={server.url}", "language_model.n_attempts=1"]
    folder = run_here(tmp_path / "run", tiny_model_folder("llama"), "language_model=openai_compatible", *options)
    asked = [c for c in read_archive(folder / "archive.jsonl") if c.proposal.proposer == "self_pruner"]
    assert asked
    assert all("status 500" in c.reason or "status 500" in c.proposal.failure for c in asked)
    assert (folder / "report.md").exists()


def test_an_endpoint_is_looked_for_only_by_new_runs_that_ask_it(tmp_path):
    register_schemas()

    def look(*overrides):
        chosen = ["language_model=openai_compatible", "language_model.base_url=http://localhost:1/v1", *overrides]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            preflight(to_config(compose("config", overrides=chosen), RunConfig), tmp_path)

    with pytest.raises(LanguageModelError, match="can be reached"):
        look("proposer=self_pruner")
    with pytest.raises(LanguageModelError, match="can be reached"):
        look("proposer=random", "+proposer@controls.paper=self_pruner_paper")
    look("proposer=random")
    (tmp_path / "language_model_calls.jsonl").touch()
    look("proposer=self_pruner")
