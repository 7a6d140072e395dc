"""Answers come as they are made, and stop being made when nobody waits for them."""

import itertools

import pytest

from pixtral_client import DeadlineExceeded, Sampling
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service, wait_until

# More tokens than the engine makes before a test has done what it wants to.
MANY = 20_000


def test_deltas_add_up_to_the_whole_answer(service: Service) -> None:
    messages = [{"role": "user", "content": [new_picture(), "Tell me all."]}]
    options: Sampling = {"max_tokens": 48, "temperature": 0, "ignore_eos": True}
    whole = service.client.chat(messages, **options)
    with service.client.stream(messages, **options) as stream:
        deltas = list(stream)
    assert stream.completion is not None
    assert "".join(delta.text for delta in deltas) == whole.text == stream.completion.text
    ids = tuple(itertools.chain.from_iterable(delta.token_ids for delta in deltas))
    assert ids == whole.token_ids
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert stream.completion.usage.completion_tokens == 48
    # Neither one message in all nor one a character.
    assert 8 <= len(deltas) <= 49


def test_the_first_delta_comes_before_the_last_token_and_cancel_stops_the_engine(
    service: Service,
) -> None:
    wait_until(service.is_idle, "idle before")
    before = service.generated()
    messages = [{"role": "user", "content": "Go on and on."}]
    with service.client.stream(messages, max_tokens=MANY, ignore_eos=True) as stream:
        assert next(stream).token_ids
        assert service.running() == 1
        assert service.permits() == 1
    wait_until(service.is_idle, "engine stopped and permit freed after the cancel")
    assert 0 < service.generated() - before < MANY


def test_a_deadline_is_told_and_stops_the_engine(service: Service) -> None:
    wait_until(service.is_idle, "idle before")
    before = service.generated()
    messages = [{"role": "user", "content": "Go on and on."}]
    # Until there is time enough for a token.
    for seconds in (1.0, 3.0, 9.0):
        with pytest.raises(DeadlineExceeded):
            list(service.client.stream(messages, max_tokens=MANY, ignore_eos=True, timeout=seconds))
        wait_until(service.is_idle, "engine stopped and permit freed after the deadline")
        if service.generated() > before:
            break
    assert 0 < service.generated() - before < MANY
    with pytest.raises(DeadlineExceeded):
        service.client.chat(messages, max_tokens=MANY, ignore_eos=True, timeout=0.5)
    wait_until(service.is_idle, "the same without streaming")


def test_a_stop_string_ends_the_answer_before_it(service: Service) -> None:
    messages = [{"role": "user", "content": "Tell me."}]
    whole = service.client.chat(messages, max_tokens=32, temperature=0, ignore_eos=True)
    stop = whole.text[len(whole.text) // 2 :][:4]
    stopped = service.client.chat(
        messages, max_tokens=32, temperature=0, ignore_eos=True, stop=[stop]
    )
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_the_timings_are_those_of_one_call(service: Service) -> None:
    picture = new_picture(256, 256)
    messages = [{"role": "user", "content": [picture, "What is this?"]}]
    new = service.client.chat(messages, max_tokens=4)
    assert 0 < new.timings.encode <= new.timings.time_to_first_token <= new.timings.total
    assert 0 <= new.timings.queue < new.timings.total
    again = service.client.chat(messages, max_tokens=4)
    assert again.timings.encode == 0
    assert again.usage.completion_tokens == 4
