"""Sends an image once, and after that its SHA-256.

The first request with an image has its file. A large file is an exception: its SHA-256 goes first,
because another client may have sent it already. Later requests have the SHA-256. If the gateway
lacks the image, the client sends the file again.
"""

import base64
import hashlib
import threading
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pixtral.v1 import chat_pb2
from pixtral_client.errors import InvalidRequest, NotFound, PixtralError

# Sending a smaller file takes no longer than a request with its SHA-256.
MIN_BYTES: Final = 16 << 10
# At 100 megabits a second this takes as long as a round trip across an ocean.
LARGE_BYTES: Final = 1 << 20
MAX_KNOWN: Final = 4096

Request = TypeVar(
    "Request",
    chat_pb2.CompleteRequest,
    chat_pb2.StreamCompleteRequest,
    chat_pb2.CountTokensRequest,
)


class KnownImages:
    """Digests of the files that the gateway probably has; safe for any thread.

    `taken` is False once the gateway turns out not to accept names, as older releases do.
    """

    def __init__(self) -> None:
        self.taken = True
        # In the order of their last use.
        self._digests: dict[str, None] = {}
        self._lock = threading.Lock()

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._digests

    def add(self, sha256: str) -> None:
        with self._lock:
            self._digests.pop(sha256, None)
            self._digests[sha256] = None
            if len(self._digests) > MAX_KNOWN:
                del self._digests[next(iter(self._digests))]

    def forget(self, sha256: str) -> None:
        with self._lock:
            self._digests.pop(sha256, None)


@dataclass(slots=True)
class _Picture:
    """An image of a request. `is_repeated`: the file comes with an earlier image."""

    image: chat_pb2.Image
    data: bytes
    sha256: str
    is_repeated: bool

    def name(self) -> None:
        self.image.sha256 = self.sha256

    def show(self) -> None:
        self.image.data = self.data

    @property
    def is_named(self) -> bool:
        return self.image.WhichOneof("source") == "sha256"


class Outgoing(Generic[Request]):
    """A request whose `request` is in the form to send next.

    Making one hashes the images that can be named, some milliseconds for the largest.
    """

    def __init__(self, request: Request, known: KnownImages) -> None:
        self.request: Request = request
        self._known = known
        self._has_asked = self._is_refused = False
        self._pictures: dict[str, _Picture] = {}
        if not known.taken:
            return
        digests: set[str] = set()
        for path, image in _images(request.chat):
            data = _data(image)
            if len(data) >= MIN_BYTES:
                sha256 = hashlib.sha256(data).hexdigest()
                picture = _Picture(image, data, sha256, is_repeated=sha256 in digests)
                self._pictures[path] = picture
                digests.add(sha256)
                if picture.is_repeated or sha256 in known or len(data) >= LARGE_BYTES:
                    picture.name()
                elif image.WhichOneof("source") == "url":
                    # Later requests can name a file, but not a URL that contains it.
                    picture.show()

    def answered(self) -> None:
        """Records that the gateway has received the whole request."""
        if self._is_refused:
            # It accepted the files after it had refused the names.
            self._known.taken = False
        for picture in self._pictures.values():
            self._known.add(picture.sha256)
        self._pictures = {}

    def again(self, error: PixtralError) -> bool:
        """Whether to send the request again, with the files that the gateway lacks."""
        named = {path: each for path, each in self._pictures.items() if each.is_named}
        fields = {violation.field for violation in error.violations}
        if isinstance(error, NotFound) and error.reason == "IMAGE_NOT_FOUND":
            asked_for = [
                each
                for path, each in named.items()
                # The second time it sends all files, because the gateway loses them as fast as they
                # come.
                if (f"{path}.sha256" in fields or self._has_asked) and not each.is_repeated
            ]
            self._has_asked = True
        elif isinstance(error, InvalidRequest) and not fields.isdisjoint(named):
            # A gateway that does not know names sees an empty image.
            self._is_refused = True
            asked_for = list(named.values())
        else:
            return False
        for picture in asked_for:
            picture.show()
            self._known.forget(picture.sha256)
        return bool(asked_for)


def data_of(url: str) -> bytes:
    """The file in a base64 data: URL. Raises ValueError for other URLs."""
    head, comma, encoded = url.partition(",")
    if not comma or head[:5].lower() != "data:" or not head.lower().endswith(";base64"):
        raise ValueError("not a data: URL in base64")
    return base64.b64decode(encoded, validate=True)


def _data(image: chat_pb2.Image) -> bytes:
    """The file if the request contains it; empty if not."""
    if image.WhichOneof("source") == "data":
        return image.data
    if len(image.url) < MIN_BYTES:
        return b""
    try:
        return data_of(image.url)
    except ValueError:
        # The gateway refuses it.
        return b""


def _images(chat: chat_pb2.Chat) -> list[tuple[str, chat_pb2.Image]]:
    return [
        (f"messages[{i}].content[{j}].image", part.image)
        for i, message in enumerate(chat.messages)
        for j, part in enumerate(message.content)
        if part.HasField("image")
    ]
