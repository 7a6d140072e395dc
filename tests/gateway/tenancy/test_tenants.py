import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client import REGISTRY

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_cli import main
from pixtral_core.concurrency.shared_counts import SharedCounts
from pixtral_core.errors import (
    InvalidRequest,
    Overloaded,
    StartupError,
    Unauthenticated,
    from_rpc_error,
)
from pixtral_core.server.grpc_interceptor import given_up_for
from pixtral_core.server.process import running
from pixtral_gateway.process import GatewayTier
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.settings import GatewaySettings
from pixtral_gateway.tenancy.tenants import Budget, Tenant, TenantFile, Tenants, digest_of
from tests.support.fake_tiers import FakeDecoder, FakeEncoder
from tests.support.gateway_harness import Harness, ask, eventually
from tests.support.gateway_pictures import image, picture, text, user
from tests.support.http2 import Http2Sender
from tests.support.redis_server import RedisServer

ACME = 'keys = ["' + digest_of("key-of-acme") + '"]\n'
OTHER = 'keys = ["' + digest_of("key-of-other") + '"]\n'


def written(directory: Path, contents: str) -> Path:
    path = directory / "tenants.toml"
    path.write_text(contents)
    return path


def test_a_key_says_whose_a_call_is(tmp_path: Path) -> None:
    second = f'["{digest_of("older")}", "{digest_of("newer")}"]'
    tenants = Tenants(written(tmp_path, f"[acme]\n{ACME}[other]\nkeys = {second}\n"))
    assert len(tenants) == 2
    assert tenants.of("Bearer key-of-acme").name == "acme"
    assert tenants.of("bearer  older ").name == "other"
    assert tenants.of("Bearer newer") is tenants.of("Bearer older")


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        ("", "API_KEY_MISSING"),
        ("key-of-acme", "API_KEY_MISSING"),
        ("Basic key-of-acme", "API_KEY_MISSING"),
        ("Bearer ", "API_KEY_INVALID"),
        ("Bearer key-of-acm", "API_KEY_INVALID"),
        ("Bearer KEY-OF-ACME", "API_KEY_INVALID"),
        ("Bearer " + digest_of("key-of-acme"), "API_KEY_INVALID"),
        ("Bearer \udcff", "API_KEY_INVALID"),
    ],
)
def test_without_a_valid_key_nobody_is_let_in(
    tmp_path: Path, authorization: str, reason: str
) -> None:
    tenants = Tenants(written(tmp_path, f"[acme]\n{ACME}"))
    with pytest.raises(Unauthenticated) as refused:
        tenants.of(authorization)
    assert refused.value.reason == reason
    assert "acm" not in refused.value.message


@pytest.mark.parametrize("headers", [(), ("Bearer key-of-acme",) * 2, ("", "Bearer key-of-acme")])
def test_one_header_says_who_asks_and_no_more(tmp_path: Path, headers: tuple[str, ...]) -> None:
    tenants = Tenants(written(tmp_path, f"[acme]\n{ACME}"))
    with pytest.raises(Unauthenticated) as refused:
        tenants.of(*headers)
    assert refused.value.reason == "API_KEY_MISSING"


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ("", "must name 1 to"),
        ("[acme", "is not TOML"),
        ("[acme]\n", "acme.keys"),
        ("[acme]\nkeys = []\n", "acme.keys"),
        ('[acme]\nkeys = ["secret"]\n', "sha256: and 64"),
        (f"[Acme]\n{ACME}", "a tenant's name"),
        (f"[a]\n{ACME}[b]\n{ACME}", "same key"),
        (f"[acme]\n{ACME}tokens_per_minute = 0\n", "acme.tokens_per_minute"),
        (f"[acme]\n{ACME}token_per_minute = 5\n", "acme.token_per_minute"),
    ],
)
def test_a_file_that_is_wrong_ends_the_start(tmp_path: Path, contents: str, told: str) -> None:
    path = written(tmp_path, contents)
    with pytest.raises(StartupError, match=told) as failed:
        Tenants(path)
    assert "secret" not in str(failed.value)


async def test_the_file_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pixtral_gateway.tenancy.tenants.RELOAD_SECONDS", 0.02)
    path = written(tmp_path, f"[acme]\n{ACME}requests_at_once = 1\n")
    tenants = Tenants(path)
    acme = tenants.of("Bearer key-of-acme")
    tenants.start()

    def exchange(contents: str) -> None:
        # As a mounted Secret changes: another file in the place of the first.
        another = tmp_path / "another"
        another.write_text(contents)
        another.replace(path)

    try:
        with acme.request(0):
            exchange("[acme\n")
            await eventually(lambda: "stay in force" in caplog.text)
            assert tenants.of("Bearer key-of-acme") is acme
            exchange(f"[acme]\n{ACME}requests_at_once = 2\n[other]\n{OTHER}")
            await eventually(lambda: len(tenants) == 2)
            assert tenants.of("Bearer key-of-acme") is acme
            with acme.request(0):
                assert acme.in_use == 2
        assert tenants.of("Bearer key-of-other").name == "other"
        exchange(f"[other]\n{OTHER}")
        await eventually(lambda: len(tenants) == 1)
        with pytest.raises(Unauthenticated):
            tenants.of("Bearer key-of-acme")
    finally:
        await tenants.stop()


async def test_what_runs_for_a_key_ends_when_it_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixtral_gateway.tenancy.tenants.RELOAD_SECONDS", 0.02)
    path = written(tmp_path, f"[acme]\n{ACME}[other]\n{OTHER}")
    tenants = Tenants(path)
    tenants.start()

    async def run(key: str) -> None:
        tenants.serve(f"Bearer {key}")
        await asyncio.Event().wait()

    runs = [asyncio.create_task(run(key)) for key in ("key-of-acme", "key-of-other")]
    await asyncio.sleep(0)
    try:
        path.write_text(f"[other]\n{OTHER}")
        with pytest.raises(asyncio.CancelledError) as ended:
            await runs[0]
        # As the interceptor and the middleware tell it to the client.
        told = given_up_for(ended.value)
        assert isinstance(told, Unauthenticated)
        assert told.reason == "API_KEY_INVALID"
        assert not runs[1].done()
    finally:
        runs[1].cancel()
        await tenants.stop()


def test_limits_are_refused_at_once_with_a_time_to_retry(tmp_path: Path) -> None:
    limits = "requests_at_once = 2\ntokens_per_minute = 600\nimages_per_minute = 60\n"
    tenant = Tenants(written(tmp_path, f"[acme]\n{ACME}{limits}")).of("Bearer key-of-acme")

    def refused(images: int) -> Overloaded:
        with pytest.raises(Overloaded) as refusal, tenant.request(images):
            pass
        assert refusal.value.reason == "TENANT_LIMIT"
        assert refusal.value.retry_after
        return refusal.value

    with tenant.request(0), tenant.request(0):
        assert "requests" in refused(0).message
    with tenant.request(61):
        pass
    assert "images" in refused(1).message
    with tenant.request(0):
        tenant.use("prompt", 500)
        tenant.use("completion", 700)
    refusal = refused(0)
    assert "tokens" in refusal.message
    # 600 too many, at 10 a second.
    assert refusal.retry_after == pytest.approx(60, abs=5)
    assert tenant.in_use == 0


def test_only_who_may_goes_ahead_of_others(tmp_path: Path) -> None:
    tables = f"[acme]\n{ACME}highest_priority = -10\n[other]\n{OTHER}"
    tenants = Tenants(written(tmp_path, tables))
    acme, other = (tenants.of(f"Bearer key-of-{name}") for name in ("acme", "other"))
    for tenant, highest in ((acme, -10), (other, 0)):
        tenant.check_priority(highest)
        tenant.check_priority(7)
        with pytest.raises(InvalidRequest) as refused:
            tenant.check_priority(highest - 1)
        assert refused.value.reason == "PRIORITY_NOT_ALLOWED"


def test_a_budget_gathers_a_minute_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    budget = Budget(60, since=now)
    budget.take(60)
    assert budget.wait() == pytest.approx(1)
    now += 1
    assert budget.wait() == pytest.approx(0)
    budget.take(31)
    assert budget.wait() == pytest.approx(31)
    now += 3600
    budget.take(60)
    assert budget.wait() == pytest.approx(1)
    assert Budget(None).wait() == 0


def test_a_gateway_that_others_reach_asks_who_they_are(tmp_path: Path) -> None:
    told = {"model_dir": tmp_path, "decoders": ("127.0.0.1:1",), "allow_insecure": True}
    with pytest.raises(ValueError, match="set api_keys, or allow_anonymous"):
        GatewaySettings(listen="10.0.0.1:50051", **told)  # type: ignore[arg-type]
    GatewaySettings(listen="10.0.0.1:50051", allow_anonymous=True, **told)  # type: ignore[arg-type]
    path = written(tmp_path, f"[acme]\n{ACME}")
    GatewaySettings(listen="10.0.0.1:50051", api_keys=path, **told)  # type: ignore[arg-type]


def test_the_command_makes_a_key_and_its_digest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["key"]) == 0
    key, digest = capsys.readouterr().out.splitlines()
    assert digest == f'keys = ["{digest_of(key.removeprefix("PIXTRAL_API_KEY="))}"]'
    main.main(["key"])
    assert key not in capsys.readouterr().out


async def test_a_tenant_has_caches_of_its_own(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder], tmp_path: Path
) -> None:
    tenants = Tenants(written(tmp_path, f"[acme]\n{ACME}[other]\n{OTHER}"))
    message = user(image(picture(40, 30)), text("What is this?"))
    for key in ("acme", "other", "acme"):
        asked = ask(message, tenant=tenants.of(f"Bearer key-of-{key}"))
        async for _ in gateway.pipeline.stream(asked):
            pass
    scopes = {call.scope for encoder in encoders for call in encoder.calls}
    assert scopes == {"acme", "other"}
    calls = [call for decoder in decoders for call in decoder.calls]
    assert sorted(call.cache_salt for call in calls) == ["acme", "acme", "other"]
    for call in calls:
        assert [placed.key.scope for placed in call.images] == [call.cache_salt]


@asynccontextmanager
async def serving_tenants(
    path: Path,
    model_dir: Path,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    redis: RedisServer,
) -> AsyncIterator[tuple["chat_pb2_grpc.ChatServiceAsyncStub", str, str]]:
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        model_dir=model_dir,
        encoders=tuple(encoder.address for encoder in encoders),
        decoders=tuple(decoder.address for decoder in decoders),
        redis_url=redis.url,
        api_keys=path,
        drain_seconds=5,
    )
    async with (
        running(GatewayTier(settings), settings) as addresses,
        grpc.aio.insecure_channel(addresses.grpc) as channel,
    ):
        yield chat_pb2_grpc.ChatServiceStub(channel), f"http://{addresses.http}", addresses.grpc


async def test_every_method_asks_for_a_key(
    model_dir: Path,
    prompts: PromptEncoder,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    redis: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PromptEncoder, "load", lambda *_: prompts)
    path = written(tmp_path, f"[acme]\n{ACME}")
    messages = [user(text("Hello?"))]
    before = REGISTRY.get_sample_value(
        "pixtral_gateway_tenant_tokens_total", {"tenant": "acme", "kind": "prompt"}
    )
    async with serving_tenants(path, model_dir, encoders, decoders, redis) as (stub, url, _):
        await _over_http(url)
        calls = {
            stub.Complete: chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=messages)),
            stub.CountTokens: chat_pb2.CountTokensRequest(chat=chat_pb2.Chat(messages=messages)),
            stub.ListModels: chat_pb2.ListModelsRequest(),
        }
        for method, request in calls.items():
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await method(request, metadata=metadata)  # type: ignore[operator]
                assert isinstance(from_rpc_error(failed.value), Unauthenticated)
            await method(request, metadata=(("authorization", "Bearer key-of-acme"),))  # type: ignore[operator]
        stream = stub.StreamComplete(
            chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=messages))
        )
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stream.read()
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    used = REGISTRY.get_sample_value(
        "pixtral_gateway_tenant_tokens_total", {"tenant": "acme", "kind": "prompt"}
    )
    assert used is not None
    assert used > (before or 0)


@pytest.mark.parametrize("method", ["Complete", "StreamComplete", "CountTokens", "PutImage"])
async def test_without_a_key_nothing_of_a_message_is_waited_for(
    model_dir: Path,
    prompts: PromptEncoder,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    redis: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    monkeypatch.setattr(PromptEncoder, "load", lambda *_: prompts)
    path = written(tmp_path, f"[acme]\n{ACME}")
    async with (
        serving_tenants(path, model_dir, encoders, decoders, redis) as (_, url, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        # For the client a stream, so that it can begin without a message.
        call: Any = channel.stream_stream(f"/pixtral.v1.ChatService/{method}")(timeout=60)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

        host, _, port = url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 60000000\r\n\r\n"
        )
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def _over_http(url: str) -> None:
    messages = [{"role": "user", "content": "Hello?"}]
    routes: list[tuple[str, str, Any]] = [
        ("POST", "/v1/chat/completions", {"messages": messages}),
        ("POST", "/v1/chat/completions", {"messages": messages, "stream": True}),
        ("POST", "/tokenize", {"messages": messages}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/pixtral-small", None),
    ]
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as session:
        for method, route, body in routes:
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                refused = await session.request(method, route, json=body, headers=headers)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"] == "Bearer"
                assert refused.json()["error"]["code"] == "invalid_api_key"
            answered = await session.request(
                method, route, json=body, headers={"Authorization": "Bearer key-of-acme"}
            )
            assert answered.status_code == 200
        assert (await session.get("/health")).status_code == 200


async def test_a_message_that_comes_counts_among_its_tenants_requests(
    tmp_path: Path,
    model_dir: Path,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PromptEncoder, "load", lambda *_: prompts)
    keys = written(tmp_path, f"[acme]\n{ACME}requests_at_once = 1\n[other]\n{OTHER}")
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        model_dir=model_dir,
        decoders=[decoder.address for decoder in decoders],
        redis_url=redis.url,
        max_concurrent_requests=16,
        api_keys=keys,
    )
    async with running(GatewayTier(settings), settings) as addresses:
        path, key = "/pixtral.v1.ChatService/StreamComplete", "Bearer key-of-acme"
        sender = Http2Sender(addresses.grpc, path, ("authorization", key))
        await asyncio.to_thread(sender.send, 1000, 1 << 20)
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
            request = chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[user(text("a"))]))

            async def complete(who: str) -> None:
                metadata = (("authorization", f"Bearer key-of-{who}"),)
                await stub.Complete(request, metadata=metadata)

            await complete("other")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await complete("acme")
            assert from_rpc_error(refused.value).reason == "TENANT_LIMIT"
            sender.close()
            async with asyncio.timeout(60):
                while True:
                    try:
                        await complete("acme")
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.01)


def test_workers_have_one_limit_of_each_kind(tmp_path: Path) -> None:
    read = TenantFile(keys=("k",), requests_at_once=2, tokens_per_minute=100, images_per_minute=3)
    first, second = (Tenant.counted("a", SharedCounts(tmp_path, own, 2)) for own in range(2))
    for each in (first, second):
        each.limit(read)
    with first.request(1), second.request(1):
        for each in (first, second):
            with pytest.raises(Overloaded, match="requests"), each.request(0):
                pass
    with first.request(1), pytest.raises(Overloaded, match="images"), second.request(1):
        pass
    first.use("prompt", 60)
    second.check_room()
    second.use("completion", 60)
    for each in (first, second):
        with pytest.raises(Overloaded, match="tokens"):
            each.check_room()
    # The amount that another worker took before the limit changed does not count against the new
    # one.
    second.limit(read.model_copy(update={"tokens_per_minute": 200}))
    second.check_room()
