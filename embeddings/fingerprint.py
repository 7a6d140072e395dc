"""What makes an embedding, in one short string: weights, numbers, preprocessing, dtype."""

import hashlib
import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embeddings.codec import DType
from embeddings.vision import BadCheckpoint, read_params

# To be raised with any change that moves an embedding's values: decoding, resizing,
# normalisation, or the tower's arithmetic beyond rounding.
PREPROCESSING_VERSION = 1

VISION_PREFIXES = ("vision_encoder.", "patch_merger.", "pre_mm_projector_norm.")


def fingerprint(model_dir: Path, dtype: DType) -> str:
    """32 hexadecimal digits, equal in every process that serves the same model.

    Reads the vision weights (0.8 GB for Pixtral-12B) and nothing else of the checkpoint.
    Blocking: for start-up, in a thread.

    Raises:
        BadCheckpoint: where files are missing or malformed.
    """
    digest = hashlib.sha256()
    vision = read_params(model_dir).get("vision_encoder")
    digest.update(json.dumps([PREPROCESSING_VERSION, dtype, vision], sort_keys=True).encode())
    found = sorted(_vision_tensors(model_dir))
    if not found:
        raise BadCheckpoint(f"{model_dir}: consolidated*.safetensors holds no vision weights")
    for name, path, description, begin, end in found:
        digest.update(f"{name} {description}\n".encode())
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data)[begin:end] as tensor,
        ):
            digest.update(tensor)
    return digest.hexdigest()[:32]


def weight_files(model_dir: Path) -> list[Path]:
    """`consolidated*.safetensors`, in order. Raises BadCheckpoint where there is none."""
    files = sorted(model_dir.glob("consolidated*.safetensors"))
    if not files:
        raise BadCheckpoint(f"{model_dir} holds no consolidated*.safetensors")
    return files


def _vision_tensors(model_dir: Path) -> Iterator[tuple[str, Path, str, int, int]]:
    """(name, file, dtype and shape, first byte, end) of each vision tensor."""
    for path in weight_files(model_dir):
        offset, header = _read_header(path)
        for name, entry in header.items():
            if name.startswith(VISION_PREFIXES):
                begin, end = entry["data_offsets"]
                description = f"{entry['dtype']} {entry['shape']}"
                yield name, path, description, offset + begin, offset + end


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data begins, and the header: the safetensors format's length and JSON."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= path.stat().st_size - 8:
            raise BadCheckpoint(f"{path} is not a safetensors file, or is cut short")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise BadCheckpoint(f"{path} is not a safetensors file") from None
    return 8 + length, header
