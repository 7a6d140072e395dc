"""One tenant learns nothing of another's pictures, and takes nothing of its share."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pixtral_client import Client, Completion, Overloaded
from pixtral_gateway.tenancy.tenants import digest_of
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Tier
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service

AT_ONCE = 2
TENANTS = f"""
[loud]
keys = ["{digest_of("key-of-loud")}"]
requests_at_once = {AT_ONCE}
[quiet]
keys = ["{digest_of("key-of-quiet")}"]
"""


@pytest.fixture
def gateway(
    checkpoint: Path, redis: RedisServer, service: Service, tmp_path: Path
) -> Iterator[Tier]:
    """Beside that of `service`, with tenants."""
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(TENANTS, "utf-8")
    addresses = service.stack.addresses
    flags = [
        "--listen=127.0.0.1:0",
        f"--model-dir={checkpoint}",
        f"--redis-url={redis.url}",
        f"--api-keys={tenants}",
        f"--encoders={addresses['encoder'].grpc}",
        f"--decoders={addresses['decoder'].grpc}",
    ]
    with Tier("pixtral_gateway", tmp_path, *flags) as tier:
        yield tier.until_ready()


def client_of(gateway: Tier, tenant: str) -> Client:
    return Client(gateway.target, api_key=f"key-of-{tenant}", timeout=120, max_retries=0)


def test_a_picture_that_another_tenant_has_shown_is_as_new(service: Service, gateway: Tier) -> None:
    picture = new_picture(256, 256)

    def ask(client: Client) -> Completion:
        content = [picture, "What is this?"]
        return client.chat(
            [{"role": "user", "content": content}], max_tokens=4, temperature=0, ignore_eos=True
        )

    with client_of(gateway, "loud") as loud, client_of(gateway, "quiet") as quiet:
        before = service.encoded()
        first, again = ask(loud), ask(loud)
        assert (first.images[0].cached, again.images[0].cached) == (False, True)
        assert service.encoded() == before + 1
        # The keys and values of its prompt are held for its own next request.
        assert again.usage.cached_tokens > 0

        other = ask(quiet)
        assert not other.images[0].cached
        assert service.encoded() == before + 2
        # Nothing that would make the answer faster comes from the other's: neither is seen in time.
        assert other.timings.encode > 0
        assert other.usage.cached_tokens == 0
        assert other.token_ids == first.token_ids
        assert ask(quiet).images[0].cached


def test_a_flood_is_refused_and_nobody_else(gateway: Tier) -> None:
    over = threading.Event()
    refusals: list[Overloaded] = []

    def flood(client: Client) -> None:
        while not over.is_set():
            try:
                client.chat([{"role": "user", "content": "Again!"}], max_tokens=16, ignore_eos=True)
            except Overloaded as refusal:
                refusals.append(refusal)
                over.wait(0.05)

    with (
        client_of(gateway, "loud") as loud,
        client_of(gateway, "quiet") as quiet,
        ThreadPoolExecutor(10 * AT_ONCE) as pool,
    ):
        floods = [pool.submit(flood, loud) for _ in range(10 * AT_ONCE)]
        try:
            for number in range(20):
                # Raises where it is refused.
                quiet.chat(
                    [{"role": "user", "content": f"Question {number}?"}],
                    max_tokens=4,
                    ignore_eos=True,
                )
        finally:
            over.set()
        for each in floods:
            each.result()
    assert refusals
    assert {refusal.reason for refusal in refusals} == {"TENANT_LIMIT"}
    assert all(refusal.retry_after for refusal in refusals)
    counted = "pixtral_gateway_tenant_refusals_total"
    assert gateway.value(counted, tenant="loud", limit="requests") == len(refusals)
    assert gateway.value(counted, tenant="quiet") == 0
