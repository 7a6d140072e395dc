"""Bounds the memory of embeddings whose requests wait for the engine."""

from collections import Counter
from collections.abc import Callable, Iterable

from pixtral_core.errors import Overloaded
from pixtral_decoder.request import ImagePlace


class WaitingBytes:
    """Counts the bytes of images, and each image once even if several requests wait with it."""

    def __init__(self, most_bytes: int, token_bytes: int) -> None:
        """`token_bytes` is the size of one image token."""
        self.bytes = 0
        self._most = most_bytes
        self._token_bytes = token_bytes
        self._requests = Counter[str]()

    def take(self, images: Iterable[ImagePlace]) -> Callable[[], None]:
        """Counts the images of a request.

        The returned function subtracts them. A second call changes nothing. Raises Overloaded if
        the bytes exceed the limit, unless no other images wait.
        """
        sizes = {image.identity: image.grid.tokens * self._token_bytes for image in images}
        more = sum(size for name, size in sizes.items() if not self._requests[name])
        if more and self.bytes and self.bytes + more > self._most:
            raise Overloaded("the decoder has no memory left for images of waiting requests")
        self.bytes += more
        self._requests.update(sizes.keys())

        def leave() -> None:
            while sizes:
                name, size = sizes.popitem()
                self._requests[name] -= 1
                if not self._requests[name]:
                    del self._requests[name]
                    self.bytes -= size

        return leave
