import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from pixtral_core.concurrency.single_flight import SingleFlight


class Work:
    """Counts its runs; each waits for its end."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.runs += 1
        try:
            return await asyncio.shield(self.end)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_concurrent_calls_share_one_run_and_later_ones_do_not() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    calls = [asyncio.create_task(flights.run("a", work)) for _ in range(20)]
    await settle()
    assert work.runs == len(flights) == 1
    work.end.set_result("done")
    assert await asyncio.gather(*calls) == ["done"] * 20
    assert len(flights) == 0
    assert await flights.run("a", work) == "done"
    assert work.runs == 2


async def test_other_keys_run_apart() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    calls = [asyncio.create_task(flights.run(key, work)) for key in "abc"]
    await settle()
    assert work.runs == 3
    work.end.set_result("done")
    await asyncio.gather(*calls)


@pytest.mark.parametrize("gone", [0, 1, 2])
async def test_a_cancelled_caller_leaves_the_others_undisturbed(gone: int) -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    calls = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
    await settle()
    calls.pop(gone).cancel()
    await settle()
    work.end.set_result("done")
    assert await asyncio.gather(*calls) == ["done"] * 2
    assert (work.runs, work.cancelled) == (1, 0)


async def test_the_last_caller_to_be_cancelled_cancels_the_work() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    calls = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
    await settle()
    for call in calls:
        call.cancel()
    # One who asks at that moment gets a run of its own, not the one that is being cancelled.
    await asyncio.wait(calls)
    late = asyncio.create_task(flights.run("a", work))
    await settle()
    assert (work.runs, work.cancelled) == (2, 1)
    work.end.set_result("done")
    assert await late == "done"
    assert len(flights) == 0


async def test_an_error_reaches_every_caller_and_is_not_kept() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    calls = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
    await settle()
    work.end.set_exception(ValueError("no"))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError] * 3
    again = Work()
    again.end.set_result("done")
    assert await flights.run("a", again) == "done"


@pytest.fixture
async def lost() -> Callable[[], list[Any]]:
    """Collects what asyncio reports to the loop, such as an error that nobody has read."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def collected() -> list[Any]:
        gc.collect()
        return reported

    return collected


async def test_an_error_of_work_that_is_being_cancelled_is_not_reported_as_lost(
    lost: Callable[[], list[Any]],
) -> None:
    flights: SingleFlight[str, str] = SingleFlight()

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the connection is closed already")

    call = asyncio.create_task(flights.run("a", work))
    await settle()
    call.cancel()
    await asyncio.wait([call])
    await settle()
    # Its traceback keeps the work alive.
    del call
    assert not lost()
