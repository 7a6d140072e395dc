"""Starts servers together, each in its own process: stock vLLM's, and stacks of ours."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import pixtral_cli
from bench.stock_vllm import stock_server

START_SECONDS = 500.0

# The URL of an OpenAI server, and the name of its model.
Address = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Server:
    """A server to start.

    Attributes:
            run: a picklable context manager that runs the server, in the server's process.
            variables: environment variables to add to those of this process.
    """

    run: Callable[[], AbstractContextManager[Address]]
    variables: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def stock(
    model_dir: Path, extra_packages: Path | None, log: Path, arguments: Sequence[str]
) -> Iterator[Address]:
    """A server of stock vLLM; see `bench.stock_vllm` for its arguments."""
    with stock_server(model_dir, extra_packages, log, [*arguments]) as url:
        yield url, "stock"


@contextlib.contextmanager
def ours(
    model_dir: Path,
    log_dir: Path,
    *,
    redis_max_memory: str,
    workers: int,
    decoder_args: Sequence[str] = (),
    encoder_gpus: Sequence[str] = (),
    decoder_gpus: Sequence[str] = (),
    encoders: int = 1,
    decoders: int = 1,
) -> Iterator[Address]:
    """A stack whose gateway has `workers` processes."""
    with pixtral_cli.pixtral_stack(
        model_dir,
        http_listen="127.0.0.1:0",
        redis_max_memory=redis_max_memory,
        decoder_args=decoder_args,
        gateway_args=["--workers", str(workers)],
        encoders=encoders,
        decoders=decoders,
        encoder_gpus=encoder_gpus,
        decoder_gpus=decoder_gpus,
        log_dir=log_dir,
    ) as stack:
        yield f"http://{stack.http_target}", model_dir.resolve().name


@contextlib.contextmanager
def started(servers: Mapping[str, Server]) -> Iterator[dict[str, Address]]:
    """Starts all servers; yields their addresses. Raises RuntimeError if one does not start."""
    spawn = multiprocessing.get_context("spawn")
    held = {}
    try:
        for name, server in servers.items():
            here, there = spawn.Pipe()
            process = spawn.Process(target=_hold, args=(server.run, there))
            with patch.dict(os.environ, server.variables):
                process.start()
            there.close()
            held[name] = process, here
        yield {name: _address(name, here) for name, (_, here) in held.items()}
    finally:
        for _, here in held.values():
            with contextlib.suppress(OSError):
                here.send(None)
        for process, _ in held.values():
            process.join()


def _hold(run: Callable[[], AbstractContextManager[Address]], to: Connection) -> None:
    """Runs the server until a message arrives or the parent process is gone."""
    with run() as address:
        to.send(address)
        with contextlib.suppress(EOFError):
            to.recv()


def _address(name: str, here: Connection) -> Address:
    if not here.poll(START_SECONDS):
        raise RuntimeError(f"{name} is not ready after {START_SECONDS:g} s")
    try:
        found: Address = here.recv()
    except EOFError:
        raise RuntimeError(f"{name} ended before it was ready") from None
    return found
