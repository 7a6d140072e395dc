from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from pixtral_gateway.upstream import ejection
from pixtral_gateway.upstream.ejection import CONSECUTIVE_FAILURES, eject, failed
from pixtral_gateway.upstream.replica import Contract, DecoderReplica
from tests.support.fake_tiers import FINGERPRINT, WIDTH
from tests.support.gateway_harness import decoder_at

CONTRACT = Contract("small", FINGERPRINT, WIDTH, "f32")


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(ejection, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
async def five(clock: SimpleNamespace) -> AsyncIterator[list[DecoderReplica]]:
    made = [decoder_at(f"127.0.0.1:{port}") for port in range(1, 6)]
    for replica in made:
        replica._announce(CONTRACT)
    yield made
    for replica in made:
        await replica.close()


def fail(replica: DecoderReplica, peers: list[DecoderReplica], times: int) -> None:
    for _ in range(times):
        failed(replica, peers)


def ejections(reason: str) -> float:
    labels = {"tier": "decoder", "reason": reason}
    return REGISTRY.get_sample_value("pixtral_gateway_ejections_total", labels) or 0.0


async def test_one_that_fails_again_and_again_is_left_out(five: list[DecoderReplica]) -> None:
    before = ejections("failures")
    fail(five[0], five, CONSECUTIVE_FAILURES - 1)
    assert five[0].contract
    fail(five[0], five, 1)
    assert five[0].contract is None
    assert ejections("failures") == before + 1


async def test_one_that_succeeds_in_between_is_kept(five: list[DecoderReplica]) -> None:
    for _ in range(10):
        fail(five[0], five, CONSECUTIVE_FAILURES - 1)
        five[0].record.failures = 0
    assert five[0].contract


async def test_death_of_a_process_is_one_failure_however_much_ran_on_it(
    five: list[DecoderReplica],
) -> None:
    for _ in range(20):
        failed(five[0], five)
        five[0].lost()
    assert not five[0].record.is_ejected


async def test_what_fails_everywhere_ejects_nobody(five: list[DecoderReplica]) -> None:
    for _ in range(CONSECUTIVE_FAILURES):
        for replica in five:
            failed(replica, five)
    assert all(replica.contract for replica in five)


async def test_no_more_than_half_are_left_out(five: list[DecoderReplica]) -> None:
    assert [eject(replica, five, "silence") for replica in five] == [True, True, *[False] * 3]
    # Neither those that are gone nor those of another contract are ones to turn to.
    five[2].lost()
    five[3].lost()
    assert not eject(five[4], five, "silence")


async def test_the_last_one_is_kept(five: list[DecoderReplica]) -> None:
    for replica in five[1:]:
        replica.lost()
    assert not eject(five[0], five, "silence")
    fail(five[0], five, 50)
    assert five[0].contract


async def test_it_comes_back_with_a_handshake_after_its_time_which_grows(
    five: list[DecoderReplica], clock: SimpleNamespace
) -> None:
    replica = five[0]
    for seconds in (30, 60, 90):
        assert eject(replica, five, "silence")
        clock.now += seconds - 1
        replica._announce(CONTRACT)
        assert replica.contract is None
        clock.now += 2
        replica._announce(CONTRACT)
        assert replica.contract == CONTRACT
    for _ in range(20):
        assert eject(replica, five, "silence")
        clock.now += 301
        replica._announce(CONTRACT)
        assert replica.contract == CONTRACT
    # Ten minutes in which all was well.
    clock.now += 600
    assert eject(replica, five, "silence")
    clock.now += 91
    replica._announce(CONTRACT)
    assert replica.contract == CONTRACT
