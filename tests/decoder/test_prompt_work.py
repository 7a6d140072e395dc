import asyncio

import pytest

from pixtral_decoder.prompt_work import MEASURED_TOKENS, MEMORY_SECONDS, PromptWork


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def work(clock: Clock) -> PromptWork:
    return PromptWork(clock)


def computes(work: PromptWork, clock: Clock, tokens: int, seconds: float) -> None:
    with work.prompt(tokens) as begun:
        clock.now += seconds
        begun(tokens)


def test_a_prompt_counts_until_its_first_token(work: PromptWork) -> None:
    with work.prompt(700) as first, work.prompt(30) as second:
        assert work.tokens == 730
        first(700)
        first(700)
        assert work.tokens == 30
        second(0)
        assert work.tokens == 0
    assert work.tokens == 0


@pytest.mark.parametrize("error", [asyncio.CancelledError, RuntimeError, GeneratorExit])
def test_a_prompt_that_ends_without_a_token_counts_no_more(
    work: PromptWork, error: type[BaseException]
) -> None:
    with pytest.raises(error), work.prompt(700):
        raise error
    assert work.tokens == 0


def test_the_rate_is_of_the_time_with_long_prompts(work: PromptWork, clock: Clock) -> None:
    assert work.tokens_per_second == 0
    computes(work, clock, 4000, 0.2)
    clock.now += 10
    assert work.tokens_per_second == pytest.approx(20_000, rel=0.01)
    # Two at once take no longer each than one after the other.
    with work.prompt(4000) as one, work.prompt(4000) as other:
        clock.now += 0.2
        one(4000)
        clock.now += 0.2
        other(4000)
    assert work.tokens_per_second == pytest.approx(20_000, rel=0.01)


def test_a_short_prompt_says_nothing_of_the_rate(work: PromptWork, clock: Clock) -> None:
    computes(work, clock, MEASURED_TOKENS - 1, 2.0)
    assert work.tokens_per_second == 0


def test_a_slow_moment_is_forgotten(work: PromptWork, clock: Clock) -> None:
    computes(work, clock, 4000, 8.0)
    assert work.tokens_per_second == pytest.approx(500, rel=0.2)
    clock.now += MEMORY_SECONDS
    for _ in range(40):
        computes(work, clock, 4000, 0.2)
    assert work.tokens_per_second > 10_000
    clock.now += 6 * MEMORY_SECONDS
    assert work.tokens_per_second == 0
