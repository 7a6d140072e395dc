"""The Host headers that a gateway without API keys answers to."""

from urllib.parse import urlsplit

from pixtral_core.settings import is_loopback
from pixtral_gateway.api.openai.errors import Refused


def check_host(host: str | None) -> None:
    """Raises Refused for a name that is not this machine's own.

    A page from elsewhere that lets its own name point here (DNS rebinding) is of the same origin
    to a browser, and might ask and read. What is no browser may name nothing.
    """
    if host is None:
        return
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not (is_loopback(f"{name}:") or name.endswith(".localhost")):
        raise Refused(
            421,
            "HOST_NOT_LOCAL",
            "this gateway is asked by the name of this machine alone, such as localhost; it needs "
            "api_keys, or allow_anonymous, to be asked by others",
        )
