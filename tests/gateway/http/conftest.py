from collections.abc import AsyncIterator

import httpx
import pytest

from tests.gateway.harness import Client


@pytest.fixture
async def http(client: Client) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=client.url, trust_env=False, timeout=30) as session:
        yield session
