"""How one side is asked, before a gateway without a model, and what is made of it."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench.doors import open_door
from bench.mix import Album
from bench.one_card import ask
from bench.one_card_report import FIRST_TOKEN, RATE, STOCK_VLLM, Report, markdown, plot
from bench.workloads import Author, Workload, chats, full_hd, servegen
from tests.support.gateway_harness import Client


@pytest.mark.parametrize("workload", [chats().small(), servegen().small(), full_hd(2).small()])
async def test_each_prompt_is_asked_once_and_later_turns_are_told_apart(
    client: Client, workload: Workload
) -> None:
    album = Album(workload.sizes)
    album.make()
    author = Author(album, random.Random(1), itertools.count(), is_small=True)
    sessions = workload.sessions(author)
    async with open_door(client.url, None, "") as door:
        found = await ask(door, workload, sessions, seed=1)
    assert found["failed"] == {}
    assert found["answered"] == found["sent"] == sum(map(len, sessions))
    assert (found["ttft_later"] is not None) == workload.is_chat


def seen(rate: float, first: float, refused: int = 0) -> dict[str, Any]:
    return {
        "answered_per_second": rate,
        "ttft": {"p50": first, "p95": first},
        "ttft_later": None,
        "tpot": None,
        "itl": None,
        "refused": refused,
        "failed": {},
    }


def test_a_table_has_medians_ratios_and_who_has_won() -> None:
    turns = {
        STOCK_VLLM: [seen(4.0, 0.2), seen(5.0, 0.1), seen(9.0, 0.3)],
        "pixtral-serve": [seen(10.0, 0.5, refused=3), seen(10.0, 0.5), seen(10.0, 0.4)],
    }
    rows = [line.strip("|").split("|") for line in markdown("some", turns)]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert cells[RATE.name] == ["5", "10", "2.00", "won"]
    assert cells[f"{FIRST_TOKEN.name}, ms"] == ["200", "500", "2.50", "lost"]
    assert cells["not answered"][:2] == ["", "3 refused"]
    assert len({len(row) for row in rows}) == 1


def test_a_difference_of_two_in_a_hundred_is_none() -> None:
    assert [RATE.verdict(ratio) for ratio in (0.97, 0.99, 1.01, 1.03)] == [
        *("lost", "even", "even", "won")
    ]


def test_a_report_is_whole_after_every_turn(tmp_path: Path) -> None:
    report = Report(tmp_path, None)
    workload = chats()
    for rates in ((4.0, 8.0), (5.0, 10.0)):
        for side, rate in zip((STOCK_VLLM, "pixtral-serve"), rates, strict=True):
            report.add(workload, side, 0, seen(rate, 0.1))
            read = json.loads((tmp_path / "one_card.json").read_text())
            turns = read["workloads"][workload.name]["turns"]
            assert turns[side][-1]["answered_per_second"] == rate
    assert read["about"]["versions"]["torch"]
    plot(read["workloads"], "pixtral-serve", tmp_path / "plot.svg")
    assert "2.00" in (tmp_path / "plot.svg").read_text()
