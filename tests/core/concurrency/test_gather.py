import asyncio

import pytest

from pixtral_core.concurrency.gather import run_all


async def test_results_come_in_the_order_of_the_works() -> None:
    first_may_end = asyncio.Event()

    async def first() -> str:
        await first_may_end.wait()
        return "first"

    async def second() -> str:
        first_may_end.set()
        return "second"

    assert await run_all([first(), second()]) == ["first", "second"]


async def test_nothing_is_nothing() -> None:
    assert await run_all([]) == []


async def test_one_failure_cancels_the_others_and_is_raised_as_it_is() -> None:
    cancelled = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def fails() -> None:
        raise LookupError("as it is")

    with pytest.raises(LookupError, match="as it is"):
        await run_all([waits(), fails(), waits()])
    assert cancelled == [True, True]
