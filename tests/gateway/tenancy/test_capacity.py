import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from pixtral_core.errors import Overloaded
from pixtral_gateway.tenancy import capacity
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.tenancy.capacity import follow_capacity, room
from pixtral_gateway.tenancy.tenants import Tenant, Tenants
from pixtral_gateway.upstream.registry import Tiers
from tests.support.fake_tiers import FakeDecoder
from tests.support.gateway_harness import eventually, watching


@pytest.fixture
async def tiers(decoders: list[FakeDecoder]) -> AsyncIterator[Tiers]:
    decoders[1].capacity = 12
    tiers = watching([], decoders)
    await tiers.start()
    await eventually(lambda: all(decoder.contract for decoder in tiers.decoders))
    yield tiers
    await tiers.stop()


@pytest.fixture
async def admission(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Admission]:
    monkeypatch.setattr(capacity, "SECONDS_BETWEEN_LOOKS", 0.01)
    admission = Admission(1, Tenants(None))
    sizing = asyncio.create_task(follow_capacity(admission, tiers.decoders))
    yield admission
    sizing.cancel()


async def go(decoder: FakeDecoder, tiers: Tiers) -> None:
    """As when a call finds it gone."""
    await decoder.stop()
    next(r for r in tiers.decoders if r.address == decoder.address).lost()


async def test_there_are_two_permits_for_each_answer_that_the_decoders_take(tiers: Tiers) -> None:
    # One of them is of a version that does not say how many it takes, but how many it runs.
    assert room(tiers.decoders) == 2 * (2 * 4 + 12)
    assert room([]) == 0


async def test_the_limit_follows_the_decoders_and_takes_no_permit_away(
    admission: Admission, tiers: Tiers, decoders: list[FakeDecoder]
) -> None:
    await eventually(lambda: admission.limit == 40)
    assert REGISTRY.get_sample_value("pixtral_gateway_permits_limit") == 40
    tenant = Tenant("a")
    with contextlib.ExitStack() as held:
        for _ in range(20):
            held.enter_context(admission.permit(tenant, 0))
        await go(decoders[1], tiers)
        await eventually(lambda: admission.limit == 16)
        assert admission.in_use == 20
        with pytest.raises(Overloaded), admission.permit(tenant, 0):
            pass
        # What was possible a moment ago is not a mistake of the client's now.
        with pytest.raises(Overloaded), admission.permit(tenant, 0, 20):
            pass
        await decoders[1].start()
        await eventually(lambda: admission.limit == 40)
        with admission.permit(tenant, 0, 20):
            assert admission.in_use == 40
    assert admission.in_use == 0


async def test_without_a_decoder_the_limit_stays_as_it_was() -> None:
    admission = Admission(8, Tenants(None))
    sizing = asyncio.create_task(follow_capacity(admission, []))
    await asyncio.sleep(0)

    # So that what is not there is told of as that, and not as overload.
    assert admission.limit == 8
    sizing.cancel()
