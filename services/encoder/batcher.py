"""Continuous batching: whatever waits when the device is free goes as one ragged batch."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from services.encoder.metrics import (
    BATCH_PATCHES,
    ENCODE_SECONDS,
    IMAGES_ENCODED,
    QUEUE_PATCHES_LIMIT,
    QUEUE_SECONDS,
    QUEUED_PATCHES,
)
from serving.call import current_span, note
from serving.errors import Overloaded, Unavailable

# What is embedded, on the device already.
Image = TypeVar("Image")
Embed = Callable[[Sequence[Image]], list[Tensor]]
Outcome = Tensor | Exception


@dataclass(slots=True)
class Run:
    """One run of `embed` on a batch. Its times are on the monotonic clock."""

    images: int
    patches: int
    began: float
    ended: float | None = None


@dataclass(slots=True, eq=False)
class Waiting(Generic[Image]):
    image: Image
    patches: int
    result: asyncio.Future[Tensor]
    since: float = field(default_factory=time.monotonic)
    run: Run | None = None


class Batcher(Generic[Image]):
    """Runs `embed` in a thread of its own, one batch at a time, first come first served.

    There is no timer: an image that finds the device free starts at once, and those that come
    meanwhile are the next batch, as many as `batch_patches` lets in. An image larger than that
    is a batch of its own.
    """

    def __init__(
        self,
        embed: Embed[Image],
        *,
        batch_patches: int,
        queue_patches: int,
        device_lost: asyncio.Event,
    ) -> None:
        """`device_lost` is set when nothing can be embedded any more in this process."""
        self._embed = embed
        self._batch_patches = batch_patches
        self._queue_patches = queue_patches
        self._admitted = 0
        self._waiting: deque[Waiting[Image]] = deque()
        self._running = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tower")
        self._device_lost = device_lost
        QUEUE_PATCHES_LIMIT.set(queue_patches)

    @contextlib.contextmanager
    def admit(self, patches: int) -> Iterator[None]:
        """Room for an image from before it is decoded until it is embedded.

        Raises Overloaded where `queue_patches` are taken; an image that is alone always fits.
        """
        if self._admitted and self._admitted + patches > self._queue_patches:
            raise Overloaded("too many images are waiting to be encoded")
        self._admitted += patches
        QUEUED_PATCHES.inc(patches)
        try:
            yield
        finally:
            self._admitted -= patches
            QUEUED_PATCHES.dec(patches)

    async def prepare(self, work: Callable[[], None]) -> None:
        """Runs in the thread that batches run in, before any of them."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def embed(self, image: Image, patches: int) -> Tensor:
        """The embedding, (tokens, width) on the device, of an image.

        One that is cancelled before its batch begins is not embedded.

        Raises:
            Unavailable: where the device is lost.
        """
        waiting = Waiting(image, patches, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._start_batch()
        try:
            return await waiting.result
        finally:
            if waiting.run is None:
                self._waiting.remove(waiting)
            _tell(waiting)

    def close(self) -> None:
        """Blocks until the batch that runs has ended."""
        self._thread.shutdown()

    def _start_batch(self) -> None:
        if self._running or not self._waiting:
            return
        batch = self._next_batch()
        run = Run(len(batch), sum(waiting.patches for waiting in batch), time.monotonic())
        for waiting in batch:
            waiting.run = run
            QUEUE_SECONDS.observe(run.began - waiting.since)
        BATCH_PATCHES.observe(run.patches)
        self._running = True
        outcomes = asyncio.get_running_loop().run_in_executor(
            self._thread, self._run, [waiting.image for waiting in batch]
        )
        outcomes.add_done_callback(partial(self._end_batch, batch, run))

    def _next_batch(self) -> list[Waiting[Image]]:
        batch = [self._waiting.popleft()]
        room = self._batch_patches - batch[0].patches
        while self._waiting and self._waiting[0].patches <= room:
            batch.append(self._waiting.popleft())
            room -= batch[-1].patches
        return batch

    def _run(self, images: list[Image]) -> list[Outcome]:
        with ENCODE_SECONDS.time():
            return self._outcomes(images)

    def _outcomes(self, images: list[Image]) -> list[Outcome]:
        try:
            return [*self._embed(images)]
        except torch.AcceleratorError:
            raise
        except Exception as error:
            if len(images) == 1:
                return [error]
        # A batch may fail where its images do not: for want of memory, or for one of them.
        return [outcome for image in images for outcome in self._outcomes([image])]

    def _end_batch(
        self, batch: list[Waiting[Image]], run: Run, ended: asyncio.Future[list[Outcome]]
    ) -> None:
        self._running = False
        run.ended = time.monotonic()
        if ended.exception() is not None:
            # A CUDA context does not come back from this: only a new process helps.
            self._device_lost.set()
        outcomes: list[Outcome] = (
            [Unavailable("the encoder's device is lost")] * len(batch)
            if self._device_lost.is_set()
            else ended.result()
        )
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Tensor):
                IMAGES_ENCODED.inc()
            if waiting.result.done():
                continue
            if isinstance(outcome, Tensor):
                waiting.result.set_result(outcome)
            else:
                waiting.result.set_exception(outcome)
        self._start_batch()


def _tell(waiting: Waiting[Image]) -> None:
    """Of a batch that has begun, to the call that its image is of; one cancelled midway is told
    as far as it came."""
    run = waiting.run
    if run is None:
        return
    span, ended = current_span(), run.ended or time.monotonic()
    note(queue_seconds=run.began - waiting.since)
    span.part("queue", waiting.since, run.began)
    span.part("batch", run.began, ended, images=run.images, patches=run.patches)
