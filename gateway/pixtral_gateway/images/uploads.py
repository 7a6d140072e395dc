"""Receives images that later requests name by their SHA-256."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Final

from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import DeadlineExceeded, Unavailable
from pixtral_core.server.reception import Pace, when_behind
from pixtral_gateway.checks.conversation import ImageSource
from pixtral_gateway.images.image_reader import ImageInput, ImageReader
from pixtral_gateway.images.named_images import ImageName, ImageSize, NamedImages
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.tenancy.tenants import Tenant

FIELD: Final = "data"


class Uploads:
    """Receives files under the limits of images in requests, as many at once as fit into `room`."""

    def __init__(
        self,
        *,
        reader: ImageReader,
        names: NamedImages,
        admission: Admission,
        room: SharedLimit,
    ) -> None:
        self._reader = reader
        self._names = names
        self._admission = admission
        self._room = room

    async def put(
        self,
        pieces: AsyncIterator[bytes],
        tenant: Tenant,
        deadline: Deadline,
        party: str | None = None,
    ) -> ImageInput:
        """Stores the image that the pieces make up. `party` is the party of `room` for which the
        bytes count; None means the tenant.

        Raises InvalidRequest if the file is not an accepted image, Overloaded if there is no room,
        DeadlineExceeded if the file comes too slowly, and Unavailable if Redis does not store it.
        """
        party = tenant.name if party is None else party
        with self._admission.permit(tenant, images=1):
            # A BytesIO returns its bytes without a copy, unlike a bytearray.
            received = io.BytesIO()
            try:
                async with asyncio.timeout(deadline.remaining()):
                    await self._receive(pieces, received, party)
                    return await self._keep(received.getvalue(), tenant)
            except TimeoutError:
                raise DeadlineExceeded() from None
            finally:
                self._room.give_back(party, received.tell())

    async def _receive(
        self, pieces: AsyncIterator[bytes], received: io.BytesIO, party: str
    ) -> None:
        pace, pace_ends = Pace(), asyncio.timeout(None)
        try:
            async with pace_ends:
                pace_ends.reschedule(when_behind(pace))
                async for piece in pieces:
                    self._reader.check_size(received.tell() + len(piece), FIELD)
                    self._room.take(party, len(piece))
                    received.write(piece)
                    pace.receive(len(piece))
                    pace_ends.reschedule(when_behind(pace))
        except TimeoutError:
            raise DeadlineExceeded("the file arrives too slowly or not at all") from None

    async def _keep(self, data: bytes, tenant: Tenant) -> ImageInput:
        image = await self._reader.read(ImageSource(FIELD, data=data), tenant.name)
        size = ImageSize(image.width, image.height, len(data))
        if not await self._names.put(ImageName(image.sha256, tenant.name), size, data):
            raise Unavailable("the gateway cannot store images now: send them with the request")
        return image
