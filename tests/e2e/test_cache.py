"""A picture is encoded once: in any conversation, by any number of callers, across restarts."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pixtral_client import Completion
from tests.support.redis_server import RedisServer
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service, wait_until

Message = dict[str, Any]


def about(*content: bytes | str) -> list[Message]:
    return [{"role": "user", "content": list(content)}]


def ask(service: Service, messages: list[Message]) -> Completion:
    return service.client.chat(messages, max_tokens=8, temperature=0, ignore_eos=True)


def test_the_same_picture_is_encoded_once(service: Service) -> None:
    picture = new_picture()
    before = service.encoded()
    first = ask(service, about(picture, "What is this?"))
    assert not first.images[0].cached
    assert service.encoded() == before + 1

    again = ask(service, about(picture, "What is this?"))
    assert again.token_ids == first.token_ids
    assert again.images[0].cached

    elsewhere = [
        *about("Hello."),
        {"role": "assistant", "content": "Hello!"},
        *about("And this,", picture, "in another conversation?", picture),
    ]
    other = ask(service, elsewhere)
    assert [image.cached for image in other.images] == [True, True]
    assert service.encoded() == before + 1


def test_twenty_callers_with_one_new_picture_encode_it_once(service: Service) -> None:
    picture = new_picture(640, 480)
    before = service.encoded()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(service, about(picture, "What is this?")), range(20)))
    assert service.encoded() == before + 1
    assert len({answer.token_ids for answer in answers}) == 1


def test_a_conversation_goes_on_from_what_the_decoder_holds(service: Service) -> None:
    opening = about(new_picture(512, 512), "What is this?")
    first = ask(service, opening)
    turns = [*opening, {"role": "assistant", "content": first.text}, *about("And why?")]
    second = ask(service, turns)
    assert second.usage.cached_tokens >= first.usage.image_tokens // 2
    assert second.usage.cached_tokens < second.usage.prompt_tokens


def test_without_redis_new_and_known_pictures_are_answered_as_before(
    service: Service, redis: RedisServer
) -> None:
    known, new = new_picture(), new_picture()
    first = ask(service, about(known, "What is this?"))
    redis.stop()
    try:
        assert ask(service, about(known, "What is this?")).token_ids == first.token_ids
        without = ask(service, about(new, "What is this?"))
        assert ask(service, about(new, "What is this?")).token_ids == without.token_ids
    finally:
        redis.start()
    assert ask(service, about(new, "What is this?")).token_ids == without.token_ids

    def is_kept_again() -> bool:
        picture = new_picture()
        answers = [ask(service, about(picture, "What is this?")) for _ in range(2)]
        return answers[1].images[0].cached

    # Each tier leaves a Redis that failed alone for a second.
    wait_until(is_kept_again, "embeddings kept")
