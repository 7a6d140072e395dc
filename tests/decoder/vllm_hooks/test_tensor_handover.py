"""Embeddings in memory that two processes have; `test_engine.py` has a whole engine get them."""

import asyncio
import multiprocessing
import os
import queue
import warnings
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.vllm_hooks import tensor_handover
from pixtral_decoder.vllm_hooks.tensor_handover import ADDRESS, Handover, Receiver
from tests.decoder.memory import SECONDS, files, in_a_file, until
from tests.support.upstream import assert_still_there


class Encoder:
    """The part of vLLM's encoder of messages that the hook touches."""

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


def embedding(seed: int, dtype: torch.dtype = torch.bfloat16) -> ImageEmbedding:
    generator = torch.Generator().manual_seed(seed)
    return in_a_file(torch.randn(600, 1024, generator=generator).to(dtype))


@pytest.fixture
def serial_utils() -> Any:
    """vLLM's, which the engine's process of these tests does without."""
    with warnings.catch_warnings():
        # vLLM's own, at import.
        warnings.simplefilter("ignore")
        from vllm.v1 import serial_utils
    return serial_utils


@pytest.mark.usefixtures("serial_utils")
def test_still_there() -> None:
    assert_still_there(tensor_handover)


def test_still_needed_while_vllms_own_ways_copy_or_fill_the_shared_memory(
    serial_utils: Any,
) -> None:
    """Once this fails, see whether vLLM's own way will do: `tensor_handover` can go then."""
    from vllm.v1.engine.tensor_ipc import TensorIpcSender

    large = torch.zeros(1 << 18)
    sent = sum(memoryview(frame).nbytes for frame in serial_utils.MsgpackEncoder().encode(large))
    assert sent > large.nbytes
    handed: Any = queue.Queue()
    assert TensorIpcSender(handed)(large) is not None
    assert " /dev/shm/" in _mapping(large.data_ptr())


def _mapping(address: int) -> str:
    """The line of /proc/self/maps that has the address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split()[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            return line
    raise AssertionError("the address is in no mapping")


async def test_a_large_tensor_crosses_vllms_messages_as_a_number(
    pair: Pair, serial_utils: Any
) -> None:
    """vLLM's own encoder and decoder do it, and not a test's idea of them."""
    one = embedding(8)
    encoder = serial_utils.MsgpackEncoder(oob_tensor_consumer=pair.handover)
    with pair.handover.offering([one]):
        frames = encoder.encode(one.tensor)
    assert sum(memoryview(frame).nbytes for frame in frames) < 200
    asked: list[tuple[str, tuple[int, ...], dict[str, int]]] = []

    def provide(dtype: str, shape: tuple[int, ...], given: dict[str, int]) -> torch.Tensor:
        asked.append((dtype, tuple(shape), given))
        return torch.empty(0)

    serial_utils.MsgpackDecoder(torch.Tensor, oob_tensor_provider=provide).decode(frames)
    [(dtype, shape, given)] = asked
    assert (dtype, shape) == ("bfloat16", tuple(one.tensor.shape))
    assert torch.equal(await asyncio.to_thread(pair.arrives, one.tensor, given), one.tensor)


async def test_tensors_arrive_as_they_are_and_leave_nothing(pair: Pair) -> None:
    for seed, dtype in enumerate([torch.bfloat16, torch.float32, torch.bfloat16]):
        one = embedding(seed, dtype)
        with pair.handover.offering([None, one]):
            given = pair.encoder.oob_tensor_consumer(one.tensor)
        assert torch.equal(await asyncio.to_thread(pair.arrives, one.tensor, given), one.tensor)


async def test_one_offered_by_two_requests_is_there_until_the_last_has_been_sent(
    pair: Pair,
) -> None:
    one = embedding(7)
    first, second = ExitStack(), ExitStack()
    for request in (first, second):
        request.enter_context(pair.handover.offering([one]))
    first.close()
    given = pair.handover(one.tensor)
    second.close()
    assert pair.handover(one.tensor) is None
    assert given is not None
    assert torch.equal(await asyncio.to_thread(pair.arrives, one.tensor, given), one.tensor)


async def test_one_whose_message_was_never_sent_is_passed_over(pair: Pair) -> None:
    lost, one = embedding(1), embedding(2)
    with pair.handover.offering([lost, one]):
        pair.handover(lost.tensor)
        given = pair.handover(one.tensor)
    assert given is not None
    assert torch.equal(await asyncio.to_thread(pair.arrives, one.tensor, given), one.tensor)


async def test_one_that_is_let_go_of_on_its_way_arrives(pair: Pair) -> None:
    one = embedding(3)
    with pair.handover.offering([one]):
        given = pair.handover(one.tensor)
    expected = one.tensor.clone()
    del one
    await until(0)
    assert given is not None
    assert torch.equal(await asyncio.to_thread(pair.arrives, expected, given), expected)


async def test_what_is_in_no_file_is_for_vllm_to_send(pair: Pair) -> None:
    plain = replace(embedding(4), file=None)
    with pair.handover.offering([plain]):
        assert pair.handover(plain.tensor) is None


async def test_an_engine_that_does_not_read_is_not_waited_for(pair: Pair) -> None:
    """As many as the kernel holds for it are sent, and vLLM sends the rest."""
    one = embedding(5)
    sent: list[dict[str, int]] = []
    with pair.handover.offering([one]):
        while (given := pair.handover(one.tensor)) is not None and len(sent) < 2000:
            sent.append(given)
    assert given is None
    assert len(sent) > 8
    assert torch.equal(await asyncio.to_thread(pair.arrives, one.tensor, sent[-1]), one.tensor)


async def test_without_an_engine_vllm_sends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_handover, "SECONDS", 0.1)
    alone, encoder, one = Handover(), Encoder(), embedding(6)
    with alone.listening() as connect:
        directory = Path(os.environ[ADDRESS]).parent
        await asyncio.to_thread(connect, encoder)
    assert encoder.oob_tensor_consumer is None
    with alone.offering([one]):
        assert alone(one.tensor) is None
    assert ADDRESS not in os.environ
    assert not directory.exists()
