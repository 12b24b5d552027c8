"""A server with OpenAI's chat API on this machine: it answers as a test says and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeServer:
    """What was asked, and how it is answered."""

    answer: Callable[[dict[str, Any], int], tuple[int, dict[str, Any]]]
    """(body of the request, how many came before) -> (HTTP status, body of the answer)."""
    base_url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    broken: list[Exception] = field(default_factory=list)
    """What `answer` raised: the test's own mistake, which `serve` raises when it ends."""


def reply(text: str | None, finish: str = "stop", tokens: int = 0) -> tuple[int, dict[str, Any]]:
    """A good answer, which says what it cost where it cost something."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    usage = {"usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}} if tokens else {}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, **usage}


def refusal(status: int, message: str) -> tuple[int, dict[str, Any]]:
    """An error as these servers word it."""
    return status, {"error": {"message": message, "type": "invalid_request_error", "code": status}}


@contextmanager
def serve(answer: Callable[[dict[str, Any], int], tuple[int, dict[str, Any]]]) -> Iterator[FakeServer]:
    """Serve until the block ends, and raise then what `answer` raised."""
    fake, lock = FakeServer(answer), threading.Lock()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # http.server's name
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(fake.asked)
                fake.asked.append({**body, "path": self.path})
                fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                busy += 1
                fake.most_at_once = max(fake.most_at_once, busy)
            try:
                status, answer = fake.answer(body, number)
            except Exception as error:
                fake.broken.append(error)
                status, answer = refusal(400, f"the fake server's rule raised {error!r}")  # a 400 is not tried again
            content = json.dumps(answer).encode()
            with lock:
                busy -= 1
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After-Ms", "1")  # the client would pause for half a second
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    if fake.broken:
        raise fake.broken[0]
