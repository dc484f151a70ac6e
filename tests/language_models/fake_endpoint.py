"""A real HTTP server on this machine that speaks just as much of OpenAI's protocol as a test wants, or less."""

import json
import random
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from selfprune.language_models.endpoint.budget import Clock

KEY = "sk-planted-0123456789"


class FakeEndpoint:
    """What the server was asked, and how it answers.

    `answer(i, request)` gives the answer to the i-th completion: a text, a JSON value as a dictionary, or whatever `Raw` says.
    """

    def __init__(self):
        self.answer = lambda i, request: "{}"
        self.models = ["m"]
        self.requests, self.headers = [], []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.url = ""


class Raw:
    """An answer byte for byte; `ending` is done after the body."""

    def __init__(self, body=b"", status=200, headers=None, length=None, ending=lambda connection: None):
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.headers, self.ending = status, headers or {}, ending
        self.length = len(self.body) if length is None else length


def completion(text, finish="stop", usage=(10, 5)):
    """The JSON of a chat completion with one choice."""
    content = {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]}
    return content | ({"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {})


class FakeClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.seconds, self.slept, self.seconds_per_look = 0.0, [], 0.0
        self.clock = Clock(self.now, self.sleep, lambda: 0.5)

    def now(self):
        self.seconds += self.seconds_per_look
        return self.seconds

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.seconds += seconds


@contextmanager
def serving():
    """A fake endpoint that listens on a free port until the block ends."""
    endpoint = FakeEndpoint()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            endpoint.headers.append(dict(self.headers))
            listed = endpoint.models
            if not isinstance(listed, Raw):
                listed = Raw({"object": "list", "data": [{"id": name, "object": "model"} for name in listed]})
            self._send(listed)

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with endpoint.lock:
                i = len(endpoint.requests)
                endpoint.requests.append(request)
                endpoint.headers.append(dict(self.headers))
            answer = endpoint.answer(i, request)
            if isinstance(answer, str):
                answer = completion(answer)
            self._send(answer if isinstance(answer, Raw) else Raw(answer))

        def _send(self, raw):
            try:
                self.send_response(raw.status)
                for name, value in {"content-type": "application/json", "content-length": raw.length, **raw.headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(raw.body)
                self.wfile.flush()
                raw.ending(self.connection)
            except OSError:
                pass  # the client has had enough
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        endpoint.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def instance(schema, seed):
    """Some value that meets a JSON schema, of those that the proposers ask with."""
    rng = random.Random(seed)

    def draw(node):
        if "enum" in node:
            return rng.choice(node["enum"])
        if "const" in node:
            return node["const"]
        if node["type"] == "object":
            return {name: draw(value) for name, value in node["properties"].items()}
        if node["type"] == "array":
            n = rng.randint(node.get("minItems", 0), node.get("maxItems", node.get("minItems", 0) + 2))
            return [draw(node["items"]) for _ in range(n)]
        if node["type"] in ("integer", "number"):
            return rng.randint(int(node.get("minimum", 0)), int(node.get("maximum", 99)))
        return "text"

    return json.dumps(draw(schema))
