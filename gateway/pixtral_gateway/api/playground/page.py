"""Serves the page, a few static files in memory."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATHS = ("/", "/page/{name:path}")

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
# The page loads nothing from elsewhere, has nothing inline, appears in no frame, and never makes
# HTML of a text.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # A browser keeps the file but asks each time whether it has changed, so that it shows an
    # upgrade at once.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    headers: dict[str, str]

    @classmethod
    def of(cls, name: str, body: bytes) -> "_File":
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        kind = _TYPES[name[name.rindex(".") :]]
        return cls(body, {**_HEADERS, "content-type": kind, "etag": tag})


def _below(folder: Traversable, path: str = "") -> Iterator[tuple[str, bytes]]:
    """The files to serve, each by its path below `folder`."""
    for each in folder.iterdir():
        if each.is_dir():
            yield from _below(each, f"{path}{each.name}/")
        elif any(each.name.endswith(suffix) for suffix in _TYPES):
            yield f"{path}{each.name}", each.read_bytes()


class Page:
    """`grpc_port` is the port in the code for gRPC clients that the page shows."""

    def __init__(self, grpc_port: str) -> None:
        files = dict(_below(resources.files(__package__).joinpath("static")))
        index = files.pop("index.html").replace(b"{{grpc_port}}", grpc_port.encode())
        self._index = _File.of("index.html", index)
        self._files = {name: _File.of(name, body) for name, body in files.items()}

    def routes(self) -> list[Route]:
        return [Route(path, self.file) for path in PATHS]

    async def file(self, request: Request) -> Response:
        name = request.path_params.get("name")
        found = self._index if name is None else self._files.get(name)
        if found is None:
            raise HTTPException(404)
        known = request.headers.get("if-none-match", "")
        if found.headers["etag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=found.headers)
        return Response(found.body, headers=found.headers)
