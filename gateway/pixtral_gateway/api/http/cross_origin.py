"""Lets pages of other origins ask from within a browser, where a setting names them."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

# Headers of an answer that a page may read.
_EXPOSED = ("x-request-id", "request-id", "retry-after")


def allowing(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app` for pages of `origins`, such as `https://chat.example.org`; `*` is every page.

    With none it is `app` itself: a browser then keeps its answers from every page but the gateway's
    own. A page sends its API key itself; no cookies are taken.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        # A page from the network may ask a gateway on this machine, if it is named.
        allow_private_network=True,
    )
