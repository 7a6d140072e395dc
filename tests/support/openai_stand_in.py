"""A server of OpenAI's chat API that answers as its test asks, in this process on a free port."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class StandIn:
    """The server's behaviour, and what it has received.

    Attributes:
        answer: makes the text of a completion from a request's body.
        models: names of its models.
        failures: status and headers that the next requests end with, one each.
        finish_reason: finish reason of all answers.
        requests: bodies of the requests so far.
        keys: the `Authorization` header of each request.
        lock: guards the lists.
    """

    answer: Callable[[Body], str]
    models: list[str] = field(default_factory=lambda: ["stand-in"])
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    finish_reason: str = "stop"
    requests: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: Body, key: str | None) -> tuple[int, dict[str, str], Body]:
        with self.lock:
            self.requests.append(body)
            self.keys.append(key)
            if self.failures:
                status, headers = self.failures.pop(0)
                return status, headers, {"error": {"message": f"refused with {status}"}}
        message = {"role": "assistant", "content": self.answer(body)}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        return 200, {}, {"choices": [choice]}


def text_of(body: Body) -> str:
    """The texts of a request's last message."""
    content = body["messages"][-1]["content"]
    return "\n".join(part["text"] for part in content if part["type"] == "text")


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """Runs the server; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = [{"id": name} for name in stand_in.models]
            self._send(200, {}, {"data": models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*stand_in.reply(body, self.headers["Authorization"]))

        def log_message(self, *args: Any) -> None:
            pass

        def _send(self, status: int, headers: dict[str, str], body: Body) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
