"""Sessions as the simulation has them, and the figures that it makes of them."""

import pytest

from bench.decoder import PIXTRAL_12B
from bench.fleet.prediction import first_turn, kv_tokens, predict, requests
from bench.fleet.sides import COLOCATED, ROUND_ROBIN, SPLIT, STICKY
from bench.simulation import times
from bench.simulation.plan import Topology, topologies
from bench.workloads import Workload, chats, for_fleet, servegen, zipf
from pixtral_core.model.vision_spec import VisionSpec

VISION = VisionSpec.from_params(PIXTRAL_12B)
TIMES = times.load("h200-pixtral-12b-vllm-0.33")


def test_a_chats_later_turns_follow_what_was_computed() -> None:
    (session, *_) = first_turn(chats(), is_small=False)
    first, *later = requests(session, VISION, iter(range(6)))
    assert first.patches == 4096
    assert 20 < first.text_tokens < 40
    before = [(first.becomes, first.text_tokens)]
    for each in later:
        assert each.image == first.image
        assert list(each.before) == before
        before.append((each.becomes, each.text_tokens))


def test_several_images_are_as_many_patches() -> None:
    sessions = first_turn(servegen(), is_small=False)
    (session,) = [each for each in sessions if len(each[0].shown) == 4][:1]
    (request,) = requests(session, VISION, iter([0]))
    assert request.patches > 4 * 400
    assert request.output_tokens == session[0].output_tokens
    assert request.becomes == ""


def test_room_for_keys_and_values_follows_from_the_model() -> None:
    # 40 layers, 8 heads of 128, keys and values of two bytes.
    assert kv_tokens(PIXTRAL_12B, 30 * 10**9) == 183_105


def test_sticky_servers_compute_an_image_once_each_and_others_again() -> None:
    workload = zipf(images=60, at_once=32, requests=320)
    sessions = first_turn(workload, is_small=False)
    found = {
        side: predict(side, Topology(0, 2, False), workload, sessions, VISION, TIMES, gateways=2)
        for side in (ROUND_ROBIN, STICKY)
    }
    shares = {side: each["prompt_cached_share"] for side, each in found.items()}
    assert shares[STICKY] > shares[ROUND_ROBIN] > 0.5


@pytest.mark.parametrize("workload", for_fleet(2), ids=lambda each: each.name)
def test_every_request_is_answered_as_long_as_it_asks_to_be(workload: Workload) -> None:
    sessions = first_turn(workload, is_small=False)
    for name, topology in topologies(2, TIMES).items():
        side = {"split": SPLIT, "co-located": COLOCATED}[name]
        found = predict(side, topology, workload, sessions, VISION, TIMES, gateways=4)
        assert found["answered"] == found["sent"] == sum(map(len, sessions))
        assert (found["tpot"] is None) == (workload.name == "new images")


def test_twice_the_servers_answer_twice_as_many_new_images() -> None:
    rates = []
    for count in (1, 2):
        workload = for_fleet(count)[0]
        sessions = first_turn(workload, is_small=False)
        topology = Topology(0, count, False)
        found = predict(ROUND_ROBIN, topology, workload, sessions, VISION, TIMES, count)
        rates.append(found["answered_per_second"])
    assert rates[1] / rates[0] == pytest.approx(2, rel=0.1)
