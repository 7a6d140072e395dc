"""The HTTP server beside gRPC: readiness, drain, clients that go away or do not read, ids."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.errors import StartupError
from pixtral_core.server.process import running
from pixtral_gateway.api.http import bounded_protocol, server
from pixtral_gateway.process import GatewayTier
from pixtral_gateway.settings import GatewaySettings
from tests.support.certificate_authority import Authority
from tests.support.fake_tiers import FakeDecoder, FakeEncoder, Responses, delta, never_ends
from tests.support.gateway_harness import Client, eventually, ever_longer, gateway, permits
from tests.support.gateway_pictures import text, user
from tests.support.http_chat import CHAT, HELLO, LOOK
from tests.support.log_lines import logged
from tests.support.stack.span_collector import Collector, collector

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STREAM = {"messages": HELLO, "stream": True}


def requests(**labels: str) -> float:
    return REGISTRY.get_sample_value("http_requests_total", labels) or 0.0


def cancelled(decoders: list[FakeDecoder]) -> int:
    return sum(decoder.cancelled for decoder in decoders)


async def first_chunk(response: httpx.Response) -> AsyncIterator[str]:
    """The rest of the stream, once its first events are there."""
    lines = response.aiter_lines()
    assert (await anext(lines)).startswith("data: ")
    return lines


async def test_models_version_and_health(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    one = (await http.get("/v1/models/pixtral-small")).json()
    health = await http.get("/health")

    assert listed == {"object": "list", "data": [one]}
    assert (one["id"], one["object"], one["max_model_len"]) == ("pixtral-small", "model", 32_768)
    assert isinstance(one["created"], int)
    assert (health.status_code, health.text) == (200, "")
    assert (await http.get("/version")).json().keys() == {"version"}


async def test_tokens_are_those_of_the_prompt(
    http: httpx.AsyncClient, client: Client, decoders: list[FakeDecoder]
) -> None:
    told = (await http.post("/tokenize", json={"messages": LOOK})).json()
    usage = (await http.post(CHAT, json={"messages": LOOK})).json()["usage"]

    (call,) = (call for decoder in decoders for call in decoder.calls)
    assert told["tokens"] == list(call.prompt_token_ids)
    assert told["count"] == len(told["tokens"]) == usage["prompt_tokens"]
    assert told["max_model_len"] == 32_768


async def test_a_text_is_tokenized_by_itself(http: httpx.AsyncClient) -> None:
    with_bos = (await http.post("/tokenize", json={"prompt": "Hello [INST]?"})).json()
    without = (
        await http.post("/tokenize", json={"prompt": "Hello [INST]?", "add_special_tokens": False})
    ).json()
    neither = await http.post("/tokenize", json={})

    assert with_bos["tokens"] == [1, *without["tokens"]]
    assert min(without["tokens"]) >= 1000
    assert neither.status_code == 400


async def test_a_client_that_goes_away_stops_the_decoder_and_frees_its_permit(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    async with http.stream("POST", CHAT, json=STREAM) as response:
        await first_chunk(response)
        assert permits() == 1
    await eventually(lambda: cancelled(decoders) == 1)
    await eventually(lambda: permits() == 0)

    with logged() as lines:
        asking = asyncio.create_task(http.post(CHAT, json={"messages": HELLO}))
        await eventually(lambda: permits() == 1)
        await eventually(lambda: sum(len(decoder.calls) for decoder in decoders) == 2)
        asking.cancel()
        await eventually(lambda: cancelled(decoders) == 2)
        await eventually(lambda: permits() == 0)
        await lines.become(lambda seen: seen.calls)
        (line,) = lines.calls
        assert (line["code"], line["http_status"]) == ("CANCELLED", 499)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_while_its_image_is_encoded_is_no_error(
    http: httpx.AsyncClient,
    encoders: list[FakeEncoder],
    caplog: pytest.LogCaptureFixture,
    is_stream: bool,
) -> None:
    for encoder in encoders:
        encoder.hold.clear()
    with logged() as lines:
        asking = asyncio.create_task(
            http.post(CHAT, json={"messages": LOOK, "stream": is_stream}),
        )
        await eventually(lambda: any(encoder.calls for encoder in encoders))
        asking.cancel()
        await eventually(lambda: sum(encoder.cancelled for encoder in encoders) == 1)
        await eventually(lambda: permits() == 0)
        await lines.become(lambda seen: seen.calls)
        (line,) = lines.calls
    assert (line["code"], line["http_status"]) == ("CANCELLED", 499)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_client_that_does_not_read_holds_back_the_decoder(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    made, has_ended = 0, False

    async def floods(_: decoder_pb2.GenerateRequest) -> Responses:
        nonlocal made, has_ended
        try:
            while True:
                made += 1
                yield delta("word " * 200, 1001)
        finally:
            has_ended = True

    for decoder in decoders:
        decoder.behaviours = [floods]
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    body = json.dumps(STREAM)
    with closing(socket.socket()) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        # It stands still once what lies between is full, some megabytes at most: others are
        # answered again and again, and not a word more is made.
        before = still = 0
        async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False, timeout=60) as other:
            while still < 20:
                still, before = (still + 1 if made == before > 0 else 0), made
                assert made < 20_000
                assert (await other.get(f"{client.url}/health")).status_code == 200
    await eventually(lambda: permits() == 0)
    await eventually(lambda: has_ended)


async def test_a_client_that_does_not_read_is_given_up_at_the_deadline(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    async def floods(_: decoder_pb2.GenerateRequest) -> Responses:
        while True:
            yield delta("word " * 200, 1001)

    for decoder in decoders:
        decoder.behaviours = [floods]
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    body = json.dumps(STREAM)
    for seconds in ever_longer():
        # The settings are frozen for everyone else.
        object.__setattr__(client.settings, "request_timeout_seconds", seconds)
        with closing(socket.socket()) as slow, logged() as lines:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((host, int(port)))
            slow.sendall(
                f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n{body}".encode()
            )
            await lines.become(lambda seen: seen.calls)
            (line,) = lines.calls
        assert line["code"] == "DEADLINE_EXCEEDED"
        assert permits() == 0
        if line["http_status"] == 200:
            break
    assert line["http_status"] == 200


async def test_until_it_is_ready_it_says_so(settings: GatewaySettings, tmp_path: Path) -> None:
    told = tmp_path / "addresses.json"
    unready = settings.model_copy(
        update={"address_file": told, "decoders": ("127.0.0.1:1",), "drain_seconds": 0}
    )
    starting = asyncio.create_task(gateway(unready).__aenter__())
    try:
        await eventually(told.exists)
        url = f"http://{json.loads(told.read_text())['http']}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
            health = await http.get("/health")
            asked = await http.post(CHAT, json={"messages": HELLO})
            assert (await http.get("/version")).status_code == 200
        for response in (health, asked):
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "unavailable"
    finally:
        starting.cancel()
        await asyncio.wait([starting])


async def test_a_drain_lets_streams_end_and_refuses_new_requests(
    settings: GatewaySettings, decoders: list[FakeDecoder]
) -> None:
    go_on = asyncio.Event()

    async def waits(_: decoder_pb2.GenerateRequest) -> Responses:
        yield delta("Hello", 1001)
        await go_on.wait()
        yield delta(" world", 1002, finish=chat_pb2.FINISH_REASON_STOP)

    for decoder in decoders:
        decoder.behaviours = [waits]
    served = gateway(settings)
    url = f"http://{await served.__aenter__()}"
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http,
        http.stream("POST", CHAT, json=STREAM) as response,
    ):
        lines = await first_chunk(response)
        leaving = asyncio.create_task(served.__aexit__(None, None, None))
        async with asyncio.timeout(60):
            while (health := await http.get("/health")).status_code == 200:
                await asyncio.sleep(0.01)
        refused = await http.post(CHAT, json={"messages": HELLO})
        assert (health.status_code, refused.status_code) == (503, 503)
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) >= 1
        assert not leaving.done()
        go_on.set()
        assert [line async for line in lines if line][-1] == "data: [DONE]"
        await asyncio.wait_for(leaving, 30)
        with pytest.raises(httpx.ConnectError):
            await http.get("/health")


async def test_what_outlasts_the_drain_is_told_so(
    settings: GatewaySettings, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    served = gateway(settings.model_copy(update={"drain_seconds": 0}))
    url = f"http://{await served.__aenter__()}"
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http,
        http.stream("POST", CHAT, json=STREAM) as response,
    ):
        lines = await first_chunk(response)
        leaving = asyncio.create_task(served.__aexit__(None, None, None))
        *_, error, done = [line async for line in lines if line]
        await asyncio.wait_for(leaving, 30)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert done == "data: [DONE]"
    assert permits() == 0


async def test_a_request_has_one_line_and_the_clients_id(http: httpx.AsyncClient) -> None:
    with logged() as lines:
        response = await http.post(
            CHAT, json={"messages": LOOK}, headers={"x-request-id": "order-66"}
        )
        await lines.become(lambda seen: seen.calls)
        (line,) = lines.calls
    answer = response.json()
    expected = {
        "request_id": "order-66",
        "method": f"POST {CHAT}",
        "code": "OK",
        "http_status": 200,
        "completion_id": answer["id"],
        "images": 1,
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "completion_tokens": 3,
        "finish_reason": "stop",
    }
    assert response.headers["x-request-id"] == "order-66"
    assert expected.items() <= line.items()


async def test_a_refusal_has_an_id_and_its_reason_in_the_line(http: httpx.AsyncClient) -> None:
    with logged() as lines:
        response = await http.post(
            CHAT, json={"messages": []}, headers={"x-request-id": "no\tid of ours"}
        )
        await http.get("/health")
        await http.get("/nowhere")
        await lines.become(lambda seen: seen.calls)
        (line,) = lines.calls
    assert response.headers["x-request-id"] == line["request_id"] != "no\tid of ours"
    assert (line["code"], line["reason"]) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert line["field"] == "messages"
    assert line["http_status"] == 400


async def test_requests_are_counted_by_route_method_and_status(http: httpx.AsyncClient) -> None:
    ok = {"method": "POST", "handler": CHAT, "status": "200"}
    bad = {**ok, "status": "400"}
    lost = {"method": "other", "handler": "none", "status": "404"}
    before = [requests(**labels) for labels in (ok, bad, lost)]

    await http.post(CHAT, json={"messages": HELLO})
    await http.post(CHAT, json={"messages": []})
    await http.request("DELETE", "/anywhere")

    after = [requests(**labels) for labels in (ok, bad, lost)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        yield receiver


async def test_a_request_is_in_its_callers_trace(
    received: Collector, http: httpx.AsyncClient
) -> None:
    await http.post(
        CHAT,
        json={"messages": HELLO},
        headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
    )
    spans = await asyncio.to_thread(
        received.wait, lambda seen: any(span.parent_id == PARENT_ID for span in seen)
    )
    (root,) = (span for span in spans if span.parent_id == PARENT_ID)
    assert {span.trace_id for span in spans} == {TRACE_ID}
    assert root.name == f"POST {CHAT}"
    expected = {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.output_tokens": 3,
    }
    assert expected.items() <= root.attributes.items()
    assert {span.name for span in spans if span.parent_id == root.span_id} >= {"prompt", "generate"}


async def test_grpc_goes_on_beside_it(http: httpx.AsyncClient, client: Client) -> None:
    whole, over_grpc = await asyncio.gather(
        http.post(CHAT, json={"messages": HELLO}),
        client.stub.Complete(
            chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[user(text("Hello?"))]))
        ),
    )
    assert whole.json()["choices"][0]["message"]["content"] == over_grpc.choices[0].text


async def test_a_certificate_that_is_replaced_is_served_and_the_service_goes_on(
    settings: GatewaySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CERTIFICATE_SECONDS", 0.02)
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    certificate, key = old.issue("server")
    with_tls = settings.model_copy(update={"tls_certificate": certificate, "tls_private_key": key})

    async def is_trusted(authority: Authority, address: str) -> bool:
        context = ssl.create_default_context(cafile=str(authority.ca))
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            try:
                return (await client.get(f"https://{address}/version")).status_code == 200
            except httpx.ConnectError:
                return False

    async with gateway(with_tls) as address:
        assert await is_trusted(old, address)

        new.issue("server")

        async with asyncio.timeout(60):
            while not await is_trusted(new, address):
                await asyncio.sleep(0.02)
        assert not await is_trusted(old, address)


async def test_tls_is_that_of_grpc(settings: GatewaySettings, tmp_path: Path) -> None:
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    certificate, key = ours.issue("gateway")
    with_tls = settings.model_copy(update={"tls_certificate": certificate, "tls_private_key": key})
    mutual = with_tls.model_copy(update={"tls_client_ca": ours.ca})

    async def status(address: str, identity: tuple[Path, Path] | None = None) -> int:
        context = ssl.create_default_context(cafile=ours.ca)
        if identity is not None:
            context.load_cert_chain(*identity)
        async with httpx.AsyncClient(verify=context, trust_env=False, timeout=60) as http:
            return (await http.get(f"https://{address}/health")).status_code

    async with gateway(with_tls) as address:
        assert await status(address) == 200
        with pytest.raises(httpx.TransportError):
            await httpx.AsyncClient(trust_env=False, timeout=60).get(f"http://{address}/health")
    async with gateway(mutual) as address:
        assert await status(address, ours.issue("client")) == 200
        for identity in (None, others.issue("stranger")):
            with pytest.raises(httpx.TransportError):
                await status(address, identity)


@pytest.mark.parametrize("piece", [b"a: b\r\n", b"a", b"\r\n"], ids=["lines", "a line", "none"])
async def test_a_head_is_read_up_to_a_limit(client: Client, piece: bytes) -> None:
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"" if piece.isspace() else b"GET /health HTTP/1.1\r\nx: "
    with contextlib.suppress(ConnectionError):
        writer.write(head)
        for _ in range(1000):
            writer.write(piece * 1000)
            await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 30)
        assert answer.startswith(b"HTTP/1.1 400 ") or not answer
    writer.close()
    assert reader.at_eof() or writer.is_closing()
    assert (await asyncio.to_thread(httpx.get, f"{client.url}/health")).status_code == 200


async def test_a_head_that_does_not_come_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_protocol, "HEAD_SECONDS", 0.1)
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    for begun in (b"", b"GET /health HTTP/1.1\r\nx: y"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(begun)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


@pytest.mark.parametrize(
    "begun",
    [b"0\r\n", b"0\r\nx: ", b"5"],
    ids=["lines behind the body", "a line behind the body", "a piece's extensions"],
)
async def test_what_is_said_around_a_body_is_read_up_to_a_limit(
    client: Client, begun: bytes
) -> None:
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    endless = {b"0\r\n": b"a: b\r\n", b"0\r\nx: ": b"a", b"5": b";a=b"}[begun]
    closed = asyncio.create_task(reader.read())
    with contextlib.suppress(ConnectionError):
        writer.write(
            b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        writer.write(begun)
        for _ in range(1000):
            writer.write(endless * 1000)
            await writer.drain()
    with contextlib.suppress(ConnectionError):
        assert (await asyncio.wait_for(closed, 30)).startswith(b"HTTP/1.1 404 ")
    writer.close()


@pytest.mark.parametrize("rest", [b"", b"12345678"], ids=["unfinished", "finished"])
async def test_a_body_that_nobody_reads_any_more_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    status = b""
    for seconds in ever_longer():
        monkeypatch.setattr(bounded_protocol, "HEAD_SECONDS", seconds)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n12")
        with contextlib.suppress(ConnectionError):
            status = await asyncio.wait_for(reader.readline(), 60)
            writer.write(rest)
            # To the end of the connection.
            await asyncio.wait_for(reader.read(), 60)
        writer.close()
        # Without a status, the server closed it before its head had arrived.
        if status:
            break
    assert status.startswith(b"HTTP/1.1 404 ")


async def test_requests_behind_one_another_are_answered(client: Client) -> None:
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    ask = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 1000 + b"\r\n\r\n"
    for _ in range(200):
        writer.write(ask)
    for _ in range(200):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert head.startswith(b"HTTP/1.1 200 ")
    writer.close()


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 4\r\ntransfer-encoding: chunked",
        b"transfer-encoding: chunked\r\ncontent-length: 4",
        b"content-length: 4\r\ncontent-length: 5",
        b"content-length: 4, 4",
        b"content-length: +4",
        b"content-length: 0x4",
        b"transfer-encoding: chunked, identity",
        b"transfer-encoding: x\r\ntransfer-encoding: identity",
        b"transfer-encoding : chunked",
        b"content-length: 4\r\n transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        b"x: a\rtransfer-encoding: chunked",
        b"x: a\0b",
        b"a b: c",
    ],
)
async def test_where_a_request_ends_is_not_for_two_to_differ_about(
    client: Client, headers: bytes
) -> None:
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\n" + headers + b"\r\n\r\n")
    writer.write(b"0\r\n\r\n" + SMUGGLED)
    answer = await asyncio.wait_for(reader.read(), 30)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    writer.close()


async def test_an_address_that_is_taken_is_told(settings: GatewaySettings) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartupError, match=listen):
            async with gateway(settings.model_copy(update={"http_listen": listen})):
                pass


async def test_without_a_setting_there_is_no_http(settings: GatewaySettings) -> None:
    alone = settings.model_copy(update={"http_listen": None})
    async with running(GatewayTier(alone), alone) as addresses:
        assert addresses.http is None
