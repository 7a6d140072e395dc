"""The generator against a real gateway, by both doors."""

import asyncio
import itertools
import re
from types import SimpleNamespace

import pytest

from bench.load import Arriving, load
from bench.load_report import page, table
from bench.load_summary import Record, summary
from bench.mix import Mix
from tests.support.gateway_harness import Client

MIX = Mix(sizes=("32x32",), output_tokens=4)
ARRIVING = Arriving(rate=60, seconds=1.0, burst=2, burst_every=0.4, burst_seconds=0.2, requests=40)


@pytest.mark.parametrize("door", ["grpc", "http"])
async def test_what_is_sent_is_answered_and_told(client: Client, door: str) -> None:
    url = client.url if door == "http" else f"grpc://{client.target}"
    async with asyncio.timeout(240):
        records = await load(url, ARRIVING, MIX, "", "")
    found = summary(records, ARRIVING.seconds)

    assert found["sent"] == len(records) == 40
    assert found["answered"] + found["refused"] == 40
    assert found["answered"] > 0
    assert found["failed"] == {}
    assert found["images_encoded"] + found["images_cached"] > 0
    answered = [each for each in records if each.code == "OK"]
    assert all(each.tokens > 0 and each.prompt_tokens > 0 for each in answered)
    assert all(each.late <= (each.first or 0) <= each.ended for each in answered)


async def test_a_full_gateway_is_told_as_refusals_and_giving_up_as_that(client: Client) -> None:
    mix = Mix(sizes=("32x32",), images=0.0, output_tokens=20, cancels=1.0)
    async with asyncio.timeout(240):
        records = await load(f"grpc://{client.target}", ARRIVING, mix, "", "")
    assert {each.code for each in records} <= {"GIVEN_UP", "OK", "RESOURCE_EXHAUSTED"}
    assert summary(records, 1.0)["given_up"] > 0


async def test_without_a_rate_so_many_are_kept_under_way(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock on which each look takes a second.
    seconds = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr("bench.loops.time", clock)
    arriving = Arriving(rate=float("inf"), seconds=10, at_once=2)
    async with asyncio.timeout(240):
        records = await load(f"grpc://{client.target}", arriving, MIX, "", "")
    assert len(records) > 2
    assert all(each.late == 0 for each in records)


def record(due: float, *, code: str = "OK", first: float | None = 0.1, late: float = 0.0) -> Record:
    return Record(due, late, code, 0.5, first, (0.1, 0.3), 3, 10, 5, None)


def test_times_are_those_of_requests_that_were_answered() -> None:
    records = [record(0.0), record(1.0, first=0.3), record(1.0, code="UNAVAILABLE", first=9.0)]
    records.append(record(2.0, code="RESOURCE_EXHAUSTED", first=None, late=0.2))
    found = summary(records, 4.0)
    assert found["ttft"]["max"] == 0.3
    assert found["ttft"]["p50"] == 0.1
    assert found["itl"]["max"] == 0.3
    assert found["tpot"]["max"] == pytest.approx(0.2)
    assert found["late"]["max"] == 0.2
    assert found["refusal"]["p50"] == 0.5
    assert (found["refused"], found["failed"]) == (1, {"UNAVAILABLE": 1})
    assert found["prompt_cached_share"] == 0.5
    assert found["ttft_encoded"] is None
    assert found["answered_per_second"] == 0.5


def test_the_page_needs_nothing_else() -> None:
    records = [record(each / 10) for each in range(40)]
    found = summary(records, 4.0)
    made = page(records, found, ARRIVING, MIX)
    assert made.count("<svg") == made.count("</svg>") == 5
    assert "<?xml" not in made
    assert not re.search(r"<(script|link|iframe)|src=|url\(http", made)
    for name in ("follow_ups", "burst_every", "delay of the generator"):
        assert name in made
    assert "40 in 4 s" in table(found)


def test_a_load_of_which_nothing_was_answered_has_a_report_too() -> None:
    records = [record(0.1, code="UNAVAILABLE", first=None)]
    found = summary(records, 4.0)
    assert found["ttft"] is None
    assert "1 UNAVAILABLE" in page(records, found, ARRIVING, MIX)
