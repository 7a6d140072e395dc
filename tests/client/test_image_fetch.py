"""URLs are fetched over http and https only, within their limits."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pixtral_client.image_fetch import fetch
from pixtral_client.messages import to_protos

RELEASED = threading.Event()
PICTURE = b"\x89PNG" + bytes(100_000)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        match self.path:
            case "/cat.png":
                self._answer(200, PICTURE)
            case "/moved":
                self._answer(302, b"", ("Location", "/cat.png"))
            case "/to-a-file":
                self._answer(302, b"", ("Location", "file:///etc/hostname"))
            case "/to-ftp":
                self._answer(302, b"", ("Location", "ftp://127.0.0.1/cat.png"))
            case "/cut-short":
                self._answer(200, PICTURE[:50_000], ("Content-Length", str(len(PICTURE))))
            case "/stuck":
                RELEASED.wait()
            case _:
                self._answer(404, b"no")

    def _answer(self, code: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    RELEASED.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/cat.png", "/moved"])
def test_fetches(site: str, path: str) -> None:
    assert fetch(site + path) == PICTURE


def test_url_in_a_message(site: str) -> None:
    part = {"type": "image_url", "image_url": {"url": f"{site}/cat.png"}}
    (message,) = to_protos([{"role": "user", "content": [part]}])
    assert message.content[0].image.data == PICTURE


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/none", "HTTP 404"),
        ("/to-a-file", "HTTP 302"),
        ("/to-ftp", "unknown url type: ftp"),
        ("/cut-short", "closed early"),
    ],
)
def test_failures_name_their_place(site: str, path: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"messages\[0\].content\[0\].image_url: .*{said}"):
        to_protos([{"role": "user", "content": [{"image_url": site + path}]}])


def test_size_limit(site: str) -> None:
    assert fetch(f"{site}/cat.png", max_bytes=len(PICTURE)) == PICTURE
    with pytest.raises(ValueError, match="longer than"):
        fetch(f"{site}/cat.png", max_bytes=len(PICTURE) - 1)


def test_time_limit(site: str) -> None:
    with pytest.raises(OSError, match="timed out"):
        fetch(f"{site}/stuck", timeout=0.2)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/etc/hostname"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be http or https"):
        fetch(url)
