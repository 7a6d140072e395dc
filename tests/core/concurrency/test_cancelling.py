import asyncio

from pixtral_core.concurrency.cancelling import cancel_for, reason_of


class Reason(Exception):
    pass


async def seen_by(task: "asyncio.Task[Exception | None]", *reasons: Exception) -> Exception | None:
    await asyncio.sleep(0)
    for reason in reasons:
        cancel_for(task, reason)
    return await task


async def waits() -> Exception | None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as cancelled:
        return reason_of(cancelled)
    return None


async def test_a_task_knows_why_it_was_cancelled() -> None:
    reason = Reason()
    assert await seen_by(asyncio.create_task(waits()), reason) is reason


async def test_the_first_reason_counts() -> None:
    first = Reason()
    assert await seen_by(asyncio.create_task(waits()), first, Reason()) is first


async def test_a_reason_outlives_a_library_that_raises_a_cancelled_error_of_its_own() -> None:
    async def waits_in_a_library() -> Exception | None:
        try:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise asyncio.CancelledError from None
        except asyncio.CancelledError as cancelled:
            return reason_of(cancelled)
        return None

    reason = Reason()
    assert await seen_by(asyncio.create_task(waits_in_a_library()), reason) is reason


async def test_a_cancel_without_a_reason_has_none() -> None:
    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    assert await task is None


async def test_what_was_awaited_may_have_been_cancelled_instead() -> None:
    async def waits_for(other: "asyncio.Future[None]") -> Exception | None:
        try:
            await other
        except asyncio.CancelledError as cancelled:
            return reason_of(cancelled)
        return None

    other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(waits_for(other))
    await asyncio.sleep(0)
    other.cancel()
    assert await task is None
