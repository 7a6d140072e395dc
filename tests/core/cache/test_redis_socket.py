"""redis-py's connections, as far as their sockets are read; `test_bulk_reader.py` reads values."""

import inspect

import pytest
from redis import connection

from pixtral_core.cache import redis_socket
from pixtral_core.cache.bulk_reader import ValueReader
from pixtral_core.hooks import HookBroken
from tests.support.upstream import assert_still_there


def test_still_there() -> None:
    assert_still_there(redis_socket)


def test_still_needed_while_a_reply_cannot_be_written_into_memory_of_ones_own() -> None:
    """Once this fails, see whether redis-py's own way will do: `redis_socket` can go then."""
    taken = {
        name
        for method in ("read_response", "send_command")
        for name in inspect.signature(getattr(connection.AbstractConnection, method)).parameters
    }
    assert not {name for name in taken if "buffer" in name or "into" in name or "memory" in name}


def test_a_redis_py_that_has_moved_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(connection.AbstractConnection, "send_packed_command")
    monkeypatch.delattr(connection.ConnectionInterface, "send_packed_command")
    with pytest.raises(HookBroken, match=r"install one of redis 6\.2 to 8\.1"):
        ValueReader.from_url("redis://127.0.0.1:1", max_connections=1)
