"""The Host headers that a gateway without API keys accepts."""

import ipaddress
import socket
from urllib.parse import urlsplit

from pixtral_gateway.api.openai.errors import Refused


def check_host(host: str | None) -> None:
    """Raises Refused for a name or address that is not this machine's own.

    A page of another site can point its own name here (DNS rebinding). To a browser it then has the
    same origin as the gateway, and may send requests and read answers. A client that is not a
    browser may send no `Host`.
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
    """Whether it is an IP address of this machine, or the one that means all of them.

    A page of another site cannot point an address here, as it can its own name.
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # Only an own address can be bound; nothing is sent.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((name, 0))
        except OSError:
            return False
    return not address.is_multicast
