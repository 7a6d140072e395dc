"""Servers in processes of their own: environments, ends, and one that does not start."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from bench.servers import Address, Server, started

VARIABLE = "CUDA_VISIBLE_DEVICES"


@contextlib.contextmanager
def fake(ended: Path) -> Iterator[Address]:
    """A server whose URL is its environment's and whose model is its process."""
    yield os.environ.get(VARIABLE, ""), str(os.getpid())
    ended.touch()


@contextlib.contextmanager
def broken() -> Iterator[Address]:
    if Path("/").exists():
        raise SystemExit(1)
    yield "", ""


def test_each_has_its_environment_and_ends_in_order(tmp_path: Path) -> None:
    ends = [tmp_path / name for name in ("one", "two")]
    servers = {
        end.name: Server(partial(fake, end), {VARIABLE: str(number)})
        for number, end in enumerate(ends)
    }
    with started(servers) as addresses:
        assert {name: url for name, (url, _) in addresses.items()} == {"one": "0", "two": "1"}
        assert not any(end.exists() for end in ends)
    assert all(end.exists() for end in ends)
    assert not any(psutil.pid_exists(int(pid)) for _, pid in addresses.values())


def test_where_one_does_not_start_the_others_are_ended(tmp_path: Path) -> None:
    end = tmp_path / "one"
    servers = {"one": Server(partial(fake, end)), "two": Server(broken)}
    with pytest.raises(RuntimeError, match="two ended"), started(servers):
        pytest.fail("the block ran")
    assert end.exists()
