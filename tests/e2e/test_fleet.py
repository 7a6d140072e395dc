"""Replicas come and go under load, and no caller notices."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from pixtral_client import Client
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Load, Names, Streams, Tier
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service, wait_until

# An answer this long takes seconds, and so is not over when a process gets its signal to end.
TOKENS = 300
ELSEWHERE = "127.0.0.2"
SHARE_SECONDS = 60.0


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(tmp_path / "names.json")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Starts replicas beside those of `service`, which are the first ones behind each name."""

    service: Service
    names: Names
    directory: Path
    model: tuple[str, ...]

    def gateway(self) -> Tier:
        addresses = self.service.stack.addresses
        found = [
            f"--{tier}s=dns:///{tier}:{_port(addresses[tier].grpc)}"
            for tier in ("encoder", "decoder")
        ]
        flags = (*self.model, *found, "--listen=127.0.0.1:0", "--allow-insecure")
        names = str(self.names.path)
        return Tier("tests.e2e.gateway_by_names", self.directory, *flags, PIXTRAL_TEST_NAMES=names)

    def another(self, tier: str) -> Tier:
        """At the first one's port of another address: as behind one name."""
        listen = f"{ELSEWHERE}:{_port(self.service.stack.addresses[tier].grpc)}"
        flags = (*self.model, f"--listen={listen}", "--dtype=f32")
        return Tier(f"pixtral_{tier}", self.directory, *flags)


def _port(address: str) -> str:
    return address.rpartition(":")[2]


@pytest.fixture
def fleet(
    checkpoint: Path, redis: RedisServer, service: Service, names: Names, tmp_path: Path
) -> Fleet:
    model = (f"--model-dir={checkpoint}", f"--redis-url={redis.url}")
    return Fleet(service, names, tmp_path, model)


def ask_about_new_pictures(client: Client, number: int, side: int = 48) -> None:
    def ask(_: int) -> None:
        content = [new_picture(side, side), "What is this?"]
        client.chat([{"role": "user", "content": content}], max_tokens=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(number)))


def encoded(encoder: Tier) -> float:
    return encoder.value("pixtral_encoder_images_encoded_total")


def begun(decoder: Tier) -> float:
    return decoder.value("grpc_server_started_total", grpc_method="Generate")


def open_streams(decoder: Tier) -> float:
    return decoder.value("pixtral_decoder_requests_admitted")


def test_replicas_come_and_go_under_load(fleet: Fleet, names: Names) -> None:
    with (
        fleet.gateway() as gateway,
        Client(gateway.until_ready().target, timeout=120, max_retries=0) as client,
        fleet.another("encoder") as encoder,
        fleet.another("decoder") as decoder,
    ):
        encoder.until_ready()
        decoder.until_ready()
        with Load().running(client) as load:
            come_and_go(names, client, load, encoder, decoder)


def come_and_go(names: Names, client: Client, load: Load, encoder: Tier, decoder: Tier) -> None:
    load.until_more(2)
    assert (encoded(encoder), begun(decoder)) == (0, 0)
    names.add("encoder", ELSEWHERE)
    names.add("decoder", ELSEWHERE)
    wait_until(lambda: encoded(encoder) > 0 and begun(decoder) > 0, "a share", SHARE_SECONDS)
    before = encoded(encoder), begun(decoder)
    ask_about_new_pictures(client, 60)
    # Half of sixty, give or take chance: for less than a sixth it is 1 in 25 million.
    assert encoded(encoder) - before[0] >= 10
    assert begun(decoder) - before[1] >= 10

    streams = Streams(client, TOKENS)
    decoder.drain()
    assert open_streams(decoder) > 0
    load.until_more(10)
    streams.read_to_the_end()
    assert decoder.exit_code() == 0
    names.remove("decoder", ELSEWHERE)

    streams = Streams(client, TOKENS)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_about_new_pictures, client, 40, side=512)
        wait_until(lambda: encoder.value("pixtral_encoder_queued_patches") > 0, "work")
        encoder.drain()
        asking.result()
    load.until_more(10)
    streams.read_to_the_end()
    assert encoder.exit_code() == 0


def test_a_gateway_goes_while_another_stays(fleet: Fleet) -> None:
    with fleet.gateway() as one, fleet.gateway() as other:
        targets = [gateway.until_ready().target for gateway in (one, other)]
        with Client(f"ipv4:{','.join(targets)}", timeout=120, max_retries=0) as client:
            streams = Streams(client, TOKENS)
            leaving = one if one.value("pixtral_gateway_permits_in_use") else other
            leaving.drain()
            assert leaving.value("pixtral_gateway_permits_in_use") > 0
            ask_about_new_pictures(client, 10)
            streams.read_to_the_end()
            assert leaving.exit_code() == 0
