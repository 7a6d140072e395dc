"""Reads all images of a request: files, URLs and names."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from pixtral_core.concurrency.gather import run_all
from pixtral_core.errors import NotFound
from pixtral_gateway.checks.conversation import ImageSource
from pixtral_gateway.images.image_reader import ImageInput, ImageReader
from pixtral_gateway.images.named_images import ImageName, ImageSize, NamedImages
from pixtral_gateway.metrics import NAMED_IMAGES
from pixtral_gateway.tenancy.tenants import Tenant

# The most files of named images in memory at once. A file stays in memory while it is encoded.
MAX_LOADED_FILES: Final = 8


class RequestImages:
    """Reads files and URLs with `reader`, and names with the records in `names`."""

    def __init__(self, reader: ImageReader, names: NamedImages) -> None:
        self._reader = reader
        self._names = names
        self._room = asyncio.Semaphore(MAX_LOADED_FILES)

    async def read_all(
        self, sources: Sequence[ImageSource], tenant: Tenant, fingerprint: str | None
    ) -> list[ImageInput]:
        """Reads all images at once, so that they take as long as the slowest URL.

        A name refers to a stored record, or to another image of the request that came as bytes. An
        image from a record has no data; `whole` loads it. With a fingerprint, Redis had the
        embedding or the file of each such image a moment ago.

        Raises InvalidRequest with a source's field, and NotFound with the fields of all missing
        images.
        """
        if not sources:
            return []
        given = [source for source in sources if source.sha256 is None]
        read = await run_all([self._reader.read(source, tenant.name) for source in given])
        came = {
            image.sha256: image for image, source in zip(read, given, strict=True) if source.data
        }
        named = [
            (source.sha256, source.path)
            for source in sources
            if source.sha256 is not None and source.sha256 not in came
        ]
        sizes = await self._find(named, tenant, fingerprint, images=len(sources))
        in_order = iter(read)

        def image_of(source: ImageSource) -> ImageInput:
            if source.sha256 is None:
                return next(in_order)
            if source.sha256 in came:
                return self._reader.again(came[source.sha256], source)
            return self._reader.named(source.sha256, sizes[source.sha256], source)

        return [image_of(source) for source in sources]

    def keep(
        self, sources: Sequence[ImageSource], images: Sequence[ImageInput], tenant: Tenant
    ) -> None:
        """Records in the background the images that came as bytes, so that requests can name them.
        The caller records images only after they were encoded, so no record is of an image that
        encoders refuse."""
        self._names.keep_sizes(
            {
                ImageName(image.sha256, tenant.name): ImageSize(
                    image.width, image.height, len(image.data)
                )
                for image, source in zip(images, sources, strict=True)
                if source.data
            }
        )

    @asynccontextmanager
    async def whole(self, image: ImageInput, scope: str) -> AsyncIterator[ImageInput]:
        """The image with its data. Raises NotFound if Redis does not have the file."""
        if image.data:
            yield image
            return
        async with self._room:
            data = await self._names.get(ImageName(image.sha256, scope))
            if data is None:
                raise _not_found([image.path])
            yield replace(image, data=data)

    async def _find(
        self,
        named: Sequence[tuple[bytes, str]],
        tenant: Tenant,
        fingerprint: str | None,
        *,
        images: int,
    ) -> dict[bytes, ImageSize]:
        names = [ImageName(sha256, tenant.name) for sha256 in {sha256 for sha256, _ in named}]
        found = await self._names.find(names, fingerprint)
        sizes = {name.sha256: size for name, size in found.items()}
        NAMED_IMAGES.labels("found").inc(len(sizes))
        NAMED_IMAGES.labels("missing").inc(len(names) - len(sizes))
        if len(sizes) < len(names):
            # The client will send the request again with the bytes, and the images count then.
            tenant.images.take(-images)
            raise _not_found([path for sha256, path in named if sha256 not in sizes])
        return sizes


def _not_found(paths: Sequence[str]) -> NotFound:
    return NotFound(
        "the gateway does not have an image that the request names: send it",
        "IMAGE_NOT_FOUND",
        violations=[(path, "the gateway does not have this image") for path in paths],
    )
