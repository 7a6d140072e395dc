"""A server on loopback with the part of the hub's API that huggingface_hub needs for a model."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"  # noqa: S105 - no secret


@dataclass
class Repository:
    """A model on the hub. `claimed` has sizes that the hub announces in place of the real ones."""

    files: Mapping[str, bytes]
    is_gated: bool = False
    is_private: bool = False
    branches: tuple[str, ...] = ("main",)
    claimed: Mapping[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        parts = [name.encode() + content for name, content in sorted(self.files.items())]
        return hashlib.sha1(b"".join(parts), usedforsecurity=False).hexdigest()

    def size(self, name: str) -> int:
        return self.claimed.get(name, len(self.files[name]))


@dataclass
class Hub:
    """The hub.

    Attributes:
        url: its address.
        repositories: its models, by name.
        requests: the requests so far, as `GET /path`; for a part, ` bytes=FROM-` follows.
        cuts: by file, how many of the next downloads stop in the middle.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)

    def contents_asked(self, name: str) -> list[str]:
        return [each for each in self.requests if each.startswith("GET") and f"/{name}" in each]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        part = self.headers.get("Range", "")
        self.hub.requests.append(f"{self.command} {path} {part}".strip())
        parts = path.removeprefix("/api/models").split("/")
        if len(parts) < 5:
            # The library also sends requests that are not about models.
            self._refuse(404, "")
            return
        _, owner, name, kind, *rest = parts
        repository = self.hub.repositories.get(f"{owner}/{name}")
        knows = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.is_private and not knows):
            self._refuse(404 if knows else 401, "RepoNotFound")
        elif rest[0] not in (*repository.branches, repository.commit):
            self._refuse(404, "RevisionNotFound")
        elif kind == "revision":
            siblings = [{"rfilename": file} for file in repository.files]
            facts = {"id": f"{owner}/{name}", "sha": repository.commit, "siblings": siblings}
            self._send_json(facts)
        elif kind == "tree":
            self._send_json([_entry(repository, file) for file in repository.files])
        elif repository.is_gated and not knows:
            self._refuse(401, "GatedRepo")
        elif rest[1] not in repository.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send_file(repository, rest[1], part)

    def _send_file(self, repository: Repository, file: str, part: str) -> None:
        content = repository.files[file]
        start = int(part.removeprefix("bytes=").partition("-")[0]) if part else 0
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(repository.size(file) - start))
        self.send_header("ETag", f'"{_etag(file, content)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cuts.get(file, 0):
            self.hub.cuts[file] -= 1
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _send_json(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _etag(file: str, content: bytes) -> str:
    """The ETag of a file. LFS has the weights, whose ETag is their SHA-256."""
    if file.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return _blob(content)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _entry(repository: Repository, file: str) -> dict[str, object]:
    """A file's entry in the list of files."""
    content, size = repository.files[file], repository.size(file)
    entry: dict[str, object] = {"type": "file", "path": file, "oid": _blob(content), "size": size}
    if file.endswith(".safetensors"):
        entry["lfs"] = {"oid": _etag(file, content), "size": size, "pointerSize": 134}
    return entry


@contextmanager
def serving_hub(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    hub = Hub(repositories=dict(repositories))
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
