"""The Host headers that a gateway without API keys accepts."""

import ipaddress
import socket
from urllib.parse import urlsplit

from pixtral_gateway.api.openai.errors import Refused


def check_host(host: str | None) -> None:
    """Raises Refused for a name or address that is not this machine's own.

    Another site can point its own name to this machine (DNS rebinding). To a browser, the site's
    page then has the same origin as the gateway, and may send requests and read answers. A request
    without `Host` is accepted, because a browser always sends it.
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
    """Whether the name is an IP address of this machine, or the one that means all its addresses.

    Another site can point its own name to this machine, but not an address.
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # Only an address of this machine can be bound. Nothing is sent.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((name, 0))
        except OSError:
            return False
    return not address.is_multicast
