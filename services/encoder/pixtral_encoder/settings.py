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
# Pillow itself regards a file with more pixels as a decompression bomb.
PILLOW_MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 0


class EncoderSettings(ModelSettings, RedisSettings):
    """Encodes images for a Pixtral model: its vision tower, on a GPU or CPU."""

    listen: Address = Field(
        "127.0.0.1:50052", description="host:port of gRPC; port 0 is any free port."
    )
    model_dir: DirectoryPath = Field(
        description="Directory of the model, in Mistral's format (params.json, "
        "consolidated*.safetensors) or Hugging Face's (config.json, model*.safetensors)."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="The vision tower's device. auto: a GPU if the machine has one, else the CPU.",
    )
    dtype: Literal[DType.BF16, DType.F32] = Field(
        DType.BF16,
        description="The dtype of weights and embeddings; the decoders must have the same value.",
    )
    vision_fp8: bool = Field(
        False,
        description="Multiply in 8 bits in the vision tower, which is faster on an H100 or a "
        "newer GPU. This changes the embeddings, so the decoders must have the same value.",
    )
    cache_bytes: int = Field(
        1024 * MIB, ge=64 * MIB, description="Bytes of embeddings in this process's memory."
    )
    enforce_eager: bool = Field(
        False,
        description="Do not compile the vision tower at start. The tower is then slower on a GPU, "
        "but needs no C compiler.",
    )
    threads: int = Field(
        0, ge=0, description="CPU threads of the vision tower; 0: one for each physical core."
    )
    decode_processes: int = Field(
        min(8, container.cpus()),
        ge=1,
        description="Processes that decode images; each decodes one at a time.",
    )
    decode_bytes: int = Field(
        container.memory_bytes() // 4,
        ge=1,
        description="Memory for all images that are being decoded. An image of 64 million pixels "
        "needs 1.1 GiB, and up to 2.2 GiB in formats other than PNG, JPEG and GIF. One large image "
        "is decoded even if it needs more.",
    )
    decode_seconds: float = Field(
        10.0,
        gt=0,
        description="The most seconds of processor time for decoding and resizing an image. It may "
        "take six times as long by the clock.",
    )
    batch_patches: int = Field(
        16_384,
        ge=1,
        description="The most patches in a batch; an image of 1024x1024 has 4096 "
        "patches of 16 pixels.",
    )
    queue_patches: int = Field(
        262_144,
        ge=1,
        description="The most patches of images that are being decoded or encoded; "
        "more are refused.",
    )
    queue_images: int = Field(
        1024,
        ge=1,
        description="The most images that are being looked up or encoded; more are refused.",
    )
    queue_bytes: int = Field(
        1024 * MIB,
        ge=1,
        description="The most bytes of image files that are being looked up or encoded; more are "
        "refused.",
    )
    max_image_bytes: int = Field(
        20 * MIB,
        ge=1,
        # The message also contains the key.
        le=MAX_MESSAGE_BYTES - MIB,
        description="The most bytes of an image file.",
    )
    max_image_pixels: int = Field(
        64_000_000,
        ge=1,
        le=PILLOW_MAX_PIXELS,
        description="The most pixels of an image: width times height.",
    )
    image_formats: ImageFormats = Field(
        DEFAULT_FORMATS,
        description=IMAGE_FORMATS_DESCRIPTION,
    )
