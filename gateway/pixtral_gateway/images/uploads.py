"""Receives images that later requests name by their SHA-256."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Final

from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.errors import DeadlineExceeded, Overloaded, Unavailable
from pixtral_gateway.checks.conversation import ImageSource
from pixtral_gateway.images.image_reader import ImageInput, ImageReader
from pixtral_gateway.images.named_images import ImageName, ImageSize, NamedImages
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.tenancy.tenants import Tenant

# Of all that are being received or stored.
MAX_BYTES_AT_ONCE: Final = 256 << 20
FIELD: Final = "data"


class Uploads:
    """Receives files under the limits that images of requests have, all of them together no more
    than `max_bytes_at_once`."""

    def __init__(
        self,
        *,
        reader: ImageReader,
        names: NamedImages,
        admission: Admission,
        max_bytes_at_once: int = MAX_BYTES_AT_ONCE,
    ) -> None:
        self._reader = reader
        self._names = names
        self._admission = admission
        self._max_bytes_at_once = max_bytes_at_once
        self._held = 0

    async def put(
        self, pieces: AsyncIterator[bytes], tenant: Tenant, deadline: Deadline
    ) -> ImageInput:
        """Keeps the image that the pieces make up.

        Raises InvalidRequest where it is none that is taken, Overloaded, DeadlineExceeded, and
        Unavailable where there is nowhere to keep it.
        """
        with self._admission.permit(tenant, images=1):
            # Unlike a bytearray it gives out its bytes without a copy.
            received = io.BytesIO()
            try:
                async with asyncio.timeout(deadline.remaining()):
                    await self._receive(pieces, received)
                    return await self._keep(received.getvalue(), tenant)
            except TimeoutError:
                raise DeadlineExceeded() from None
            finally:
                self._held -= received.tell()

    async def _receive(self, pieces: AsyncIterator[bytes], received: io.BytesIO) -> None:
        async for piece in pieces:
            self._reader.check_size(received.tell() + len(piece), FIELD)
            if self._held + len(piece) > self._max_bytes_at_once:
                raise Overloaded("the gateway has no memory left for uploads: try again later")
            received.write(piece)
            self._held += len(piece)

    async def _keep(self, data: bytes, tenant: Tenant) -> ImageInput:
        image = await self._reader.read(ImageSource(FIELD, data=data))
        size = ImageSize(image.width, image.height, len(data))
        if not await self._names.put(ImageName(image.sha256, tenant.name), size, data):
            raise Unavailable("images cannot be kept now: send them with the request")
        return image
