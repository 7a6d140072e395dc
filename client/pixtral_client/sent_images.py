"""Sends an image once, and after that its SHA-256.

The first time a picture goes as it is, unless it is so large that asking whether somebody else has
sent it costs less. From then on its SHA-256 goes, and where the gateway does not have it (any more)
its file once more.
"""

import base64
import hashlib
import threading
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pixtral.v1 import chat_pb2
from pixtral_client.errors import InvalidRequest, NotFound, PixtralError

# Sending a smaller file takes no longer than asking about it.
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
    """Digests of the files that the gateway is believed to have; for any thread.

    `taken` is false once a gateway turned out not to know names, as one of an older release does.
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
    """`is_repeated`: an earlier one of the request is of the same file, and shows it for both."""

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
    """A request in the form in which it is to be sent next: `request`.

    Hashes the pictures that may be named, some milliseconds for the largest.
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
                    # Later requests can name a file's bytes, but not a URL that contains them.
                    picture.show()

    def answered(self) -> None:
        """The gateway has received the whole request."""
        if self._is_refused:
            # The gateway answers to the files only.
            self._known.taken = False
        for picture in self._pictures.values():
            self._known.add(picture.sha256)
        self._pictures = {}

    def again(self, error: PixtralError) -> bool:
        """Whether to send it again after this error, now with the files that were not there."""
        named = {path: each for path, each in self._pictures.items() if each.is_named}
        fields = {violation.field for violation in error.violations}
        if isinstance(error, NotFound) and error.reason == "IMAGE_NOT_FOUND":
            asked_for = [
                each
                for path, each in named.items()
                # The second time it sends all files: the gateway loses them as fast as they come.
                if (f"{path}.sha256" in fields or self._has_asked) and not each.is_repeated
            ]
            self._has_asked = True
        elif isinstance(error, InvalidRequest) and not fields.isdisjoint(named):
            # To a gateway that does not know names the image is empty.
            self._is_refused = True
            asked_for = list(named.values())
        else:
            return False
        for picture in asked_for:
            picture.show()
            self._known.forget(picture.sha256)
        return bool(asked_for)


def data_of(url: str) -> bytes:
    """The file that a data: URL in base64 holds. Raises ValueError for any other."""
    head, comma, encoded = url.partition(",")
    if not comma or head[:5].lower() != "data:" or not head.lower().endswith(";base64"):
        raise ValueError("not a data: URL in base64")
    return base64.b64decode(encoded, validate=True)


def _data(image: chat_pb2.Image) -> bytes:
    """The file if the request contains it; else nothing."""
    if image.WhichOneof("source") == "data":
        return image.data
    if len(image.url) < MIN_BYTES:
        return b""
    try:
        return data_of(image.url)
    except ValueError:
        # For the gateway to refuse.
        return b""


def _images(chat: chat_pb2.Chat) -> list[tuple[str, chat_pb2.Image]]:
    return [
        (f"messages[{i}].content[{j}].image", part.image)
        for i, message in enumerate(chat.messages)
        for j, part in enumerate(message.content)
        if part.HasField("image")
    ]
