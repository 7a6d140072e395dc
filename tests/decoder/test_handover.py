"""Embeddings in memory that two processes have; `test_engine.py` has a whole engine get them."""

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from services.decoder import handover
from services.decoder.handover import ADDRESS, LEAST_BYTES, Handover, Receiver
from tests.decoder.memory import SECONDS, files, until


class Encoder:
    """Of vLLM's encoder of messages what is touched."""

    oob_tensor_consumer: Any = None


def receive(address: str, pipe: Connection) -> None:
    """An engine's process: answers with what it was handed, and then with what it still holds."""
    receiver = Receiver(address)
    pipe.send(None)
    while (given := pipe.recv()) is not None:
        tensor = receiver(*given)
        pipe.send(tensor.clone())
        del tensor
        pipe.send(files())


class Pair:
    """A decoder's side, and an engine's in a process of its own."""

    def __init__(self) -> None:
        self.handover, self.encoder = Handover(), Encoder()
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        with self.handover.listening() as connect:
            self.process = context.Process(target=receive, args=(os.environ[ADDRESS], theirs))
            self.process.start()
            assert self.pipe.poll(SECONDS)
            self.pipe.recv()
            connect(self.encoder)

    def arrives(self, tensor: torch.Tensor, given: dict[str, int]) -> torch.Tensor:
        self.pipe.send((str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), given))
        assert self.pipe.poll(SECONDS)
        arrived: torch.Tensor = self.pipe.recv()
        assert self.pipe.poll(SECONDS)
        assert self.pipe.recv() == []
        return arrived

    def end(self) -> None:
        self.pipe.send(None)
        self.process.join(SECONDS)
        self.handover.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = await asyncio.to_thread(Pair)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.end)
    assert made.process.exitcode == 0
    await until(0)


def embedding(seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(600, 1024, generator=generator).to(dtype)


async def test_tensors_arrive_as_they_are_and_leave_nothing(pair: Pair) -> None:
    for seed, dtype in enumerate([torch.bfloat16, torch.float32, torch.bfloat16]):
        tensor = embedding(seed, dtype)
        with await pair.handover.offer([None, tensor]):
            given = pair.encoder.oob_tensor_consumer(tensor)
        assert torch.equal(await asyncio.to_thread(pair.arrives, tensor, given), tensor)


async def test_one_offered_to_two_requests_is_sent_to_each_that_asks(pair: Pair) -> None:
    tensor = embedding(7)
    first = await pair.handover.offer([tensor])
    second = await pair.handover.offer([tensor])
    given = pair.handover(tensor)
    first.close()
    again = pair.handover(tensor)
    assert given is not None
    assert again is not None
    assert pair.handover(tensor) is None
    second.close()
    for each in (given, again):
        assert torch.equal(await asyncio.to_thread(pair.arrives, tensor, each), tensor)


async def test_one_whose_message_was_never_sent_is_passed_over(pair: Pair) -> None:
    lost, tensor = embedding(1), embedding(2)
    with await pair.handover.offer([lost, tensor]):
        pair.handover(lost)
        given = pair.handover(tensor)
    assert given is not None
    assert torch.equal(await asyncio.to_thread(pair.arrives, tensor, given), tensor)


async def test_what_is_not_asked_for_is_gone(pair: Pair) -> None:
    tensor = embedding(3)
    with await pair.handover.offer([tensor]):
        pass
    assert pair.handover(tensor) is None


async def test_small_ones_are_for_vllm_to_send(pair: Pair) -> None:
    small = torch.zeros(LEAST_BYTES // 2 - 1, dtype=torch.bfloat16)
    with await pair.handover.offer([small]):
        assert pair.handover(small) is None


async def test_an_engine_that_does_not_read_is_not_waited_for(pair: Pair) -> None:
    """As many as the kernel holds for it are sent, and vLLM sends the rest."""
    tensor = torch.zeros(LEAST_BYTES, dtype=torch.uint8)
    sent = []
    for _ in range(2000):
        with await pair.handover.offer([tensor]):
            given = pair.handover(tensor)
        if given is None:
            break
        sent.append(given)
    assert given is None
    assert len(sent) > 8
    assert torch.equal(await asyncio.to_thread(pair.arrives, tensor, sent[-1]), tensor)


async def test_without_an_engine_vllm_sends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "SECONDS", 0.1)
    alone, encoder, tensor = Handover(), Encoder(), embedding(5)
    with alone.listening() as connect:
        directory = Path(os.environ[ADDRESS]).parent
        await asyncio.to_thread(connect, encoder)
    assert encoder.oob_tensor_consumer is None
    with await alone.offer([tensor]):
        assert alone(tensor) is None
    assert ADDRESS not in os.environ
    assert not directory.exists()
