"""The end of an engine; `test_engine.py` ends a whole one."""

import asyncio
import warnings
from typing import Any

import pytest

from pixtral_decoder.vllm_hooks import engine_shutdown
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.v1.engine import async_llm
    from vllm.v1.engine.async_llm import AsyncLLM


class Core:
    """Stands for the engine's process: notes whether the reader of its output is still there."""

    def __init__(self, reader: "asyncio.Task[None]") -> None:
        self._reader = reader
        self.was_read: bool | None = None

    def shutdown(self, timeout: float | None = None) -> None:
        self.was_read = not self._reader.cancelling()


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The part of vLLM's frontend that its end needs."""
    # It takes vLLM's metrics off the process's page.
    monkeypatch.setattr(async_llm, "shutdown_prometheus", lambda: None)
    llm: Any = object.__new__(type("Frontend", (AsyncLLM,), {"__del__": lambda _: None}))
    llm.renderer = None
    return llm


def test_still_there() -> None:
    assert_still_there(engine_shutdown)


async def test_still_needed_while_vllm_ends_the_engine_under_its_reader(llm: Any) -> None:
    """Once this fails, `pixtral_decoder.vllm_hooks.engine_shutdown` can go."""
    llm.output_handler = asyncio.create_task(asyncio.sleep(3600))
    llm.engine_core = Core(llm.output_handler)
    llm.shutdown()
    assert llm.engine_core.was_read


async def test_the_reader_ends_before_the_engine(llm: Any) -> None:
    llm.output_handler = asyncio.create_task(asyncio.sleep(3600))
    llm.engine_core = Core(llm.output_handler)
    await engine_shutdown.shut_down(llm)
    assert llm.engine_core.was_read is False
    assert llm.output_handler.cancelled()


async def test_an_engine_that_was_never_asked_ends(llm: Any) -> None:
    llm.output_handler = None
    llm.engine_core = Core(asyncio.create_task(asyncio.sleep(0)))
    await engine_shutdown.shut_down(llm)
    assert llm.engine_core.was_read is not None
