import pytest
import simpy

from bench.simulation.processor import Processor


def ends(cores: float | None, work: list[tuple[float, float, float]]) -> list[float]:
    """When work, each of (begin, seconds, cores), ends."""
    env = simpy.Environment()
    processor = Processor(env, cores)
    ended = [0.0] * len(work)

    def piece(
        number: int, begin: float, seconds: float, wanted: float
    ) -> simpy.events.ProcessGenerator:
        yield env.timeout(begin)
        yield processor.work(seconds, wanted)
        ended[number] = env.now

    for number, (begin, seconds, wanted) in enumerate(work):
        env.process(piece(number, begin, seconds, wanted))
    env.run()
    return ended


def test_what_fits_goes_at_full_speed() -> None:
    assert ends(2, [(0, 3, 1), (1, 3, 1)]) == pytest.approx([3, 4])


def test_what_does_not_fit_is_slowed_alike() -> None:
    # Both at half speed while both are there: 2 s for the first second of each.
    assert ends(1, [(0, 2, 1), (1, 1, 1)]) == pytest.approx([3, 3])


def test_work_of_two_cores_takes_twice_the_share() -> None:
    # Three cores' worth on two: two thirds of the speed.
    assert ends(2, [(0, 2, 2), (0, 4, 1)]) == pytest.approx([3, 5])


def test_others_have_their_share_and_no_more() -> None:
    env = simpy.Environment()
    processor = Processor(env, 2, taken=1)
    alone = processor.work(1)
    env.run(until=alone)
    assert env.now == pytest.approx(1)
    both = processor.work(2) & processor.work(2)
    # Three cores' worth on two.
    env.run(until=both)
    assert env.now == pytest.approx(1 + 3)


def test_without_a_number_of_cores_nothing_slows_anything() -> None:
    assert ends(None, [(0, 2, 1)] * 9) == pytest.approx([2] * 9)
