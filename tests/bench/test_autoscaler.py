"""The autoscaler against the examples and rules of Kubernetes' documentation."""

from collections.abc import Callable

import pytest
import simpy

from bench.simulation.autoscaler import SYNC_SECONDS, Autoscaler, Behavior, Metric, proposed


def metric(total: float, target: float) -> Metric:
    return Metric("", lambda: total, target)


@pytest.mark.parametrize(
    ("replicas", "total", "target", "expected"),
    [
        # "if the current metric value is 200m, and the desired value is 100m, the number of
        # replicas will be doubled"; if it is 50m, halved. Totals are of all replicas.
        (3, 3 * 200, 100, 6),
        (4, 4 * 50, 100, 2),
        # Rounded up.
        (1, 101 * 1.2, 101, 2),
        # Within a tenth of 1, nothing is done.
        (50, 50 * 90, 75, 60),
        (10, 10 * 109, 100, 10),
        (10, 10 * 91, 100, 10),
        (10, 10 * 111, 100, 12),
        (5, 0, 100, 0),
    ],
)
def test_ratio_of_the_metric_to_its_target(
    replicas: int, total: float, target: float, expected: int
) -> None:
    assert proposed(replicas, [metric(total, target)]) == expected


def test_the_metric_that_asks_for_most_decides() -> None:
    assert proposed(2, [metric(10, 10), metric(70, 10), metric(40, 10)]) == 7


def replicas_over_time(
    total: Callable[[float], float], behavior: Behavior, seconds: float
) -> list[tuple[float, int]]:
    """The changes, as (second, replicas), of a tier where each replica is to have 1."""
    env = simpy.Environment()
    changes: list[tuple[float, int]] = []
    scaler = Autoscaler(
        env,
        [Metric("", lambda: total(env.now), 1)],
        behavior,
        behavior.lowest,
        lambda replicas: changes.append((env.now, replicas)),
    )
    env.process(scaler.run())
    env.run(until=seconds)
    return changes


def test_up_at_once_and_by_so_much_in_a_minute() -> None:
    changes = replicas_over_time(lambda at: 20, Behavior(lowest=2, highest=16), 240)
    assert changes == [(15, 4), (75, 8), (135, 16)]


def test_down_only_after_a_quiet_window_and_one_by_one() -> None:
    behavior = Behavior(lowest=2, highest=8, down_window=600, down_period=300)
    changes = replicas_over_time(lambda at: 4 if at < 60 else 1, behavior, 1500)
    assert changes[0] == (15, 4)
    # The last recommendation of 4 was at 45 s.
    assert changes[1:] == [(645, 3), (945, 2)]


def test_a_short_dip_changes_nothing() -> None:
    behavior = Behavior(lowest=2, highest=8)
    changes = replicas_over_time(lambda at: 1 if 300 <= at < 600 else 4, behavior, 1200)
    assert changes == [(SYNC_SECONDS, 4)]


def test_bounds_are_kept() -> None:
    assert replicas_over_time(lambda at: 99, Behavior(lowest=2, highest=3), 300) == [(15, 3)]
    assert replicas_over_time(lambda at: 0, Behavior(lowest=2), 3600) == []
