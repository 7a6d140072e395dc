import json
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest

from pixtral_gateway.api.openai.openapi import PATH
from tests.support.gateway_harness import Client
from tests.support.openapi import Described


@pytest.fixture
async def http(client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """What is answered through it, and the answer, are as /openapi.json says."""
    async with httpx.AsyncClient(base_url=client.url, trust_env=False, timeout=60) as session:
        described = Described((await session.get(PATH)).json())

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
