"""Work in a thread that its caller, and even the caller's loop, may leave behind."""

import asyncio
import threading

import pytest

from pixtral_core.concurrency.daemon_threads import in_daemon_thread


async def test_returns_and_raises_what_the_work_does() -> None:
    assert await in_daemon_thread(lambda: 7, "returns") == 7
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0, "raises")


@pytest.mark.parametrize("fails", [False, True])
def test_work_that_ends_when_the_loop_is_closed_ends_in_silence(fails: bool) -> None:
    may_end, threads = threading.Event(), set[threading.Thread]()

    def work() -> None:
        threads.add(threading.current_thread())
        assert may_end.wait(60)
        if fails:
            raise ValueError

    async def leave() -> None:
        task = asyncio.create_task(in_daemon_thread(work, "left"))
        while not threads:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    may_end.set()
    # pytest fails the test for an exception that a thread does not catch.
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
