"""Fetches an image by URL, under rules against server-side request forgery.

A URL must be https, or http if a setting allows that. The operator allows hosts by name, and their
addresses must be public. The fetcher checks every address of a name, and connects to one of the
checked addresses, so a later change of the name's addresses has no effect. Every check applies to
each redirect, too.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.image.formats import DEFAULT_FORMATS, MEDIA_TYPES, ImageFormat
from pixtral_gateway.metrics import FETCH_SECONDS, FETCHES

MAX_CONNECTIONS: Final = 64
DEFAULT_PORTS: Final = {"https": 443, "http": 80}
ANY_HOST: Final = "*"
PIECE: Final = 1 << 16
ANY_CONTENT: Final = "application/octet-stream"

# The last label of a name begins with a letter. Libraries read some texts with another last label
# as addresses, such as 127.1, 2130706433 and 0x7f000001.
_NAME = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z][a-z0-9-]{0,62}")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")

# The addresses of a name, as text.
Lookup = Callable[[str], Awaitable[Sequence[str]]]


class NotFetched(Exception):
    """No image was fetched. The client does not get the cause, which would tell a stranger about
    the network behind the gateway."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts from which images may come: `example.org`, `example.org:8443`, `.example.org` for
    all names below it, `*` for every public host. `http` allows URLs of that scheme beside
    https."""

    allowed: tuple[str, ...]
    http: bool = False

    def allow(self, host: str, port: int, scheme: str = "https") -> bool:
        for entry in self.allowed:
            name, _, named_port = entry.lower().partition(":")
            if port != int(named_port or DEFAULT_PORTS[scheme]):
                continue
            if name in (ANY_HOST, host) or (name[:1] == "." and host.endswith(name)):
                return True
        return False


def is_public(address: str) -> bool:
    """Whether an IP address is public, and does not lead to a private one."""
    ip = ipaddress.ip_address(address)
    if ip.is_multicast or not ip.is_global:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv4 addresses in IPv6 notation and NAT64's addresses are outside of global unicast.
        # 6to4's and Teredo's addresses are inside, but also lead to IPv4 addresses.
        return ip in _GLOBAL_UNICAST and ip.sixtofour is None and ip.teredo is None
    return True


async def lookup(host: str) -> list[str]:
    """The addresses of a host, as this machine resolves names."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Fetcher:
    """Fetches from `hosts` up to `max_bytes`, each image within `timeout_seconds`.

    `is_allowed` decides whether the fetcher may connect to an address.
    """

    def __init__(
        self,
        hosts: Hosts,
        *,
        max_bytes: int,
        timeout_seconds: float,
        formats: Collection[ImageFormat] = DEFAULT_FORMATS,
        is_allowed: Callable[[str], bool] = is_public,
        lookup: Lookup = lookup,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._content_types = {ANY_CONTENT} | {
            type_ for type_, format_ in MEDIA_TYPES.items() if format_ in formats
        }
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(lookup, is_allowed),
                limit=MAX_CONNECTIONS,
                # The resolver looks up and checks the addresses for every connection.
                use_dns_cache=False,
                ssl=tls or ssl.create_default_context(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "pixtral-serve", "Accept-Encoding": "identity"},
            # aiohttp must not decompress a body, because `_read` refuses a compressed one.
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def fetch(self, url: str, path: str) -> bytes:
        """The bytes at `url`; `path` is the request's field with the URL.

        Raises InvalidRequest if the URL is not allowed, or returns no image.
        """
        result = "failed"
        try:
            with FETCH_SECONDS.time():
                async with asyncio.timeout(self._timeout_seconds):
                    data = await self._follow(url, path)
            result = "fetched"
        except InvalidRequest:
            result = "refused"
            raise
        except (NotFetched, TimeoutError, OSError, aiohttp.ClientError, ValueError):
            raise InvalidRequest(
                path, "no image could be fetched from the URL", "IMAGE_URL_FAILED"
            ) from None
        finally:
            FETCHES.labels(result).inc()
        return data

    async def close(self) -> None:
        await self._session.close()

    async def _follow(self, url: str, path: str) -> bytes:
        target = self._check(url, path)
        for _ in range(limits.IMAGE_URL_REDIRECTS.most + 1):
            async with self._session.get(target, allow_redirects=False) as response:
                if response.status not in (301, 302, 303, 307, 308):
                    return await self._read(response, path)
                location = response.headers.get("Location", "")
            try:
                target = self._check(str(target.join(URL(location))), path)
            except InvalidRequest:
                # The client must not learn where an allowed host redirects.
                raise NotFetched from None
        raise NotFetched

    def _check(self, url: str, path: str) -> URL:
        target = _parse(url)
        if target is None:
            trouble = (
                "no image is fetched from this URL: it must be https:, with the name of a host and "
                "without a user"
            )
        elif target.scheme == "http" and not self._hosts.http:
            trouble = (
                "no image is fetched by http: send an https: URL, or have the operator set "
                "PIXTRAL_IMAGE_URL_HTTP"
            )
        elif not self._hosts.allow(target.raw_host or "", target.port or 0, target.scheme):
            trouble = (
                "no image is fetched from this host: the operator names those that are allowed by "
                "PIXTRAL_IMAGE_URL_HOSTS"
            )
        else:
            return target
        raise InvalidRequest(path, trouble, "IMAGE_URL_NOT_ALLOWED")

    async def _read(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        packed = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        if response.status != 200 or packed or response.content_type not in self._content_types:
            raise NotFetched
        self._check_size(response.content_length or 0, path)
        pieces, length = [], 0
        async for piece in response.content.iter_chunked(PIECE):
            length += len(piece)
            self._check_size(length, path)
            pieces.append(piece)
        return b"".join(pieces)

    def _check_size(self, length: int, path: str) -> None:
        if length > self._max_bytes:
            raise InvalidRequest(
                path, f"the image is larger than {self._max_bytes} bytes", "IMAGE_TOO_LARGE"
            )


def _parse(url: str) -> URL | None:
    """The URL if it is https or http, has a host's name and no user; otherwise None."""
    if not limits.IMAGE_URL_LENGTH.allows(len(url)):
        return None
    try:
        target = URL(url)
        is_plain = target.scheme in DEFAULT_PORTS and target.user is None
        is_plain = is_plain and target.password is None
        host = (target.raw_host or "").lower()
        port = target.port
    except ValueError:
        return None
    if not is_plain or port is None or not _NAME.fullmatch(host):
        return None
    return target.with_host(host).with_fragment(None)


class _CheckedResolver(AbstractResolver):
    def __init__(self, lookup: Lookup, is_allowed: Callable[[str], bool]) -> None:
        self._lookup, self._is_allowed = lookup, is_allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """All addresses of a host. Raises OSError if one of them is not allowed."""
        addresses = dict.fromkeys(await self._lookup(host))
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise OSError("the address is not public")
        return [_numeric(host, address, port) for address in addresses]

    async def close(self) -> None:
        pass


def _numeric(host: str, address: str, port: int) -> ResolveResult:
    family: Any = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=family,
        proto=0,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
