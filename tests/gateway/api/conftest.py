import json
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from pixtral_gateway.api.openai.openapi import PATH
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.settings import GatewaySettings
from tests.support.fake_tiers import FakeDecoder
from tests.support.gateway_harness import Client
from tests.support.openapi import Described

# Nothing here is encrypted, and reading the certificates of the system takes a while.
NO_AUTHORITY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture(scope="session")
def documents() -> list[Described]:
    """The one of /openapi.json, once it has been read: to make it takes a third of a second."""
    return []


@pytest.fixture
async def http(client: Client, documents: list[Described]) -> AsyncIterator[httpx.AsyncClient]:
    """A session that checks each request and answer against /openapi.json."""
    async with httpx.AsyncClient(
        base_url=client.url, trust_env=False, timeout=60, verify=NO_AUTHORITY
    ) as session:
        if not documents:
            documents.append(Described((await session.get(PATH)).json()))
        described = documents[0]

        async def check(response: httpx.Response) -> None:
            request, path = response.request, response.request.url.path
            if response.status_code == 200 and path in described.document["paths"]:
                # What is sent piece by piece is gone.
                with suppress(httpx.RequestNotRead):
                    told = described.document["paths"][path].get(request.method.lower(), {})
                    if "requestBody" in told:
                        sent = json.loads(request.content)
                        assert described.body_problem(path, sent) is None
                if response.headers.get("content-type") == "application/json":
                    await response.aread()
                    assert described.answer_problem(request.method.lower(), path, response) is None

        session.event_hooks["response"].append(check)
        yield session


@pytest.fixture
def settings(
    model_dir: Path,
    prompts: PromptEncoder,
    decoders: list[FakeDecoder],
    monkeypatch: pytest.MonkeyPatch,
) -> GatewaySettings:
    monkeypatch.setattr(PromptEncoder, "load", lambda *_: prompts)
    return GatewaySettings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        model_dir=model_dir,
        decoders=[decoder.address for decoder in decoders],
        drain_seconds=60,
    )
