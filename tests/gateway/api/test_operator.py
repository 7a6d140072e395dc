"""Routes for probes and operators, and pages of other origins."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.server.grpc_interceptor import Gate
from pixtral_core.telemetry.tracing import Tracer
from pixtral_gateway.api.http.cross_origin import allowing
from pixtral_gateway.api.openai.app import OpenAiApi
from pixtral_gateway.tenancy.tenants import Tenants
from tests.support.fake_tiers import FakeDecoder, never_ends
from tests.support.gateway_harness import closed, eventually
from tests.support.http_chat import CHAT, HELLO

PAGE = "https://chat.example.org"


async def test_the_load_is_what_runs(http: httpx.AsyncClient, decoders: list[FakeDecoder]) -> None:
    assert (await http.get("/load")).json() == {"server_load": 0}
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    async with http.stream("POST", CHAT, json={"messages": HELLO, "stream": True, "n": 1}):
        assert (await http.get("/load")).json() == {"server_load": 1}
    await eventually(lambda: any(decoder.cancelled for decoder in decoders))


async def test_metrics_are_on_the_port_of_a_gateway_for_its_own_machine(
    http: httpx.AsyncClient,
) -> None:
    await http.post(CHAT, json={"messages": HELLO})
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"http_requests", "pixtral_gateway_requests"} <= names
    other = await http.get("/metrics", headers={"host": "evil.example"})
    assert other.status_code == 421


async def test_a_gateway_that_others_reach_shows_no_metrics(tmp_path: Path) -> None:
    gate = Gate("closed")
    settings = closed(tmp_path, allow_anonymous=True)
    app = OpenAiApi(settings, Tenants(None), SharedLimit(1 << 20)).app(gate, Tracer())
    async with httpx.AsyncClient(
        base_url="http://elsewhere", transport=httpx.ASGITransport(app)
    ) as http:
        assert (await http.get("/metrics")).status_code == 404
        for method in ("GET", "POST"):
            assert (await http.request(method, "/ping")).status_code == 503
        gate.open()
        for method in ("GET", "POST"):
            assert (await http.request(method, "/ping")).status_code == 200


async def test_models_with_a_slash_are_the_list(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    assert (await http.get("/v1/models/")).json() == listed
    assert listed["object"] == "list"


async def test_tokens_are_a_text_again(http: httpx.AsyncClient) -> None:
    text = "Hello wörld 👋"
    tokens = (await http.post("/tokenize", json={"prompt": text})).json()["tokens"]
    assert (await http.post("/detokenize", json={"tokens": tokens})).json() == {
        "prompt": f"<s>{text}"
    }
    assert (await http.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}
    wrong = await http.post("/detokenize", json={"tokens": [1, 99_999_999]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")


@pytest.mark.parametrize(("allowed", "is_let_in"), [((PAGE,), True), (("*",), True), ((), False)])
async def test_a_page_of_another_origin_may_ask_where_a_setting_names_it(
    tmp_path: Path, allowed: tuple[str, ...], is_let_in: bool
) -> None:
    gate = Gate("closed")
    settings = closed(tmp_path, allowed_origins=allowed)
    app = allowing(
        OpenAiApi(settings, Tenants(None), SharedLimit(1 << 20)).app(gate, Tracer()),
        settings.allowed_origins,
    )
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    async with httpx.AsyncClient(
        base_url="http://localhost", transport=httpx.ASGITransport(app)
    ) as http:
        preflight = await http.options(CHAT, headers=asked)
        # What is refused can be read, too.
        refused = await http.get("/health", headers={"origin": PAGE})
    allow = "access-control-allow-origin"
    assert (preflight.status_code == 200) is is_let_in
    assert (preflight.headers.get(allow) in (PAGE, "*")) is is_let_in
    assert refused.status_code == 503
    assert (refused.headers.get(allow) in (PAGE, "*")) is is_let_in


def test_an_origin_has_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="without a path"):
        closed(tmp_path, allowed_origins=(f"{PAGE}/chat",))
