"""Servers that answer: any of OpenAI's API over HTTP, and the gateway over gRPC.

Both answer many conversations at once, greedily, and wait as a refusal says before they ask again.
"""

import base64
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from bench.evals.questions import Message
from pixtral_client import Client, PixtralError

Conversation = tuple[Message, ...]

TIMEOUT: Final = 600.0
LONGEST_WAIT: Final = 8.0
TEMPORARY: Final = {408, 409, 425, 429, 500, 502, 503, 504}
# A server that is down shall not keep every question for the whole timeout.
MOST_FAILURES: Final = 6

_MEDIA_TYPES: Final = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or the `error` in place of it."""

    text: str = ""
    finish_reason: str = ""
    error: str = ""


class Server(Protocol):
    """Answers conversations; `model` is the name by which it is asked."""

    @property
    def model(self) -> str: ...

    def ask(
        self, conversations: Iterable[Conversation], max_tokens: int, concurrency: int
    ) -> Generator[tuple[int, Reply], None, None]:
        """Yields the place of each conversation, and its reply, as they come."""
        ...


class NoServer(Exception):
    """The server does not answer, or does not serve the model."""


def open_server(
    url: str, model: str = "", api_key: str = "", timeout: float = TIMEOUT
) -> AbstractContextManager[Server]:
    """A server by its URL: `http(s)://HOST:PORT`, with `/v1` or without, or `grpc://HOST:PORT`.

    Args:
        model: the model's name; the server's first if empty.
        timeout: seconds for a question with all tries.

    Raises:
        NoServer: the server does not say which models it has, or the URL is of another kind.
    """
    parsed = urlsplit(url)
    if parsed.scheme == "grpc" and parsed.netloc:
        return _over_grpc(parsed.netloc, model, api_key, timeout)
    if parsed.scheme in ("http", "https") and parsed.netloc:
        return _over_http(url, model, api_key, timeout)
    raise NoServer(f"{url} is no URL of a server: give http://HOST:PORT or grpc://HOST:PORT")


class HttpServer:
    """A server of OpenAI's API."""

    def __init__(self, url: str, model: str, api_key: str = "", timeout: float = TIMEOUT) -> None:
        self.base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._timeout = timeout
        self._stopped = threading.Event()
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        is_here = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        proxies = [urllib.request.ProxyHandler({})] if is_here else []
        self._opener = urllib.request.build_opener(*proxies)
        self.model = model or self._first_model()

    def ask(
        self, conversations: Iterable[Conversation], max_tokens: int, concurrency: int
    ) -> Generator[tuple[int, Reply], None, None]:
        waiting = enumerate(conversations)
        running: dict[Future[Reply], int] = {}
        pool = ThreadPoolExecutor(concurrency)
        try:
            while True:
                for place, each in islice(waiting, 2 * concurrency - len(running)):
                    running[pool.submit(self.reply, each, max_tokens)] = place
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def reply(self, messages: Conversation, max_tokens: int) -> Reply:
        """Asks once more after each temporary failure, as long as the timeout allows."""
        body = {
            "model": self.model,
            "messages": [_for_http(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        request = json.dumps(body).encode()
        end = time.monotonic() + self._timeout
        failures = 0
        while True:
            wanted: float | None = None
            try:
                answer = self._open("/chat/completions", request, end - time.monotonic())
                return _reply_of(answer)
            except urllib.error.HTTPError as error:
                reason = f"{error.code}: {_message_of(error)}"
                if error.code not in TEMPORARY:
                    return Reply(error=reason)
                wanted = _seconds(error.headers.get("Retry-After"))
                # A refusal for overload says that the server lives.
                failures += error.code != 429
            except (
                OSError,
                http.client.HTTPException,
                ValueError,
                LookupError,
                TypeError,
            ) as error:
                reason = f"{type(error).__name__}: {error}"
                failures += 1
            pause = wanted if wanted is not None else min(LONGEST_WAIT, 0.5 * 2**failures)
            pause *= random.uniform(1.0, 1.25)
            is_late = time.monotonic() + pause >= end
            if failures >= MOST_FAILURES or is_late or self._stopped.wait(pause):
                return Reply(error=reason)

    def close(self) -> None:
        """Ends the waits between tries."""
        self._stopped.set()

    def _first_model(self) -> str:
        try:
            return str(self._open("/models", None, 30.0)["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise NoServer(f"{self.base}/models does not name a model: {error}") from error

    def _open(self, path: str, body: bytes | None, timeout: float) -> Any:
        request = urllib.request.Request(self.base + path, body, self._headers)
        with self._opener.open(request, timeout=max(1.0, timeout)) as response:
            return json.load(response)


class GrpcServer:
    """The gateway, by the Python client."""

    def __init__(self, client: Client, model: str, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        try:
            self.model = model or client.models()[0].name
        except (PixtralError, LookupError) as error:
            raise NoServer(f"the gateway does not name a model: {error}") from error

    def ask(
        self, conversations: Iterable[Conversation], max_tokens: int, concurrency: int
    ) -> Generator[tuple[int, Reply], None, None]:
        outcomes = self._client.map(
            map(list, conversations),
            concurrency=concurrency,
            model=self.model,
            timeout=self._timeout,
            max_tokens=max_tokens,
            temperature=0.0,
        )
        try:
            for outcome in outcomes:
                answer = outcome.completion
                if answer is None:
                    yield outcome.index, Reply(error=str(outcome.error))
                else:
                    yield outcome.index, Reply(answer.text, answer.finish_reason or "")
        finally:
            outcomes.close()


@contextmanager
def _over_grpc(
    target: str, model: str, api_key: str, timeout: float
) -> Generator[Server, None, None]:
    with Client(target, api_key=api_key or None, timeout=timeout) as client:
        yield GrpcServer(client, model, timeout)


@contextmanager
def _over_http(url: str, model: str, api_key: str, timeout: float) -> Generator[Server, None, None]:
    server = HttpServer(url, model, api_key, timeout)
    try:
        yield server
    finally:
        server.close()


def _for_http(message: Message) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": [_part_for_http(part) for part in content]}


def _part_for_http(part: Message) -> Message:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": _data_url(part["image"])}}


def _data_url(path: Path) -> str:
    data = path.read_bytes()
    kinds = (kind for mark, kind in _MEDIA_TYPES.items() if data.startswith(mark))
    return f"data:{next(kinds, 'image/webp')};base64,{base64.b64encode(data).decode()}"


def _reply_of(answer: Any) -> Reply:
    choice = answer["choices"][0]
    return Reply(choice["message"]["content"] or "", choice.get("finish_reason") or "")


def _message_of(error: urllib.error.HTTPError) -> str:
    with error:
        text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text[:200] or error.reason


def _seconds(value: str | None) -> float | None:
    try:
        return float(value) if value is not None else None
    except ValueError:
        return None
