"""Fetches an image by URL, with limits on time and size."""

import time
import urllib.request
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 30.0
MAX_BYTES = 48 * 2**20
_PIECE = 64 * 2**10


def fetch(url: str, *, timeout: float = TIMEOUT_SECONDS, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads the file at `url`. The URL and its redirects must be http or https.

    Raises:
        OSError: the file did not arrive within `timeout` seconds.
        ValueError: the file is longer than `max_bytes`, or the URL has another scheme.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("the URL must be http or https")
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"User-Agent": "pixtral-client"})  # noqa: S310
    try:
        with _opener().open(request, timeout=timeout) as response:
            return _read(response, deadline, max_bytes)
    except HTTPError as error:
        with error:
            raise OSError(f"HTTP {error.code}") from None
    except URLError as error:
        raise OSError(getattr(error.reason, "strerror", None) or str(error.reason)) from None
    except HTTPException as error:
        raise OSError(f"invalid HTTP ({type(error).__name__})") from None


def _opener() -> urllib.request.OpenerDirector:
    # The default opener also opens file: and ftp:, to which a redirect could lead.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _read(response: HTTPResponse, deadline: float, max_bytes: int) -> bytes:
    pieces, length = [], 0
    while piece := response.read1(_PIECE):
        length += len(piece)
        if length > max_bytes:
            raise ValueError(f"longer than {max_bytes} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
        pieces.append(piece)
    if response.length:
        raise OSError("the connection closed early")
    return b"".join(pieces)
