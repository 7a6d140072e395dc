"""The Host headers that a gateway without API keys answers to."""

import ipaddress
import socket
from urllib.parse import urlsplit

from pixtral_gateway.api.openai.errors import Refused


def check_host(host: str | None) -> None:
    """Raises Refused for a name or address that is not this machine's own.

    A page from elsewhere that lets its own name point here (DNS rebinding) is of the same origin to
    a browser, and might ask and read. A client that is no browser may send no `Host`.
    """
    if host is None:
        return
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name == "localhost" or name.endswith(".localhost") or _is_own_address(name):
        return
    raise Refused(
        421,
        "HOST_NOT_LOCAL",
        "the host must be localhost or an address of this machine: set PIXTRAL_API_KEYS or "
        "PIXTRAL_ALLOW_ANONYMOUS to allow other hosts",
    )


def _is_own_address(name: str) -> bool:
    """Whether it is an IP address of this machine, or the one that stands for all of them.

    No page from elsewhere can let an address point here, as it can its own name.
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # Only an address of its own can be bound; nothing is sent.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((name, 0))
        except OSError:
            return False
    return not address.is_multicast
