"""Image files of every kind, and the specs that they are resized for."""

from typing import Any

import numpy as np
from PIL import ExifTags, Image

from pixtral_core.model.vision_spec import VisionSpec
from tests.encoder.pictures import file_of, picture, png


def spec_of(patch_size: int, merge_size: int, max_image_size: int) -> VisionSpec:
    return VisionSpec.from_params(
        {
            "vision_encoder": {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 128,
                "rope_theta": 10_000,
                "patch_size": patch_size,
                "spatial_merge_size": merge_size,
                "max_image_size": max_image_size,
                "image_token_id": 10,
            }
        }
    )


PIXTRAL = spec_of(16, 1, 1024)
MERGING = spec_of(14, 2, 1540)


def frames(count: int) -> list[Image.Image]:
    return [picture(70, 50, seed) for seed in range(count)]


def with_alpha() -> Image.Image:
    image = picture(333, 77).convert("RGBA")
    image.putalpha(picture(333, 77, seed=1).convert("L"))
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def photograph(form: str, orientation: int, **options: Any) -> bytes:
    return file_of(picture(200, 100), form, exif=turned(orientation), **options)


GREY_16 = Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20)

# The files that mistral_common reads as a viewer does.
FILES = {
    "rgb": png(333, 777),
    "one pixel": png(1, 1),
    "wide": png(1024, 16),
    "tall": png(16, 1024),
    "larger than the model takes": png(1500, 700),
    "very thin": png(3000, 1),
    "rgba": file_of(with_alpha()),
    "grey": file_of(picture(99, 101).convert("L")),
    "grey with alpha": file_of(with_alpha().convert("LA")),
    "bilevel": file_of(picture(99, 101).convert("1")),
    "palette": file_of(picture(99, 101).convert("P")),
    "palette with transparency": file_of(picture(99, 101).convert("P"), transparency=3),
    "2-bit palette": file_of(picture(99, 101).quantize(4), bits=2),
    "jpeg": file_of(picture(333, 777), "JPEG"),
    "progressive jpeg": file_of(picture(200, 100), "JPEG", progressive=True),
    "grey jpeg": file_of(picture(200, 100).convert("L"), "JPEG"),
    "cmyk jpeg": file_of(picture(200, 100).convert("CMYK"), "JPEG"),
    "jpeg with a colour profile": file_of(picture(200, 100), "JPEG", icc_profile=bytes(70_000)),
    "jpeg of several images": file_of(
        frames(3)[0], "MPO", save_all=True, append_images=frames(3)[1:]
    ),
    "gif": file_of(picture(120, 80), "GIF"),
    "animated gif": file_of(frames(3)[0], "GIF", save_all=True, append_images=frames(3)[1:]),
    "webp": file_of(picture(120, 80), "WEBP"),
    "lossless webp with alpha": file_of(with_alpha(), "WEBP", lossless=True),
    "animated webp": file_of(frames(3)[0], "WEBP", save_all=True, append_images=frames(3)[1:]),
    "animated png": file_of(frames(3)[0], "PNG", save_all=True, append_images=frames(3)[1:]),
    "bmp": file_of(picture(99, 101), "BMP"),
    "bilevel bmp": file_of(picture(99, 101).convert("1"), "BMP"),
    "icon": file_of(picture(64, 64), "ICO"),
    "icon of bitmaps with alpha": file_of(with_alpha(), "ICO", bitmap_format="bmp"),
    "avif": file_of(picture(99, 101), "AVIF"),
    "avif with alpha": file_of(with_alpha(), "AVIF"),
    "tiff": file_of(picture(99, 101), "TIFF", compression="tiff_lzw"),
    "tiff with alpha": file_of(with_alpha(), "TIFF"),
    "cmyk tiff": file_of(picture(99, 101).convert("CMYK"), "TIFF"),
    "turned tiff": file_of(picture(200, 100), "TIFF", exif=turned(6)),
    "jpeg 2000": file_of(picture(99, 101), "JPEG2000"),
    "jpeg 2000 with alpha": file_of(with_alpha(), "JPEG2000"),
    "ppm": file_of(picture(99, 101), "PPM"),
    "png with a colour profile": file_of(picture(99, 101), icc_profile=bytes(3000)),
}
