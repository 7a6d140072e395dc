"""Lets pages of other origins send requests from a browser, if a setting names them."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

# Headers of an answer that a page may read.
_EXPOSED = ("x-request-id", "request-id", "retry-after")


def allowing(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Wraps `app` for pages of `origins`, such as `https://chat.example.org`; `*` means every page.

    Without origins, this returns `app` itself: a browser then shows its answers to the gateway's
    own page alone. A page sends its API key itself; the gateway uses no cookies.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        # A page from the network may send requests to a gateway on this machine, if the setting
        # names it.
        allow_private_network=True,
    )
