"""Which turns are still asked of whom, and with what."""

from pathlib import Path
from typing import Any

import pytest

from bench.fleet.asking import Task, Writer
from bench.fleet.results import Results
from bench.fleet.sides import SPLIT, STICKY
from bench.mix import Album
from bench.workloads import for_fleet


def test_a_turn_is_asked_once_and_each_side_is_first_in_turn(tmp_path: Path) -> None:
    workloads = for_fleet(2)[:2]
    task = Task(2, workloads, [STICKY, SPLIT], turns=2)
    results = Results(tmp_path, {})
    first, second = workloads
    assert task.missing(results, first) == [(0, STICKY), (0, SPLIT), (1, SPLIT), (1, STICKY)]
    results.add(2, first.name, "", STICKY, {})
    assert task.missing(results, first) == [(0, SPLIT), (1, SPLIT), (1, STICKY)]
    for side in (SPLIT, SPLIT):
        results.add(2, first.name, "", side, {})
    assert task.missing(results, first) == [(1, STICKY)]
    assert task.missing_sides(results) == [STICKY, SPLIT]
    results.add(2, first.name, "", STICKY, {})
    assert not task.missing(results, first)
    for _ in range(task.turns):
        results.add(2, second.name, "", SPLIT, {})
    assert task.missing_sides(results) == [STICKY]


@pytest.mark.parametrize("number", range(4))
def test_sides_are_sent_as_much_and_no_image_or_text_twice(number: int) -> None:
    workload = for_fleet(2)[number].small()
    writer, album = Writer(is_small=True), Album(workload.sizes)
    one, other = ([*writer.sessions(workload, 1, album)] for _ in range(2))
    assert shapes(one) == shapes(other) != shapes(writer.sessions(workload, 2, album))
    prompts = [[prompt for session in side for prompt in session] for side in (one, other)]
    images = [{image for each in side for image in each.shown} for side in prompts]
    texts = [{text for each in side for text in each.questions} for side in prompts]
    assert not images[0] & images[1]
    assert not texts[0] & texts[1]


def shapes(sessions: list[list[Any]]) -> list[list[Any]]:
    return [
        [
            (
                [text.partition(":")[2] for text in prompt.questions],
                [size for _, size in prompt.shown],
                prompt.output_tokens,
            )
            for prompt in session
        ]
        for session in sessions
    ]
