"""The running stack on the small model that can see, and a real Chromium before its page."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright, expect

from pixtral_cli import pixtral_stack
from pixtral_cli.stack.redis_server import free_port
from pixtral_client import Client
from tests.page.tab import MAX_IMAGE_BYTES, MODEL, Tab, opened
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Tier
from tests.support.stack.service import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    limits = ["--max-image-bytes", str(MAX_IMAGE_BYTES), "--max-images", "4"]
    with RedisServer() as redis:
        stack = pixtral_stack(
            MODEL,
            # The page shows it in its code.
            listen=f"127.0.0.1:{free_port()}",
            http_listen="127.0.0.1:0",
            redis_url=redis.url,
            log_dir=tmp_path_factory.mktemp("logs"),
            gateway_args=limits,
            start_timeout=240,
        )
        with stack, Client(stack.target, timeout=120) as client:
            yield Service(stack, client)


@pytest.fixture
def another_gateway(service: Service, tmp_path: Path) -> Callable[..., Tier]:
    """One more before the same tiers, to be told more flags, and entered."""
    flags = {
        "model-dir": str(MODEL),
        "listen": "127.0.0.1:0",
        "http-listen": "127.0.0.1:0",
        "metrics-listen": "127.0.0.1:0",
        "encoders": service.stack.addresses["encoder"].grpc,
        "decoders": service.stack.addresses["decoder"].grpc,
    }
    told = [f"--{name}={value}" for name, value in flags.items()]
    return lambda *more: Tier("pixtral_gateway", tmp_path, *told, *more)


@pytest.fixture(scope="session")
def url(service: Service) -> str:
    return f"http://{service.stack.http_target}/"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    expect.set_options(timeout=60_000)
    # Debian's, and not one that Playwright would download.
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH: `make test-page` says how to get it")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Browser, url: str, tmp_path: Path) -> AsyncIterator[Tab]:
    async with opened(browser, url, tmp_path) as tab:
        yield tab
