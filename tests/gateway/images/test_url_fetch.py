import asyncio
import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from pixtral_core.concurrency.gather import run_all
from pixtral_core.errors import InvalidRequest
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.checks.conversation import ImageSource
from pixtral_gateway.images.image_reader import ImageReader
from pixtral_gateway.images.url_fetch import Fetcher, Hosts, is_public
from pixtral_gateway.settings import GatewaySettings
from tests.support.certificate_authority import Authority
from tests.support.gateway_pictures import picture

HOST = "images.example.org"
PATH = "messages[0].content[0].image.url"
MAX_BYTES = 100_000
SECONDS = 60.0
DATA = picture(40, 30)

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Origin:
    """An https server at 127.0.0.1, whose certificate is for HOST."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.respond: Respond = self._picture
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.respond(request)

    def url(self, path: str = "/cat.png") -> str:
        return f"https://{HOST}:{self.port}{path}"

    async def _picture(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=DATA, content_type="image/png")


class Names:
    """The addresses of a name: the next of the answers each time, the last for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@pytest.fixture
async def origin(authority: Authority) -> AsyncIterator[Origin]:
    certificate, key = authority.issue("images", HOST)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    async with serving(tls) as origin:
        yield origin


@pytest.fixture
async def plain_origin() -> AsyncIterator[Origin]:
    """An http server, without TLS."""
    async with serving(None) as origin:
        yield origin


@contextlib.asynccontextmanager
async def serving(tls: ssl.SSLContext | None) -> AsyncIterator[Origin]:
    origin = Origin()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", origin.handle)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    origin.port = runner.addresses[0][1]
    yield origin
    await runner.cleanup()


@contextlib.asynccontextmanager
async def fetching(
    authority: Authority,
    origin: Origin,
    *,
    names: Names | None = None,
    hosts: Sequence[str] | None = None,
    allowed: Callable[[str], bool] = lambda address: True,
    seconds: float = SECONDS,
) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(
        Hosts(tuple(hosts or (f"{HOST}:{origin.port}",))),
        max_bytes=MAX_BYTES,
        timeout_seconds=seconds,
        is_allowed=allowed,
        lookup=names or Names(["127.0.0.1"]),
        tls=ssl.create_default_context(cafile=str(authority.ca)),
    )
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def refusal(fetcher: Fetcher, url: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        await fetcher.fetch(url, PATH)
    assert [path for path, _ in refused.value.violations] == [PATH]
    # Neither where it was nor what was there.
    for told in ("127.0.0.1", HOST, "secret"):
        assert told not in refused.value.message
    return refused.value


async def test_an_image_is_fetched_by_a_name_that_is_looked_up_once(
    authority: Authority, origin: Origin
) -> None:
    # The second answer, which a name that changes would give the connection, is nobody's.
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with fetching(authority, origin, names=names) as fetcher:
        assert await fetcher.fetch(origin.url(), PATH) == DATA
    assert names.asked == [HOST]
    (request,) = origin.requests
    assert request.host == f"{HOST}:{origin.port}"
    assert "Cookie" not in request.headers
    assert "Referer" not in request.headers


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["172.16.0.1"],
        ["192.168.1.1"],
        ["169.254.169.254"],
        ["100.64.0.1"],
        ["0.0.0.0"],  # noqa: S104 - looked up, not bound
        ["224.0.0.1"],
        ["255.255.255.255"],
        ["::1"],
        ["fe80::1"],
        ["fd00::1"],
        ["::ffff:127.0.0.1"],
        ["::127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["2001:0:7f00:1::"],
        ["93.184.215.14", "127.0.0.1"],
        [],
    ],
)
async def test_a_name_of_an_address_that_is_not_public_is_not_connected_to(
    authority: Authority, origin: Origin, addresses: list[str]
) -> None:
    names = Names(addresses)
    async with fetching(authority, origin, names=names, allowed=is_public) as fetcher:
        error = await refusal(fetcher, origin.url())
    assert error.reason == "IMAGE_URL_FAILED"
    assert names.asked == [HOST]
    assert origin.requests == []


def test_public_addresses_are_public() -> None:
    for address in ("93.184.215.14", "1.1.1.1", "2606:4700:4700::1111"):
        assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://{host}:{port}/cat.png",
        "file:///etc/passwd",
        "ftp://{host}/cat.png",
        "//{host}:{port}/cat.png",
        "{host}:{port}",
        "https://",
        "https://user@{host}:{port}/cat.png",
        "https://user:secret@{host}:{port}/cat.png",
        "https://{host}:{port}@evil.example/cat.png",
        "https://{host}/cat.png",
        "https://{host}:1/cat.png",
        "https://{host}:99999/cat.png",
        "https://evil.example:{port}/cat.png",
        "https://{host}.evil.example:{port}/cat.png",
        "https://evil{host}:{port}/cat.png",
        "https://127.0.0.1:{port}/cat.png",
        "https://127.1:{port}/cat.png",
        "https://2130706433:{port}/cat.png",
        "https://0x7f000001:{port}/cat.png",
        "https://0177.0.0.1:{port}/cat.png",
        "https://[::1]:{port}/cat.png",
        "https://[::ffff:127.0.0.1]:{port}/cat.png",
        "https://[::1:{port}/cat.png",
        "https://{host}:{port}/" + "a" * 5000,
        "",
    ],
)
async def test_a_url_that_is_not_allowed_is_refused_before_anything_is_asked(
    authority: Authority, origin: Origin, url: str
) -> None:
    names = Names(["127.0.0.1"])
    hosts = (f"{HOST}:{origin.port}", f"*:{origin.port}")
    is_of_another_host = "evil" in url
    async with fetching(
        authority, origin, names=names, hosts=hosts[:1] if is_of_another_host else hosts
    ) as fetcher:
        error = await refusal(fetcher, url.format(host=HOST, port=origin.port))
    assert error.reason == "IMAGE_URL_NOT_ALLOWED"
    assert names.asked == []
    assert origin.requests == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://evil.example/cat.png", "PIXTRAL_IMAGE_URL_HOSTS"),
        ("http://{host}:{port}/cat.png", "PIXTRAL_IMAGE_URL_HTTP"),
        ("https://127.0.0.1/cat.png", "the name of a host"),
    ],
)
async def test_a_url_that_is_not_allowed_is_refused_with_what_would_allow_it(
    authority: Authority, origin: Origin, url: str, told: str
) -> None:
    async with fetching(authority, origin) as fetcher:
        error = await refusal(fetcher, url.format(host=HOST, port=origin.port))
    assert told in error.message


async def test_http_is_fetched_where_a_setting_says_so(plain_origin: Origin) -> None:
    url = plain_origin.url().replace("https:", "http:")
    for hosts in (Hosts((f"{HOST}:{plain_origin.port}",), http=True), Hosts((HOST,), http=True)):
        fetcher = Fetcher(
            hosts,
            max_bytes=MAX_BYTES,
            timeout_seconds=SECONDS,
            is_allowed=lambda address: True,
            lookup=Names(["127.0.0.1"]),
        )
        if hosts.allowed == (HOST,):
            # Without a port, http's own is meant.
            assert (await refusal(fetcher, url)).reason == "IMAGE_URL_NOT_ALLOWED"
        else:
            assert await fetcher.fetch(url, PATH) == DATA
        await fetcher.close()
    assert hosts.allow(HOST, 80, "http")
    assert not hosts.allow(HOST, 443, "http")


async def test_http_keeps_to_public_addresses(plain_origin: Origin) -> None:
    fetcher = Fetcher(
        Hosts((f"{HOST}:{plain_origin.port}",), http=True),
        max_bytes=MAX_BYTES,
        timeout_seconds=SECONDS,
        lookup=Names(["127.0.0.1"]),
    )
    error = await refusal(fetcher, plain_origin.url().replace("https:", "http:"))
    await fetcher.close()
    assert error.reason == "IMAGE_URL_FAILED"
    assert plain_origin.requests == []


@pytest.mark.parametrize(
    ("entry", "fetched"),
    [
        ("images.example.org:{port}", True),
        ("IMAGES.example.org:{port}", True),
        (".example.org:{port}", True),
        ("*:{port}", True),
        ("example.org:{port}", False),
        (".images.example.org:{port}", False),
        ("images.example.org", False),
        ("*", False),
    ],
)
async def test_the_hosts_that_are_allowed(
    authority: Authority, origin: Origin, entry: str, fetched: bool
) -> None:
    async with fetching(authority, origin, hosts=[entry.format(port=origin.port)]) as fetcher:
        if fetched:
            assert await fetcher.fetch(origin.url(), PATH) == DATA
        else:
            assert (await refusal(fetcher, origin.url())).reason == "IMAGE_URL_NOT_ALLOWED"


async def test_a_redirect_is_followed_where_it_is_allowed(
    authority: Authority, origin: Origin
) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        if request.path == "/cat.png":
            raise web.HTTPFound("/elsewhere/cat.png")
        return web.Response(body=DATA, content_type="image/png")

    origin.respond = redirect
    async with fetching(authority, origin) as fetcher:
        assert await fetcher.fetch(origin.url(), PATH) == DATA


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1:{port}/secret",
        "https://localhost:{port}/secret",
        "http://{host}:{port}/secret",
        "https://metadata.example/secret",
        "file:///etc/passwd",
        "https://[",
        "",
        "/cat.png",
    ],
)
async def test_a_redirect_to_elsewhere_or_without_end_is_not_followed(
    authority: Authority, origin: Origin, location: str
) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        to = location.format(port=origin.port, host=HOST)
        return web.Response(status=302, headers={"Location": to})

    origin.respond = redirect
    names = Names(["127.0.0.1"])
    async with fetching(authority, origin, names=names) as fetcher:
        assert (await refusal(fetcher, origin.url())).reason == "IMAGE_URL_FAILED"
    assert set(names.asked) == {HOST}
    assert {request.path for request in origin.requests} == {"/cat.png"}
    assert len(origin.requests) <= 4


async def test_a_redirect_to_a_name_that_is_private_is_not_connected_to(
    authority: Authority, origin: Origin
) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"https://inside.example.org:{origin.port}/secret")

    origin.respond = redirect
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with fetching(
        authority,
        origin,
        names=names,
        hosts=[f".example.org:{origin.port}"],
        allowed=lambda address: address == "127.0.0.1",
    ) as fetcher:
        assert (await refusal(fetcher, origin.url())).reason == "IMAGE_URL_FAILED"
    assert names.asked == [HOST, "inside.example.org"]


async def dripping(response: web.StreamResponse, request: web.Request) -> web.StreamResponse:
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"\0")
            await asyncio.sleep(0.01)
    return response


async def endless(response: web.StreamResponse, request: web.Request) -> web.StreamResponse:
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(bytes(1 << 16))
    return response


async def test_a_body_that_drips_is_given_up(authority: Authority, origin: Origin) -> None:
    origin.respond = lambda request: dripping(
        web.StreamResponse(headers={"Content-Type": "image/png"}), request
    )
    async with asyncio.timeout(60), fetching(authority, origin, seconds=0.3) as fetcher:
        assert (await refusal(fetcher, origin.url())).reason == "IMAGE_URL_FAILED"


async def test_a_body_without_end_is_read_to_the_limit_only(
    authority: Authority, origin: Origin
) -> None:
    origin.respond = lambda request: endless(
        web.StreamResponse(headers={"Content-Type": "image/png"}), request
    )
    async with fetching(authority, origin, seconds=60) as fetcher:
        assert (await refusal(fetcher, origin.url())).reason == "IMAGE_TOO_LARGE"


async def test_a_body_that_says_it_is_too_large_is_not_read(
    authority: Authority, origin: Origin
) -> None:
    origin.respond = lambda request: dripping(
        web.StreamResponse(
            headers={"Content-Type": "image/png", "Content-Length": str(MAX_BYTES + 1)}
        ),
        request,
    )
    async with fetching(authority, origin, seconds=60) as fetcher:
        assert (await refusal(fetcher, origin.url())).reason == "IMAGE_TOO_LARGE"


async def test_what_is_packed_is_not_unpacked(authority: Authority, origin: Origin) -> None:
    async def bomb(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Encoding": "gzip", "Content-Type": "image/png"}
        return web.Response(body=gzip.compress(bytes(10 * MAX_BYTES)), headers=headers)

    origin.respond = bomb
    async with fetching(authority, origin) as fetcher:
        assert (await refusal(fetcher, origin.url())).reason == "IMAGE_URL_FAILED"


@pytest.mark.parametrize(
    ("status", "content_type"), [(200, "text/html"), (404, "image/png"), (206, "image/png")]
)
async def test_what_is_no_image_is_not_handed_on(
    authority: Authority, origin: Origin, status: int, content_type: str
) -> None:
    async def other(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=b"secret", content_type=content_type)

    origin.respond = other
    async with fetching(authority, origin) as fetcher:
        assert (await refusal(fetcher, origin.url())).reason == "IMAGE_URL_FAILED"


async def test_a_certificate_for_another_name_is_not_trusted(
    authority: Authority, origin: Origin
) -> None:
    async with fetching(authority, origin, hosts=[f"*:{origin.port}"]) as fetcher:
        error = await refusal(fetcher, f"https://other.example.org:{origin.port}/cat.png")
    assert error.reason == "IMAGE_URL_FAILED"
    assert origin.requests == []


async def test_a_fetch_that_is_cancelled_leaves_no_connection(
    authority: Authority, origin: Origin
) -> None:
    gone = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        try:
            return await dripping(
                web.StreamResponse(headers={"Content-Type": "image/png"}), request
            )
        finally:
            gone.set()

    origin.respond = wait
    async with fetching(authority, origin, seconds=60) as fetcher:
        task = asyncio.create_task(fetcher.fetch(origin.url(), PATH))
        async with asyncio.timeout(60):
            while not origin.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()


async def test_images_of_a_request_are_fetched_at_once_and_then_read_like_any(
    authority: Authority, origin: Origin, spec: VisionSpec
) -> None:
    both = asyncio.Barrier(2)

    async def answer(request: web.Request) -> web.StreamResponse:
        await both.wait()
        return web.Response(body=DATA, content_type="image/png")

    origin.respond = answer
    async with fetching(authority, origin) as fetcher:
        reader = ImageReader(spec, max_bytes=MAX_BYTES, max_pixels=1 << 20, fetcher=fetcher)
        sources = [ImageSource(PATH, url=origin.url(path)) for path in ("/a", "/b")]
        images = await run_all([reader.read(source) for source in sources])
        assert [image.data for image in images] == [DATA, DATA]
        assert (images[0].width, images[0].height) == (40, 30)


@pytest.mark.parametrize("host", ["https://a.example", "a/b", "a:b", "", "user@a", "[::1]"])
def test_a_setting_that_names_no_host_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be names of hosts"):
        GatewaySettings(
            model_dir=tmp_path, decoders=("127.0.0.1:1",), image_url_hosts=(host, "a.example")
        )
