"""Times the steps that hand one embedding from the decoder's process to its engine."""

import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import torch
import zmq

from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.embeddings.memory_files import LEAST_BYTES, MemoryFile
from pixtral_decoder.vllm_hooks.tensor_handover import ADDRESS, Handover, Receiver

REPEATS = 20


async def pieces(spec: VisionSpec, hidden: int, tokens: int) -> dict[str, float]:
    """The median of REPEATS for each step, in milliseconds.

    `handover` is the decoder's way for a large embedding, which lies in shared memory: the time
    from the request until the other process has it. `encode`, `socket` and `decode` are vLLM's way:
    msgpack without the tensor's bytes, and a socket that carries them. The other process keeps the
    embeddings that it receives, as an engine does.
    """
    from vllm.multimodal.inputs import MultiModalKwargsItem
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    from pixtral_decoder.engine.inputs import embedding_item

    tensor = torch.randn(tokens, spec.width).to(torch.bfloat16)
    item = embedding_item(tensor)
    encoder, decoder = MsgpackEncoder(), MsgpackDecoder(MultiModalKwargsItem, share_mem=False)
    # Every frame is a buffer; the type of zmq's frames does not show it.
    frames = [bytes(frame) for frame in encoder.encode(item)]  # type: ignore[arg-type]
    seen = {
        "megabytes": sum(map(len, frames)) / 1e6,
        "encode": _median(lambda: encoder.encode(item)),
        "decode": _median(lambda: decoder.decode(frames)),
        **_socket(encoder.encode(item)),
    }
    if tensor.nbytes >= LEAST_BYTES:
        seen |= await _handover(tensor)
    if torch.cuda.is_available():
        seen |= _on_gpu(tensor, hidden)
    return seen


def _median(call: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(REPEATS)) * 1e3


def _socket(frames: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        address = f"ipc://{directory}/socket"
        context = multiprocessing.get_context("spawn")
        other = context.Process(target=_answer, args=(address,), daemon=True)
        with zmq.Context() as zmq_context, zmq_context.socket(zmq.PAIR) as socket:
            socket.bind(address)
            other.start()
            socket.recv()

            def send(parts: Any) -> None:
                socket.send_multipart(parts, copy=False)
                socket.recv()

            full = _median(lambda: send(frames))
            empty = _median(lambda: send([b"nothing"]))
            socket.send(b"end")
            other.join(10)
    return {"socket": full - empty}


def _answer(address: str) -> None:
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.connect(address)
        socket.send(b"ready")
        kept = []
        while (frames := socket.recv_multipart(copy=False))[0].bytes != b"end":
            kept.append(frames)
            socket.send(b"")


async def _handover(tensor: torch.Tensor) -> dict[str, float]:
    handover, encoder = Handover(), SimpleNamespace(oob_tensor_consumer=None)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    with handover.listening() as connect:
        other = context.Process(target=_receive, args=(os.environ[ADDRESS], theirs), daemon=True)
        other.start()
        pipe.recv()
        connect(encoder)
    handing = []
    for _ in range(REPEATS + 1):
        received = MemoryFile(tensor.nbytes)
        shared = received.memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        # An engine spends more time than this on the previous embedding.
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        with handover.offering([ImageEmbedding(Grid(1, len(tensor)), shared, received)]):
            pipe.send(("bfloat16", tensor.shape, handover(shared)))
            pipe.recv()
        handing.append(time.perf_counter() - began)
    pipe.send(None)
    other.join(10)
    handover.close()
    return {"handover": statistics.median(handing[1:]) * 1e3}


def _receive(address: str, pipe: Connection) -> None:
    receiver, kept = Receiver(address), []
    pipe.send(None)
    while (given := pipe.recv()) is not None:
        kept.append(receiver(*given))
        pipe.send(None)


def _on_gpu(tensor: torch.Tensor, hidden: int) -> dict[str, float]:
    pinned = tensor.pin_memory()
    there = tensor.cuda()
    adapter = torch.nn.Sequential(
        torch.nn.Linear(tensor.shape[1], hidden), torch.nn.GELU(), torch.nn.Linear(hidden, hidden)
    ).to(device="cuda", dtype=tensor.dtype)

    def run(call: Callable[[], object]) -> float:
        def once() -> None:
            call()
            torch.cuda.synchronize()

        return _median(once)

    with torch.inference_mode():
        return {
            "pin": run(tensor.pin_memory),
            "to_gpu_pinned": run(lambda: pinned.to("cuda", non_blocking=True)),
            "to_gpu_pageable": run(tensor.cuda),
            "adapter": run(lambda: adapter(there)),
        }
