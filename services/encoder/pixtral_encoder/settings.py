"""The settings of an encoder."""

from typing import Literal

from PIL import Image
from pydantic import DirectoryPath, Field

from pixtral_core.cache.wire_format import DType
from pixtral_core.image.formats import DEFAULT_FORMATS
from pixtral_core.server import container
from pixtral_core.server.channel import MAX_MESSAGE_BYTES
from pixtral_core.settings import (
    IMAGE_FORMATS_DESCRIPTION,
    Address,
    ImageFormats,
    ModelSettings,
    RedisSettings,
)

MIB = 1 << 20
# Above this many pixels Pillow itself takes a file for a decompression bomb.
PILLOW_MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 0


class EncoderSettings(ModelSettings, RedisSettings):
    """Encodes images for a Pixtral model: its vision tower, on a GPU or CPU."""

    listen: Address = Field(
        "127.0.0.1:50052", description="host:port to serve gRPC on; port 0 is any."
    )
    model_dir: DirectoryPath = Field(
        description="Directory of the model in Mistral format: params.json, "
        "consolidated*.safetensors; or in Hugging Face's: config.json, model*.safetensors."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the vision tower runs; auto: on a GPU where there is one."
    )
    dtype: Literal[DType.BF16, DType.F32] = Field(
        DType.BF16,
        description="The dtype of weights and embeddings; the decoders must have the same.",
    )
    vision_fp8: bool = Field(
        False,
        description="Multiply in 8 bits in the vision tower, which a GPU of the kind of an H100 or "
        "newer does faster; embeddings are other ones, and the decoders must have the same.",
    )
    cache_bytes: int = Field(
        1024 * MIB, ge=64 * MIB, description="Embeddings kept in this process's memory, in bytes."
    )
    enforce_eager: bool = Field(
        False,
        description="On a GPU, run the vision tower as it is instead of compiling it at start: "
        "slower, and needs no C compiler.",
    )
    threads: int = Field(
        0, ge=0, description="CPU threads of the vision tower; 0: one a physical core."
    )
    decode_processes: int = Field(
        min(8, container.cpus()), ge=1, description="Processes that decode images, one each."
    )
    decode_bytes: int = Field(
        container.memory_bytes() // 4,
        ge=1,
        description="Memory for images that are being decoded, all together: 64 million pixels "
        "need 1.1 GiB, and up to 2.2 in other formats than PNG, JPEG and GIF. A large image that "
        "is alone is decoded in any case.",
    )
    decode_seconds: float = Field(
        10.0,
        gt=0,
        description="Processor time that an image may take to decode and resize, and a sixth of "
        "its time by the clock.",
    )
    batch_patches: int = Field(
        16_384, ge=1, description="Patches in one batch; a 1024x1024 image has 4096 at 16 pixels."
    )
    queue_patches: int = Field(
        262_144, ge=1, description="Patches of images being decoded or encoded, before refusal."
    )
    queue_images: int = Field(
        1024, ge=1, description="Images of any size being looked up or encoded, before refusal."
    )
    queue_bytes: int = Field(
        1024 * MIB,
        ge=1,
        description="The size of image files being looked up or encoded; more is refused.",
    )
    max_image_bytes: int = Field(
        20 * MIB,
        ge=1,
        # A message holds the key, too.
        le=MAX_MESSAGE_BYTES - MIB,
        description="The largest image file.",
    )
    max_image_pixels: int = Field(
        64_000_000, ge=1, le=PILLOW_MAX_PIXELS, description="The most pixels of an image."
    )
    image_formats: ImageFormats = Field(
        DEFAULT_FORMATS,
        description=IMAGE_FORMATS_DESCRIPTION,
    )
