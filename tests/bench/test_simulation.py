"""The tiers' simulation against what queueing theory, or arithmetic, says of simple cases."""

import json
import math
import statistics
from dataclasses import replace

import pytest
import simpy

from bench.simulation import times
from bench.simulation.arrivals import Request, Traffic, bursts, constant, diurnal, trace
from bench.simulation.fleet import Fleet, Starts
from bench.simulation.plan import Planner, Topology, topologies
from bench.simulation.replicas import Decoder, Encoder, Limits
from bench.simulation.run import simulate, summary
from bench.simulation.signals import Scrapes, autoscale, from_manifest, own
from bench.simulation.times import ServiceTimes

# Nothing takes any time but what a test says.
NOTHING = ServiceTimes(
    gateway_seconds=0,
    gateway_image_seconds=0,
    preprocess_seconds=0,
    tower_seconds=0,
    tower_patch_seconds=0,
    tower_cores=1,
    embedding_seconds=0,
    step_seconds=0,
    prefill_seconds=0,
    decode_seconds=0,
    kv_tokens=10_000_000,
    step_tokens=8192,
    shared_cores=0,
    stock_image_seconds=0,
    stock_host_seconds=0,
)


def request(
    at: float, image: int | None = None, *, text: int = 10, output: int = 1, number: int = 0
) -> Request:
    return Request(at, image, 1024, text, output, number)


def test_one_request_takes_what_its_parts_take() -> None:
    took = ServiceTimes(
        gateway_seconds=1,
        gateway_image_seconds=0.5,
        preprocess_seconds=4,
        tower_seconds=2,
        tower_patch_seconds=0.001,
        tower_cores=1,
        embedding_seconds=8,
        step_seconds=0.1,
        prefill_seconds=0.01,
        decode_seconds=0,
        kv_tokens=10_000_000,
        step_tokens=8192,
        shared_cores=0,
        stock_image_seconds=0,
        stock_host_seconds=0,
    )
    (outcome,) = simulate([request(5, image=1, output=4)], took)
    gateway, encoder, embedding = 1 + 0.5, 4 / 4 + 2 + 1.024, 8 / 4
    prompt = (10 + 1024 + 32) * 0.01
    first = gateway + encoder + embedding + prompt + 0.1
    assert outcome.first == pytest.approx(first)
    assert outcome.last == pytest.approx(first + 3 * 0.1)


def test_an_engine_for_one_is_a_queue_with_one_server() -> None:
    """M/D/1: the mean wait is rho / (2 (1 - rho)) services."""
    service, rho = 1.0, 0.6
    requests = list(
        trace(
            constant(rho / service),
            highest=rho / service,
            seconds=60_000,
            traffic=Traffic(images=0, output_tokens=1, same_length=True),
            seed=3,
        )
    )
    limits = Limits(max_running=1, max_waiting=10_000, permits=10_000)
    outcomes = simulate(requests, replace(NOTHING, step_seconds=service), limits=limits)
    waits = [(each.first or math.inf) - service for each in outcomes]
    assert statistics.fmean(waits) == pytest.approx(rho / (2 * (1 - rho)) * service, rel=0.05)


def test_a_new_image_is_encoded_once_whoever_asks() -> None:
    slow = replace(NOTHING, tower_seconds=1)
    requests = [request(each / 10, image=7, number=each) for each in range(30)]
    outcomes = simulate(requests, slow, encoders=3)
    # Those of the first second wait for one and the same run, the others find it stored.
    assert [each.image for each in outcomes].count("encoded") == 10
    assert [each.image for each in outcomes].count("cached") == 20
    assert outcomes[9].first == pytest.approx(0.1)


def test_a_single_flight_is_a_single_run() -> None:
    env = simpy.Environment()
    fleet = Fleet(env, replace(NOTHING, tower_seconds=1))
    for pool in (fleet.gateways, fleet.encoders, fleet.decoders):
        pool.begin(2)
    env.process(fleet.replay([request(0, image=each % 3, number=each) for each in range(60)]))
    env.run()
    assert sum(encoder.encoded_images for encoder in fleet.encoders.ready) == 3


def test_reuse_is_the_share_of_images_that_come_again() -> None:
    traffic = Traffic(reuse=0.7, images=0.5)
    images = [
        each.image
        for each in trace(constant(10), highest=10, seconds=2000, traffic=traffic, seed=1)
        if each.image is not None
    ]
    assert 1 - len(set(images)) / len(images) == pytest.approx(0.7, abs=0.02)
    assert len(images) == pytest.approx(10_000, rel=0.05)


def test_what_waits_is_one_batch() -> None:
    env = simpy.Environment()
    fleet = Fleet(env, replace(NOTHING, tower_seconds=1))
    for pool in (fleet.gateways, fleet.encoders, fleet.decoders):
        pool.begin(1)
    env.process(fleet.replay([request(each / 100, image=each) for each in range(9)]))
    env.run()
    (encoder,) = fleet.encoders.ready
    assert (encoder.encoded_images, encoder.tower_seconds) == (9, 2)


def test_the_same_image_is_prefilled_once_on_its_decoder() -> None:
    # 1024 patches and 32 breaks are not computed again.
    took = replace(NOTHING, prefill_seconds=0.001)
    outcomes = simulate([request(each * 10, image=1, number=each) for each in range(3)], took)
    assert [each.first for each in outcomes] == pytest.approx([1.066, 0.01, 0.01])


def test_an_image_that_the_kv_cache_has_no_room_for_is_prefilled_again() -> None:
    took = replace(NOTHING, prefill_seconds=0.001, kv_tokens=1200)
    arrivals = [request(each * 10, image=each % 2) for each in range(4)]
    assert [each.first for each in simulate(arrivals, took)] == pytest.approx([1.066] * 4)


def test_a_request_that_comes_into_long_answers_begins_at_the_next_step() -> None:
    took = replace(NOTHING, step_seconds=1)
    long, late = simulate([request(0, output=100), request(10.5, output=2, number=1)], took)
    assert (late.first, late.last) == pytest.approx((1.5, 2.5))
    assert long.last == pytest.approx(100)


def test_more_than_is_let_in_is_refused() -> None:
    limits = Limits(max_running=1, max_waiting=1)
    outcomes = simulate(
        [request(0, number=each) for each in range(3)],
        replace(NOTHING, step_seconds=1),
        limits=limits,
    )
    assert [each.first for each in outcomes] == [1, 2, None]
    assert summary(outcomes, 10).refused == 1


def test_stock_servers_share_the_load_and_encode_in_the_engine() -> None:
    env = simpy.Environment()
    took = replace(NOTHING, prefill_seconds=0.001, stock_image_seconds=4)
    fleet = Fleet(env, took, stock=True)
    fleet.gateways.begin(1)
    fleet.decoders.begin(4)
    env.process(fleet.replay([request(each * 10, image=1, number=each) for each in range(8)]))
    env.run()
    # Each of them meets the image for the first time once: 1024 of 4096 patches, a second.
    assert sorted(each.first or 0 for each in fleet.outcomes) == pytest.approx(
        [0.01] * 4 + [2.066] * 4
    )


def test_scaling_down_cuts_nothing() -> None:
    env = simpy.Environment()
    fleet = Fleet(env, replace(NOTHING, step_seconds=1))
    for pool in (fleet.gateways, fleet.encoders, fleet.decoders):
        pool.begin(4)
    arrivals = [request(each, output=50, number=each) for each in range(40)]
    env.process(fleet.replay(arrivals))

    def shrink() -> simpy.events.ProcessGenerator:
        yield env.timeout(20)
        for pool in (fleet.gateways, fleet.encoders, fleet.decoders):
            pool.scale(1)
            assert len(pool.ready) == 1
        assert any(decoder.in_flight for decoder in fleet.decoders.draining)

    env.process(shrink())
    env.run()
    assert all(outcome.last is not None for outcome in fleet.outcomes)
    assert len(fleet.decoders.gone) == 3
    assert not fleet.decoders.draining


def test_a_replica_serves_once_it_has_started() -> None:
    env = simpy.Environment()
    pool = Fleet(env, NOTHING, starts=Starts(gateway=0, encoder=0, decoder=60)).decoders
    pool.begin(1)
    pool.scale(3)
    env.run(until=59)
    assert len(pool.ready) == 1
    env.run(until=61)
    assert len(pool.ready) == 3


def test_the_manifests_thresholds_scale_the_fleet_up_and_down_again() -> None:
    loaded = times.load("h200-pixtral-12b")
    tiers = from_manifest()
    env = simpy.Environment()
    fleet = Fleet(env, loaded)
    scrapes = Scrapes(fleet)
    env.process(scrapes.run())
    autoscale(fleet, own(scrapes, tiers), tiers)
    most = 0

    def watch() -> simpy.events.ProcessGenerator:
        nonlocal most
        while True:
            most = max(most, len(fleet.decoders.ready))
            yield env.timeout(15)

    env.process(watch())
    busy = trace(constant(20), highest=20, seconds=300, traffic=Traffic(), seed=1)
    env.process(fleet.replay(busy))
    env.run(until=4000)
    assert most > 2
    assert len(fleet.decoders.ready) == 2


def test_rates_of_traces() -> None:
    day = diurnal(2, 10, period=100)
    assert (day(0), day(50), day(100)) == pytest.approx((2, 10, 2))
    burst = bursts(2, factor=5, every=100, lasting=10)
    assert [burst(at) for at in (0, 50, 100, 109, 110, 205)] == [2, 2, 10, 10, 2, 10]


def test_the_plan_keeps_its_objective_and_needs_less_where_images_come_again() -> None:
    loaded = times.load("h200-pixtral-12b")
    seldom, often = (
        Planner(loaded, rate=8, slo=1.5, traffic=Traffic(reuse=reuse, output_tokens=20))
        for reuse in (0.0, 0.9)
    )
    fleets = seldom.tiers(), often.tiers()
    assert all(fleet.seen.ttft_p95 <= 1.5 for fleet in fleets)
    assert fleets[1].decoders < fleets[0].decoders
    assert fleets[0].gpu_hours_a_million(8) == pytest.approx(fleets[0].gpus * 1e6 / 8 / 3600)


def test_every_service_time_says_where_it_is_from() -> None:
    for path in times.DIRECTORY.glob("*.json"):
        assert all(entry["from"] for entry in json.loads(path.read_text("utf-8")).values())
        assert times.read(path)


def test_replicas_hold_nothing_at_the_end() -> None:
    env = simpy.Environment()
    fleet = Fleet(env, replace(NOTHING, step_seconds=0.01, tower_seconds=0.1))
    for pool in (fleet.gateways, fleet.encoders, fleet.decoders):
        pool.begin(2)
    env.process(fleet.replay(trace(constant(5), highest=5, seconds=60, traffic=Traffic(), seed=2)))
    env.run()
    everyone: list[Encoder | Decoder] = [*fleet.encoders.ready, *fleet.decoders.ready]
    assert all(replica.in_flight == 0 for replica in everyone)
    assert all(encoder.queued_patches == 0 for encoder in fleet.encoders.ready)
    assert all(decoder.kv_use == 0 for decoder in fleet.decoders.ready)


def test_a_session_s_next_request_comes_when_the_one_before_has_ended() -> None:
    env = simpy.Environment()
    fleet = Fleet(env, replace(NOTHING, step_seconds=1))
    fleet.gateways.begin(1)
    fleet.decoders.begin(1)
    sessions = [[request(0, output=2, number=chat + turn) for turn in (0, 1)] for chat in (0, 10)]
    env.process(fleet.converse(sessions, at_once=1))
    env.run()
    assert [each.request.at for each in fleet.outcomes] == [0, 2, 4, 6]
    assert [each.request.number for each in fleet.outcomes] == [0, 1, 10, 11]


def test_sticky_stock_servers_compute_an_image_on_one_of_them() -> None:
    images = [request(each, image=each % 5, number=each) for each in range(40)]
    cached = {}
    for sticky in (False, True):
        env = simpy.Environment()
        fleet = Fleet(env, NOTHING, stock=True, sticky=sticky)
        fleet.gateways.begin(1)
        fleet.decoders.begin(4)
        env.process(fleet.replay(images))
        env.run()
        cached[sticky] = sum(each.cached_tokens > 0 for each in fleet.outcomes)
    # Each of five images is new once to its server, or once to each of four.
    assert cached == {True: 40 - 5, False: 40 - 5 * 4}


def test_a_stock_server_reads_its_images_one_at_a_time() -> None:
    # An image has a quarter of 4096 patches.
    slow = replace(NOTHING, stock_host_seconds=1)
    images = [request(0, image=1, number=each) for each in range(4)]
    outcomes = simulate([*images, request(0, number=9)], slow, decoders=2, stock=True)
    assert [each.first for each in outcomes] == [0.25, 0.25, 0.5, 0.5, 0.0]
    ours = simulate(images, slow, decoders=2)
    assert [each.first for each in ours] == [0.0] * 4


def test_a_plan_splits_gpus_where_most_new_images_are_served() -> None:
    # A prompt takes three times as long as its image in the tower.
    took = replace(NOTHING, tower_seconds=0, tower_patch_seconds=1e-5, prefill_seconds=3e-5)
    assert topologies(1, took) == {"co-located": Topology(1, 1, colocated=True)}
    assert topologies(4, took) == {
        "co-located": Topology(4, 4, colocated=True),
        "split": Topology(1, 3, colocated=False),
    }
    assert topologies(8, took)["split"] == Topology(2, 6, colocated=False)
