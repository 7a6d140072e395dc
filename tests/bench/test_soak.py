from random import Random

from tests.support.trend import trend

TIMES = [10.0 * at for at in range(120)]


def test_a_leak_is_seen_through_noise_and_single_peaks_are_not_one() -> None:
    rng = Random(3)
    flat = [200 + rng.gauss(0, 3) for _ in TIMES]
    leaking = [value + at * 0.02 for value, at in zip(flat, TIMES, strict=True)]
    peaks = [value + 150 * (number % 17 == 16) for number, value in enumerate(flat)]
    assert not trend("gateway memory MiB", TIMES, flat).grows
    assert not trend("gateway memory MiB", TIMES, peaks).grows
    assert trend("gateway memory MiB", TIMES, leaking).grows


def test_a_descriptor_a_minute_is_growth_and_one_more_call_is_not() -> None:
    leak = [30.0 + at // 60 for at in TIMES]
    breathing = [30.0 + number % 3 for number in range(len(TIMES))]
    assert trend("gateway files", TIMES, leak).grows
    assert not trend("gateway files", TIMES, breathing).grows
    assert not trend("gateway files", TIMES, [30.0] * 60 + [32.0] * 60).grows


def test_what_shrinks_does_not_grow() -> None:
    assert not trend("redis connections", TIMES, [900 - at / 2 for at in TIMES]).grows
