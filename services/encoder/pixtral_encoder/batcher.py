"""Continuous batching: when the device is free, all waiting images become one ragged batch."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pixtral_core.concurrency.queue_shares import QueueShares
from pixtral_core.concurrency.turns import Given
from pixtral_core.concurrency.unread_errors import read_error
from pixtral_core.errors import Unavailable
from pixtral_core.telemetry.request_log import current_span, note
from pixtral_encoder.metrics import (
    BATCH_PATCHES,
    DROPPED_LATE,
    DROPPED_LEFT,
    ENCODE_SECONDS,
    IMAGES_ENCODED,
    QUEUE_PATCHES_LIMIT,
    QUEUE_SECONDS,
    QUEUED_PATCHES,
)
from pixtral_encoder.waiting_deadline import TooLate, WaitingDeadline

logger = logging.getLogger(__name__)

# An image on the device, ready to be embedded.
Image = TypeVar("Image")
# Submits images to the device. The returned function waits until the images are embedded.
Begin = Callable[[Sequence[Image]], Callable[[], list[Tensor]]]
Outcome = Tensor | Exception

# A smaller batch does not fill the device, so its time says nothing about a larger one.
LEAST_MEASURED = 1024


@dataclass(slots=True, eq=False)
class Batch:
    """One batch. Its times are on the monotonic clock.

    Attributes:
        began: the time from which the device could work on this batch: when the device received
            it, or when the previous batch ended, if that was later.
        is_submitted: whether the device has received the whole batch.
        ended: when the device finished the batch; None before that.
    """

    images: int
    patches: int
    began: float
    is_submitted: bool = False
    ended: float | None = None


@dataclass(slots=True, eq=False)
class QueueSlot:
    """The space of one image in the queue; `run` is the batch of the image, once it has begun."""

    patches: int
    latest_deadline: WaitingDeadline
    tenant: str = ""
    run: Batch | None = None

    @property
    def amount(self) -> float:
        return self.patches


@dataclass(slots=True, eq=False)
class Waiting(Generic[Image]):
    image: Image
    slot: QueueSlot
    result: asyncio.Future[Tensor]
    since: float = field(default_factory=time.monotonic)

    @property
    def tenant(self) -> str:
        return self.slot.tenant

    @property
    def amount(self) -> float:
        return self.slot.patches


class Batcher(Generic[Image]):
    """Gives images to the device, one batch at a time. Tenants take turns, and each tenant's images
    keep their order.

    The batcher has no timer: an image starts at once if the device is free. The images that come
    while the device works form the next batch, up to `batch_patches`: first the image whose turn it
    is, then in their order all others that still fit. An image with more than `batch_patches` is a
    batch of its own. When more images wait than fit into a batch, the device receives the next
    batch while it works on the previous one, so that it never waits for this process.

    An image is dropped if its embedding would come too late for every caller that waits. The
    estimate is the least possible time: it takes the time per patch of the fastest batch so far,
    for this image and for the batches before it. So an image is dropped only if it is certainly too
    late.
    """

    def __init__(
        self,
        begin: Begin[Image],
        *,
        batch_patches: int,
        queue_patches: int,
        device_lost: asyncio.Event,
    ) -> None:
        """`begin` runs in one thread, and the functions that it returns in another.

        The batcher sets `device_lost` when this process cannot embed any more.
        """
        self._begin = begin
        self._batch_patches = batch_patches
        self._queue = QueueShares(queue_patches, "too many images are waiting to be encoded")
        # The patches that each tenant has received.
        self._given = Given()
        self._waiting: deque[Waiting[Image]] = deque()
        # The device has two batches at most: one runs, and one waits.
        self._runs: dict[Batch, asyncio.Task[None]] = {}
        self._free_since = 0.0
        self._seconds_per_patch = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tower")
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="tower-wait")
        self._device_lost = device_lost
        QUEUE_PATCHES_LIMIT.set(queue_patches)

    @contextlib.contextmanager
    def admit(
        self, patches: int, latest_deadline: WaitingDeadline, tenant: str = ""
    ) -> Iterator[QueueSlot]:
        """Reserves space in the queue for an image until the context ends. Enter the context before
        the image is decoded.

        Raises:
            Overloaded: if the queue has no space for `patches`. An image always fits into an empty
                queue. A tenant with less than its share may exceed `queue_patches` by up to a
                quarter.
            TooLate: if the embedding would come too late for every caller.
        """
        slot = QueueSlot(patches, latest_deadline, tenant)
        with self._queue.room(tenant, patches), _counted(patches):
            try:
                if self._is_too_late(slot):
                    raise TooLate(latest_deadline.until)
                yield slot
            except TooLate:
                DROPPED_LATE.inc()
                raise
            except asyncio.CancelledError:
                if slot.run is None:
                    DROPPED_LEFT.inc()
                raise

    async def prepare(self, work: Callable[[], None]) -> None:
        """Runs `work` in the thread that submits batches. Call it before the first batch."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def embed(self, image: Image, slot: QueueSlot) -> Tensor:
        """Embeds an image that has space in the queue. Returns (tokens, width) on the device.

        An image that is cancelled before its batch begins is not embedded.

        Raises:
            TooLate: if the embedding would come too late for every caller.
            Unavailable: if the device is lost.
        """
        waiting = Waiting(image, slot, asyncio.get_running_loop().create_future())
        waiting.result.add_done_callback(read_error)
        self._waiting.append(waiting)
        self._start_batch()
        try:
            return await waiting.result
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            _tell(waiting)

    async def close(self) -> None:
        """Returns when the running batches have ended."""
        while self._runs:
            await asyncio.wait(self._runs.values())
        for thread in (self._thread, self._waiter):
            await asyncio.to_thread(thread.shutdown)

    def _start_batch(self) -> None:
        if not self._may_start():
            return
        batch = self._next_batch()
        if not batch:
            return
        for waiting in batch:
            self._given.add(waiting.tenant, waiting.amount)
        patches = sum(waiting.slot.patches for waiting in batch)
        run = Batch(len(batch), patches, time.monotonic())
        for waiting in batch:
            waiting.slot.run = run
        BATCH_PATCHES.observe(run.patches)
        self._runs[run] = asyncio.get_running_loop().create_task(self._run_batch(batch, run))

    def _may_start(self) -> bool:
        if not self._runs:
            return True
        # A second batch starts only if it is full, because more images may still join a batch that
        # is not.
        is_full = sum(waiting.slot.patches for waiting in self._waiting) >= self._batch_patches
        return is_full and len(self._runs) == 1 and all(run.is_submitted for run in self._runs)

    async def _run_batch(self, batch: list[Waiting[Image]], run: Batch) -> None:
        in_thread = asyncio.get_running_loop().run_in_executor
        outcomes: list[Outcome]
        try:
            wait = await in_thread(self._thread, self._begun, [each.image for each in batch])
            run.is_submitted = True
            self._start_batch()
            outcomes = await in_thread(self._waiter, self._wait_for, run, wait)
        except Exception:
            # A CUDA context does not recover from this error, so the process must be replaced.
            logger.exception("a batch of %d images failed on the device", len(batch))
            self._device_lost.set()
        if self._device_lost.is_set():
            outcomes = [Unavailable("the encoder's device is lost")] * len(batch)
        self._end_batch(batch, run, outcomes)

    def _next_batch(self) -> list[Waiting[Image]]:
        batch: list[Waiting[Image]] = []
        left: deque[Waiting[Image]] = deque()
        taken = 0
        self._given.keep(waiting.tenant for waiting in self._waiting)
        for waiting in self._given.by_turns(self._waiting):
            slot = waiting.slot
            if batch and taken + slot.patches > self._batch_patches:
                left.append(waiting)
            elif not waiting.result.done() and self._is_in_time(waiting, taken):
                batch.append(waiting)
                taken += slot.patches
        self._waiting = left
        return batch

    def _is_in_time(self, waiting: Waiting[Image], before: int) -> bool:
        latest_deadline = waiting.slot.latest_deadline
        seconds = self._seconds_left() + self._seconds(before + waiting.slot.patches)
        if latest_deadline.lasts(seconds):
            return True
        waiting.result.set_exception(TooLate(latest_deadline.until))
        return False

    def _is_too_late(self, slot: QueueSlot) -> bool:
        """Whether an image that comes now would be embedded too late for all its callers."""
        left, latest_deadline = self._seconds_left(), slot.latest_deadline
        due = self._given.by_turns([*(waiting.slot for waiting in self._waiting), slot])
        ahead = sum(each.patches for each in due[: due.index(slot)])
        if latest_deadline.lasts(left + self._seconds(ahead + slot.patches)):
            return False
        # The image may be small enough to join a batch before others.
        return not latest_deadline.lasts(left + self._seconds(self._patches_through(slot.patches)))

    def _patches_through(self, patches: int) -> int:
        """The patches of all batches from the next one up to and including the batch of a new image
        with `patches`."""
        waiting = [each.slot.patches for each in self._given.by_turns(self._waiting)]
        through = 0
        while True:
            taken, left = 0, []
            for each in waiting:
                if taken and taken + each > self._batch_patches:
                    left.append(each)
                else:
                    taken += each
            if not taken or taken + patches <= self._batch_patches:
                return through + taken + patches
            through, waiting = through + taken, left

    def _seconds(self, patches: int) -> float:
        """The least seconds for this many patches."""
        return patches * self._seconds_per_patch

    def _seconds_left(self) -> float:
        """The least seconds that the device still needs for the batches that it has."""
        if not self._runs:
            return 0.0
        began = next(iter(self._runs)).began
        needed = self._seconds(sum(run.patches for run in self._runs))
        return max(0.0, began + needed - time.monotonic())

    def _begun(self, images: list[Image]) -> Callable[[], Sequence[Outcome]]:
        try:
            return self._begin(images)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            if len(images) == 1:
                failed = [error]
                return lambda: failed
        # One bad image, or a lack of memory for the whole batch, may have caused the failure. So
        # each image is now embedded alone.
        outcomes = [outcome for image in images for outcome in self._begun([image])()]
        return lambda: outcomes

    def _wait_for(self, run: Batch, wait: Callable[[], Sequence[Outcome]]) -> list[Outcome]:
        outcomes = [*wait()]
        run.began = max(run.began, self._free_since)
        run.ended = self._free_since = time.monotonic()
        ENCODE_SECONDS.observe(run.ended - run.began)
        return outcomes

    def _end_batch(
        self, batch: list[Waiting[Image]], run: Batch, outcomes: Sequence[Outcome]
    ) -> None:
        del self._runs[run]
        is_whole = all(isinstance(each, Tensor) for each in outcomes)
        if run.ended is not None and is_whole and run.patches >= LEAST_MEASURED:
            took = (run.ended - run.began) / run.patches
            self._seconds_per_patch = min(took, self._seconds_per_patch or took)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            QUEUE_SECONDS.observe(run.began - waiting.since)
            if isinstance(outcome, Tensor):
                IMAGES_ENCODED.inc()
            if waiting.result.done():
                continue
            if isinstance(outcome, Tensor):
                waiting.result.set_result(outcome)
            else:
                waiting.result.set_exception(outcome)
        self._start_batch()


@contextlib.contextmanager
def _counted(patches: int) -> Iterator[None]:
    QUEUED_PATCHES.inc(patches)
    try:
        yield
    finally:
        QUEUED_PATCHES.dec(patches)


def _tell(waiting: Waiting[Image]) -> None:
    """Adds the times of the image's batch to the request's log line and trace, if the batch has
    begun. If the batch has not ended, its time until now is added."""
    run = waiting.slot.run
    if run is None:
        return
    span, ended = current_span(), run.ended or time.monotonic()
    note(queue_seconds=run.began - waiting.since)
    span.part("queue", waiting.since, run.began)
    span.part("batch", run.began, ended, images=run.images, patches=run.patches)
