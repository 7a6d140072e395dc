"""Three decoders: a conversation stays on one of them, and its answer outlives it."""

import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pixtral_client import Client, Sampling, Unavailable
from pixtral_client.streams import Stream
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Tier
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service, wait_until

# Long enough that it is not over when its decoder gets its signal to end.
LONG: Sampling = {"max_tokens": 500, "temperature": 0, "ignore_eos": True}
BEGUN = 24
# Handshakes that are not answered, at their slowest, and then some.
HANG_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Trio:
    """The decoder of `service`, two that may die, and a gateway before all three.

    `pair` is a gateway that knows the two alone.
    """

    service: Service
    mortals: list[Tier]
    gateway: Tier
    pair: Tier
    client: Client

    @property
    def alive(self) -> list[Tier]:
        return [mortal for mortal in self.mortals if mortal.process.poll() is None]

    def values(self, sample: str, **labels: str) -> list[float]:
        """The value of each decoder, that of `service` last."""
        found = [mortal.value(sample, **labels) for mortal in self.alive]
        return [*found, self.service.value("decoder", sample, **labels)]

    def continued(self) -> float:
        return self.gateway.value(
            "pixtral_gateway_retries_total", tier="decoder", result="continued"
        )

    def is_idle(self) -> bool:
        return self.gateway.value("pixtral_gateway_permits_in_use") == 0


@pytest.fixture(scope="module")
def trio(
    service: Service,
    checkpoint: Path,
    redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Trio]:
    directory = tmp_path_factory.mktemp("trio")
    common = (f"--model-dir={checkpoint}", f"--redis-url={redis.url}", "--listen=127.0.0.1:0")
    engine = ("--dtype=f32", "--kv-cache-bytes=268435456")
    addresses = service.stack.addresses
    with ExitStack() as stack:

        def start(module: str, *flags: str) -> Tier:
            tier = Tier(module, directory, *common, *flags, drain_seconds=0)
            return stack.enter_context(tier)

        mortals = [start("pixtral_decoder", *engine) for _ in range(2)]
        targets = [mortal.until_ready().target for mortal in mortals]
        encoder = f"--encoders={addresses['encoder'].grpc}"
        pair = start("pixtral_gateway", encoder, f"--decoders={','.join(targets)}")
        targets.append(addresses["decoder"].grpc)
        gateway = start("pixtral_gateway", encoder, f"--decoders={','.join(targets)}")
        pair.until_ready()
        client = stack.enter_context(
            Client(gateway.until_ready().target, timeout=120, max_retries=0)
        )
        ready = ("pixtral_gateway_replicas_ready",)
        wait_until(lambda: gateway.value(*ready, tier="decoder") == 3, "three decoders")
        yield Trio(service, mortals, gateway, pair, client)


def picture_turn(number: int) -> list[dict[str, object]]:
    question = f"What is number {number}, à propos?"
    return [{"role": "user", "content": [new_picture(128, 128), question]}]


def text_turn(number: int) -> list[dict[str, object]]:
    return [{"role": "user", "content": f"Story {number}, bitte schön."}]


def on_a_mortal(
    trio: Trio,
    turn: Callable[[int], list[dict[str, object]]],
    pick_stop: Callable[[str], str] | None = None,
) -> tuple[Stream, Tier, str, tuple[int, ...]]:
    """An answer midway on a decoder that may die; and text and tokens of an undisturbed one."""
    messages, mortal = owned_by_a_mortal(trio, turn)
    sampling = LONG.copy()
    if pick_stop is not None:
        sampling["stop"] = [pick_stop(trio.client.chat(messages, **LONG).text)]
    whole = trio.client.chat(messages, **sampling)
    assert not whole.text.isascii()
    stream = trio.client.stream(messages, **sampling)
    tokens = 0
    while tokens < BEGUN:
        tokens += len(next(stream).token_ids)
    assert mortal.value("pixtral_decoder_requests_admitted")
    return stream, mortal, whole.text, whole.token_ids


def owned_by_a_mortal(
    trio: Trio, turn: Callable[[int], list[dict[str, object]]]
) -> tuple[list[dict[str, object]], Tier]:
    for number in itertools.count():
        messages = turn(number)
        before = [begun(mortal) for mortal in trio.alive]
        trio.client.chat(messages, max_tokens=1)
        for mortal, count in zip(trio.alive, before, strict=True):
            if begun(mortal) > count:
                return messages, mortal
    raise AssertionError


def begun(decoder: Tier) -> float:
    return decoder.value("grpc_server_started_total", grpc_method="Generate")


def read_to_the_end(trio: Trio, stream: Stream, text: str, token_ids: tuple[int, ...]) -> None:
    for _ in stream:
        pass
    assert stream.completion is not None
    assert stream.completion.token_ids == token_ids
    assert stream.completion.text == text
    assert stream.completion.usage.completion_tokens == len(token_ids)
    wait_until(trio.is_idle, "idle")


def converse(client: Client) -> None:
    messages: list[dict[str, object]] = [
        {"role": "user", "content": [new_picture(512, 512), "What is this?"]}
    ]
    for question in ("And that?", "Which colour?", "Are you sure?", ""):
        answer = client.chat(messages, max_tokens=24, temperature=0, ignore_eos=True)
        messages.append({"role": "assistant", "content": answer.text})
        messages.append({"role": "user", "content": question})


def test_embeddings_outlive_the_tiers_that_asked_for_them(trio: Trio) -> None:
    """A gateway and decoders that have never been shown a picture find what Redis holds."""
    messages: list[dict[str, object]] = [
        {"role": "user", "content": [new_picture(300, 200), "What is this?"]}
    ]
    sampling: Sampling = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    first = trio.service.client.chat(messages, **sampling)
    encoded = trio.service.encoded()
    with Client(trio.pair.target, timeout=120, max_retries=0) as client:
        again = client.chat(messages, **sampling)
    assert again.images[0].cached
    assert again.token_ids == first.token_ids
    assert trio.service.encoded() == encoded


def test_conversation_stays_on_one_decoder_and_reuses_what_it_holds(trio: Trio) -> None:
    hits = "vllm:prefix_cache_hits_total"
    before = trio.values(hits)[-1]
    converse(trio.service.client)
    alone = trio.values(hits)[-1] - before
    # Three further turns on a picture of about a thousand tokens.
    assert alone > 3000

    before_all = trio.values(hits), trio.values("grpc_server_started_total", grpc_method="Generate")
    converse(trio.client)
    found = [now - then for now, then in zip(trio.values(hits), before_all[0], strict=True)]
    begun = trio.values("grpc_server_started_total", grpc_method="Generate")
    assert sorted(now - then for now, then in zip(begun, before_all[1], strict=True)) == [0, 0, 4]
    assert sum(found) >= 0.9 * alone


def test_answer_of_a_decoder_that_hangs_goes_on_elsewhere(trio: Trio) -> None:
    stream, mortal, text, token_ids = on_a_mortal(trio, text_turn)
    before = trio.continued()
    mortal.process.send_signal(signal.SIGSTOP)
    try:
        read_to_the_end(trio, stream, text, token_ids)
    finally:
        mortal.process.send_signal(signal.SIGCONT)
    assert trio.continued() == before + 1
    ready = ("pixtral_gateway_replicas_ready",)
    wait_until(lambda: trio.gateway.value(*ready, tier="decoder") == 3, "back", HANG_SECONDS)


def test_answer_of_a_decoder_that_is_killed_goes_on_elsewhere(trio: Trio) -> None:
    def late(text: str) -> str:
        """Four characters that come first in the answer's second half."""
        for at in range(len(text) // 2, len(text) - 4):
            if text.index(text[at : at + 4]) == at:
                return text[at : at + 4]
        raise AssertionError("the answer repeats itself")

    stream, mortal, text, token_ids = on_a_mortal(trio, picture_turn, late)
    assert len(token_ids) > 2 * BEGUN
    before = trio.continued()
    left = psutil.Process(mortal.process.pid).children(recursive=True)
    assert left
    mortal.process.kill()
    read_to_the_end(trio, stream, text, token_ids)
    assert stream.completion is not None
    assert stream.completion.finish_reason == "stop"
    assert trio.continued() == before + 1
    wait_until(lambda: not any(is_alive(process) for process in left), "its processes have ended")


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_answer_goes_on_when_its_decoders_grace_is_over_unless_there_is_no_other(
    trio: Trio,
) -> None:
    for spare in trio.alive[1:]:
        spare.process.kill()
        spare.process.wait()
    ready = ("pixtral_gateway_replicas_ready",)
    wait_until(lambda: trio.pair.value(*ready, tier="decoder") == 1, "one of the pair")
    with Client(trio.pair.target, timeout=120, max_retries=0) as client:
        lone = client.stream(text_turn(0), max_tokens=8000, ignore_eos=True)
        next(lone)
        stream, mortal, text, token_ids = on_a_mortal(trio, picture_turn)
        before = trio.continued()
        mortal.process.terminate()
        read_to_the_end(trio, stream, text, token_ids)
        assert trio.continued() == before + 1

        with pytest.raises(Unavailable) as refused:
            for _ in lone:
                pass
        assert refused.value.retry_after
        assert trio.pair.value("pixtral_gateway_permits_in_use") == 0
        with pytest.raises(Unavailable) as refused:
            client.chat(text_turn(1), max_tokens=1)
        assert refused.value.retry_after
    assert mortal.exit_code() == 0
