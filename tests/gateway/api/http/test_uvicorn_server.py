"""uvicorn on a loop of ours; `test_serving.py` serves and drains by it."""

import signal

import uvicorn

from pixtral_gateway.api.http import uvicorn_server
from tests.support.upstream import assert_still_there


def test_still_there() -> None:
    assert_still_there(uvicorn_server)


def test_still_needed_while_uvicorn_takes_the_processs_signals() -> None:
    """Once this fails, `uvicorn.Server.serve` may do: `uvicorn_server` can go then."""
    assert "capture_signals" in uvicorn.Server.serve.__code__.co_names
    before = signal.getsignal(signal.SIGTERM)
    server = uvicorn.Server(uvicorn.Config("app"))
    with server.capture_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
