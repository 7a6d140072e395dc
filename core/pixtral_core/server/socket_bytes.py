"""Reads how many bytes a TCP connection has received, by the kernel's own count."""

import ipaddress
import os
import socket
import struct
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

# `tcpi_bytes_received` of Linux' struct tcp_info, which the kernel has had since 4.1.
_RECEIVED: Final = struct.Struct("=Q")
_OFFSET: Final = 128
_DESCRIPTORS: Final = "/proc/self/fd"
# The least time between two readings of all descriptors, and the most that readings may take of all
# time.
_LOOK_SECONDS: Final = 0.05
_LOOK_SHARE: Final = 0.05

Peer = tuple[str, int]


class SocketBytes:
    """Finds the connections of a server that does not expose its sockets, such as gRPC's.

    gRPC shows a message when it is complete. Until then, only the kernel knows how much of it is in
    memory.
    """

    def __init__(self) -> None:
        # Whether the kernel has counted the bytes of any connection. A new connection may be
        # unknown for a moment.
        self.has_counted = False
        self._descriptors: dict[Peer, int] = {}
        self._next_look = 0.0

    def received(self, peer: str) -> int | None:
        """The bytes that have come from `peer`, as gRPC names it; None while the count is unknown,
        or if the kernel does not count."""
        at = _parse(peer)
        if at is None:
            return None
        descriptor = self._descriptors.get(at)
        count = None if descriptor is None else _count(descriptor, at)
        if count is None and (descriptor := self._find(at)) is not None:
            count = _count(descriptor, at)
        self.has_counted |= count is not None
        return count

    def _find(self, at: Peer) -> int | None:
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._descriptors.clear()
        with suppress(OSError):
            for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - only the names
                with suppress(OSError, ValueError):
                    found = _borrowed(int(name))
                    try:
                        self._descriptors[_normal(found.getpeername())] = int(name)
                    finally:
                        found.detach()
        ended = time.monotonic()
        self._next_look = ended + max(_LOOK_SECONDS, (ended - now) / _LOOK_SHARE)
        return self._descriptors.get(at)


@lru_cache(4096)
def host_of(peer: str) -> str:
    """The address in gRPC's name of a peer, without its port. For IPv6 it is the network that a
    provider gives to one customer."""
    at = _parse(peer)
    if at is None:
        return peer
    address = ipaddress.ip_address(at[0])
    if address.version == 4:
        return at[0]
    return str(ipaddress.ip_network((address, 64), strict=False))


@lru_cache(4096)
def _parse(peer: str) -> Peer | None:
    family, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if family not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    with suppress(ValueError):
        return _normal((host.strip("[]"), int(port)))
    return None


@lru_cache(4096)
def _plain(host: str) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


def _normal(name: Any) -> Peer:
    """Raises ValueError for a text that is not an IP address."""
    if not isinstance(name, tuple):
        raise ValueError
    return _plain(name[0]), name[1]


def _count(descriptor: int, at: Peer) -> int | None:
    # The descriptor may belong to another connection by now.
    with suppress(OSError, ValueError):
        found = _borrowed(descriptor)
        try:
            if _normal(found.getpeername()) == at:
                info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                if len(info) >= _OFFSET + _RECEIVED.size:
                    # Every client has sent something, so zero means that the kernel does not count.
                    return int(_RECEIVED.unpack_from(info, _OFFSET)[0]) or None
        finally:
            found.detach()
    return None


def _borrowed(descriptor: int) -> socket.SocketType:
    """A socket around a descriptor of gRPC's. The caller must detach it, so that the descriptor
    stays open. Raises OSError for a descriptor that is not a socket."""
    # Without a family, Python would ask the kernel for it. `SocketType` is the C class under
    # `socket.socket`, and takes half as long to make.
    return socket.SocketType(socket.AF_INET6, socket.SOCK_STREAM, 0, descriptor)
