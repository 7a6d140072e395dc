import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor

from pixtral_core.errors import Overloaded, Unavailable
from pixtral_encoder import batcher as batcher_module
from pixtral_encoder import waiting_deadline as patience_module
from pixtral_encoder.batcher import LEAST_MEASURED, Batcher
from pixtral_encoder.waiting_deadline import TooLate, WaitingDeadline

DEADLINE = 30.0


class Device:
    """Stands still until the test lets it go on, and notes what it gets: as it begins or, where it
    `is_asynchronous` as a GPU is, as its work is waited for."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None
        self.is_asynchronous = False

    def __call__(self, images: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        self.batches.append([int(image) for image in images])
        if self.is_asynchronous:
            return partial(self._work, images)
        embedded = self._work(images)
        return lambda: embedded

    def _work(self, images: Sequence[Tensor]) -> list[Tensor]:
        assert self.go.acquire(timeout=DEADLINE)
        if self.error is not None and len(images) > 1:
            raise self.error
        if any(int(image) < 0 for image in images):
            raise self.error or ValueError("a negative image")
        return [image * 10 for image in images]


class Clock:
    """In place of the module `time`: stands still, except for what a test adds to it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (batcher_module, patience_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
async def batcher(device: Device) -> AsyncIterator[Batcher[Tensor]]:
    made = Batcher(device, batch_patches=100, queue_patches=1000, device_lost=asyncio.Event())
    yield made
    device.go.release(100)
    await made.close()


def anyone() -> WaitingDeadline:
    """Those who wait for ever."""
    return WaitingDeadline(math.inf)


def within(clock: Clock, seconds: float) -> WaitingDeadline:
    return WaitingDeadline(clock.now + seconds)


def submit(
    batcher: Batcher[Tensor],
    image: int,
    patches: int,
    latest_deadline: WaitingDeadline | None = None,
    tenant: str = "",
) -> "asyncio.Task[Tensor]":
    async def embed() -> Tensor:
        with batcher.admit(patches, latest_deadline or anyone(), tenant) as slot:
            return await batcher.embed(torch.tensor(image), slot)

    return asyncio.create_task(embed())


def dropped(reason: str) -> float:
    name = "pixtral_encoder_images_dropped_total"
    return REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0


async def measured(device: Device, clock: Clock) -> Batcher[Tensor]:
    """One that has seen a batch, which took a millisecond a patch."""
    batcher = Batcher(
        device, batch_patches=1000, queue_patches=100_000, device_lost=asyncio.Event()
    )
    task = submit(batcher, 1, LEAST_MEASURED)
    await until_batches(device, 1)
    clock.now += LEAST_MEASURED / 1000
    device.go.release()
    await task
    return batcher


async def until_batches(device: Device, count: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while len(device.batches) < count:
            await asyncio.sleep(0.001)


async def until_settled(batcher: Batcher[Tensor]) -> None:
    """Returns once the device knows of all that the batcher tells it of now."""
    for _ in range(3):
        # In the thread that tells the device, and behind what that has been given before.
        await batcher.prepare(lambda: None)
        for _ in range(10):
            await asyncio.sleep(0)


async def test_what_waits_when_the_device_is_free_goes_as_one_batch(
    device: Device, batcher: Batcher[Tensor]
) -> None:
    first = submit(batcher, 1, 10)
    await until_batches(device, 1)
    others = [submit(batcher, image, 30) for image in (2, 3, 4)]
    await asyncio.sleep(0)
    device.go.release(2)
    results = await asyncio.gather(first, *others)
    assert device.batches == [[1], [2, 3, 4]]
    assert [int(result) for result in results] == [10, 20, 30, 40]


async def test_batches_keep_to_the_budget_and_the_order(
    device: Device, batcher: Batcher[Tensor]
) -> None:
    tasks = [submit(batcher, 1, 10)]
    await until_batches(device, 1)
    sizes = {2: 60, 3: 50, 4: 50, 5: 500, 6: 1, 7: 99}
    tasks += [submit(batcher, image, patches) for image, patches in sizes.items()]
    await asyncio.sleep(0)
    device.go.release(10)
    await asyncio.gather(*tasks)
    # 6 fits beside 2, and delays nobody. 5 is above the budget: a batch of its own.
    assert device.batches == [[1], [2, 6], [3, 4], [5], [7]]


async def test_a_busy_device_is_told_of_one_more_batch_once_that_is_full(
    device: Device, batcher: Batcher[Tensor]
) -> None:
    device.is_asynchronous = True
    tasks = [submit(batcher, 1, 10)]
    await until_batches(device, 1)
    tasks += [submit(batcher, image, 40) for image in (2, 3)]
    await until_settled(batcher)
    assert device.batches == [[1]]
    # A third fills the batch, and what comes behind it waits for its turn.
    tasks += [submit(batcher, image, 20) for image in (4, 5, 6, 7, 8, 9)]
    await until_batches(device, 2)
    await until_settled(batcher)
    assert device.batches == [[1], [2, 3, 4]]
    device.go.release()
    await tasks[0]
    await until_batches(device, 3)
    device.go.release(3)
    await asyncio.gather(*tasks)
    assert device.batches == [[1], [2, 3, 4], [5, 6, 7, 8, 9]]


async def test_a_device_that_is_lost_while_it_works_is_logged_and_ends_all(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    lost = asyncio.Event()
    batcher = Batcher(device, batch_patches=100, queue_patches=1000, device_lost=lost)
    device.is_asynchronous = True
    device.error = torch.AcceleratorError("unspecified launch failure")
    tasks = [submit(batcher, -image, 100) for image in (1, 2, 3)]
    await until_batches(device, 2)
    device.go.release(10)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
    assert lost.is_set()
    assert "AcceleratorError: unspecified launch failure" in caplog.text
    await batcher.close()


async def test_one_that_is_cancelled_while_it_waits_is_not_embedded(
    device: Device, batcher: Batcher[Tensor]
) -> None:
    running, dropped, kept = (submit(batcher, image, 10) for image in (1, 2, 3))
    await until_batches(device, 1)
    dropped.cancel()
    running.cancel()
    await asyncio.wait([dropped, running])
    device.go.release(2)
    assert int(await kept) == 30
    assert device.batches == [[1], [3]]


async def test_one_that_nobody_waits_for_while_it_is_decoded_gives_its_room_back(
    batcher: Batcher[Tensor],
) -> None:
    before = dropped("left")
    with pytest.raises(asyncio.CancelledError), batcher.admit(900, anyone()):
        raise asyncio.CancelledError
    assert dropped("left") == before + 1
    with batcher.admit(1000, anyone()):
        pass


async def test_one_whose_deadline_passes_while_it_waits_is_not_embedded(
    device: Device, batcher: Batcher[Tensor], clock: Clock
) -> None:
    before = dropped("late")
    first = submit(batcher, 1, 10)
    await until_batches(device, 1)
    until = clock.now + 5
    late, kept = submit(batcher, 2, 10, WaitingDeadline(until)), submit(batcher, 3, 10)
    # Another waits for the same image, and has more time.
    shared = submit(batcher, 4, 10, WaitingDeadline(until, math.inf))
    await asyncio.sleep(0)
    clock.now += 6
    device.go.release(2)
    with pytest.raises(TooLate):
        await late
    assert [int(each) for each in await asyncio.gather(first, kept, shared)] == [10, 30, 40]
    assert device.batches == [[1], [3, 4]]
    assert dropped("late") == before + 1


async def test_an_image_that_cannot_be_in_time_is_refused_before_it_is_decoded(
    device: Device, clock: Clock
) -> None:
    before = dropped("late")
    batcher = await measured(device, clock)
    # Three batches of a second each.
    ahead = [submit(batcher, image, 1000) for image in (2, 3)]
    await until_batches(device, 2)
    with pytest.raises(TooLate), batcher.admit(1000, within(clock, 2.9)):
        pytest.fail("it was let in")
    with batcher.admit(1000, within(clock, 3.1)):
        pass
    assert dropped("late") == before + 1
    device.go.release(2)
    await asyncio.gather(*ahead)
    await batcher.close()


async def test_a_small_image_is_not_late_for_what_it_need_not_wait_for(
    device: Device, clock: Clock
) -> None:
    batcher = await measured(device, clock)
    running = submit(batcher, 2, 10)
    await until_batches(device, 2)
    ahead = [submit(batcher, image, 900) for image in (3, 4, 5, 6)]
    await asyncio.sleep(0)
    # It is in the next batch, beside the first of them.
    small = submit(batcher, 7, 100, within(clock, 3))
    device.go.release(5)
    assert int(await small) == 70
    await asyncio.gather(running, *ahead)
    assert device.batches[2] == [3, 7]
    await batcher.close()


async def test_no_time_is_taken_for_granted_before_one_was_measured(
    device: Device, batcher: Batcher[Tensor], clock: Clock
) -> None:
    tasks = [submit(batcher, 1, 10)]
    await until_batches(device, 1)
    tasks += [submit(batcher, image, 90, within(clock, 0.1)) for image in range(2, 8)]
    await asyncio.sleep(0)
    device.go.release(10)
    await asyncio.gather(*tasks)


async def test_the_loop_is_free_while_the_device_works(
    device: Device, batcher: Batcher[Tensor]
) -> None:
    task = submit(batcher, 1, 10)
    await until_batches(device, 1)
    assert not task.done()
    device.go.release()
    assert int(await task) == 10


async def test_a_full_queue_refuses_at_once_and_gives_its_room_back(
    batcher: Batcher[Tensor],
) -> None:
    with batcher.admit(900, anyone()):
        with pytest.raises(Overloaded) as refused, batcher.admit(101, anyone()):
            pass
        assert refused.value.retry_after
        with batcher.admit(100, anyone()):
            pass
    with batcher.admit(5000, anyone()):
        # Alone, even one that is larger than the queue gets in.
        pass
    with batcher.admit(1000, anyone()):
        pass


async def test_an_image_that_fails_does_not_fail_its_companions(
    device: Device, batcher: Batcher[Tensor]
) -> None:
    first = submit(batcher, 1, 10)
    await until_batches(device, 1)
    others = [submit(batcher, image, 10) for image in (2, -3, 4)]
    await asyncio.sleep(0)
    device.go.release(10)
    await first
    outcomes = await asyncio.gather(*others, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Tensor, ValueError, Tensor]
    assert device.batches == [[1], [2, -3, 4], [2], [-3], [4]]


async def test_a_batch_too_large_for_the_memory_is_made_in_parts(
    device: Device, batcher: Batcher[Tensor]
) -> None:
    device.error = torch.OutOfMemoryError("no room")
    first = submit(batcher, 1, 10)
    await until_batches(device, 1)
    others = [submit(batcher, image, 10) for image in (2, 3)]
    await asyncio.sleep(0)
    device.go.release(10)
    assert [int(result) for result in await asyncio.gather(first, *others)] == [10, 20, 30]


async def test_a_lost_device_is_told(device: Device) -> None:
    lost = asyncio.Event()
    batcher = Batcher(device, batch_patches=100, queue_patches=1000, device_lost=lost)
    device.error = torch.AcceleratorError("unspecified launch failure")
    device.go.release(10)
    with pytest.raises(Unavailable):
        await submit(batcher, -1, 10)
    assert lost.is_set()
    await batcher.close()


async def test_patches_are_shown_from_admission_to_the_end(batcher: Batcher[Tensor]) -> None:
    def shown(name: str) -> float:
        return REGISTRY.get_sample_value(f"pixtral_encoder_{name}") or 0.0

    before = shown("queued_patches")
    assert shown("queue_patches_limit") == 1000
    with batcher.admit(300, anyone()), batcher.admit(200, anyone()):
        assert shown("queued_patches") == before + 500
    with pytest.raises(ZeroDivisionError), batcher.admit(300, anyone()):
        _ = 1 / 0
    assert shown("queued_patches") == before


async def until_submitted() -> None:
    """Returns once all that was submitted waits for the device."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_tenants_take_turns(batcher: Batcher[Tensor], device: Device) -> None:
    tasks = [submit(batcher, 1, 100, tenant="eve")]
    await until_batches(device, 1)
    tasks += [submit(batcher, image, 100, tenant="eve") for image in (2, 3, 4, 5)]
    tasks += [submit(batcher, image, 50, tenant="bob") for image in (11, 12, 13)]
    await until_submitted()
    device.go.release(100)
    await asyncio.gather(*tasks)
    order = [image for batch in device.batches for image in batch]
    assert [image for image in order if image < 10] == [1, 2, 3, 4, 5]
    assert [image for image in order if image > 10] == [11, 12, 13]
    # The device may have had the next one when bob came.
    assert order.index(12) <= order.index(3)
    assert order.index(13) <= order.index(4)


async def test_who_waits_behind_another_tenants_images_is_not_too_late(
    device: Device, clock: Clock
) -> None:
    batcher = await measured(device, clock)
    tasks = [submit(batcher, 2, 1000, tenant="eve")]
    await until_batches(device, 2)
    tasks += [submit(batcher, image, 1000, tenant="eve") for image in range(3, 13)]
    await until_submitted()
    # Ten seconds of work are ahead in order of arrival, and of hers one at most by turns.
    bob = submit(batcher, 20, 1000, within(clock, 5.0), tenant="bob")
    await until_submitted()
    assert not bob.done()
    with pytest.raises(TooLate):
        await submit(batcher, 21, 1000, within(clock, 5.0), tenant="eve")
    device.go.release(100)
    await asyncio.gather(bob, *tasks)
    await batcher.close()


async def test_a_queue_that_one_tenant_fills_takes_anothers(batcher: Batcher[Tensor]) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(batcher.admit(1000, anyone(), "eve"))
        with pytest.raises(Overloaded):
            stack.enter_context(batcher.admit(1, anyone(), "eve"))
        stack.enter_context(batcher.admit(200, anyone(), "bob"))
