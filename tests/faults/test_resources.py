"""The rules for growth and leaks, tried on samples and logs that are made up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.questions import Question
from tests.faults.resources import (
    BOUNDS,
    FILES,
    FILES_A_KILL,
    LOG_BYTES,
    LOG_BYTES_A_REQUEST,
    WARM_SECONDS,
    Sample,
    check_files,
    check_logs,
    check_samples,
    secrets_of,
)

QUESTION = Question("single-0", (), "What shape is red?", False, 24, (5, 2), "It is a triangle.")
SECRETS = secrets_of([QUESTION], ["ann"])
FIRST = Sample("gateway-0", 7, 0.0, 200.0, 50, 20)
GROWTH = {what: bound.growth for what, bound in BOUNDS["gateway"].items()}


def run(grown: Callable[[Sample, int], Sample]) -> list[Sample]:
    """Ten samples from the time on when the process is warm."""
    warm = replace(FIRST, at=WARM_SECONDS)
    return [FIRST, *(grown(replace(warm, at=warm.at + number), number) for number in range(10))]


def test_what_goes_up_and_down_does_not_grow() -> None:
    assert check_samples(run(lambda sample, number: sample)) == []
    high = run(lambda sample, number: replace(sample, mib=200.0 + 300 * (number == 5)))
    assert check_samples(high) == []


@pytest.mark.parametrize("what", GROWTH)
def test_what_a_process_keeps_of_every_request_is_seen(what: str) -> None:
    def grown(sample: Sample, number: int) -> Sample:
        more = int(GROWTH[what] * 1.1 * number / 9)
        return replace(sample, **{what: getattr(sample, what) + more})

    (violation,) = check_samples(run(grown))
    assert violation.kind == "grows"
    assert what in violation.what


def test_a_process_that_is_started_anew_begins_anew() -> None:
    later = replace(FIRST, pid=8, at=30.0, files=FIRST.files + 200)
    loading = [replace(later, at=at, files=5, is_ready=False) for at in (28.0, 52.0)]
    last = replace(later, at=60.0)
    assert check_samples([*run(lambda sample, number: sample), *loading, later, last]) == []


@pytest.mark.parametrize("what", GROWTH)
def test_more_than_may_be_at_any_time_is_seen(what: str) -> None:
    most = BOUNDS["gateway"][what].most
    high = replace(FIRST, at=1.0, **{what: int(most) + 1})  # type: ignore[arg-type]
    (violation,) = check_samples([FIRST, high, FIRST])
    assert violation.kind == "grows"


@pytest.mark.parametrize(
    "line",
    [
        f"asked: {QUESTION.text}",
        f"answered: {QUESTION.answer}",
        "key-of-ann",
        "Task exception was never retrieved",
    ],
)
def test_what_is_asked_and_answered_and_a_key_are_in_no_log(tmp_path: Path, line: str) -> None:
    log = tmp_path / "pixtral_gateway.0.log"
    log.write_text("INFO call code=OK tenant=ann\n")
    assert check_logs(tmp_path, SECRETS, 1) == []
    log.write_text(f"INFO {line}\n")
    assert [each.kind for each in check_logs(tmp_path, SECRETS, 1)] == ["logged"]


def test_a_log_has_so_much_for_each_request(tmp_path: Path) -> None:
    most = LOG_BYTES + 10 * LOG_BYTES_A_REQUEST
    (tmp_path / "a.log").write_text("x" * most)
    assert check_logs(tmp_path, SECRETS, 10) == []
    assert [each.kind for each in check_logs(tmp_path, SECRETS, 9)] == ["grows"]


def test_a_kill_leaves_a_few_files(tmp_path: Path) -> None:
    for number in range(FILES + FILES_A_KILL):
        (tmp_path / str(number)).touch()
    assert check_files(tmp_path, 1) == []
    assert [each.kind for each in check_files(tmp_path, 0)] == ["grows"]
