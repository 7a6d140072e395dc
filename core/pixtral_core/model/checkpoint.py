"""Finds the vision tower in a checkpoint, in Mistral's format or Hugging Face's."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral_core.model import hugging_face
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec, read_params

VISION_PREFIXES = ("vision_encoder.", "patch_merger.", "pre_mm_projector_norm.")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A vision tensor in a safetensors file.

    Attributes:
        name: in Mistral's format.
        stored_name: in the file.
        dtype: the file's name for it.
        begin, end: of its bytes in the file.
        has_halves: the first rows of a head's rotary pairs are in front of the second ones;
            else the two of a pair are side by side.
    """

    name: str
    path: Path
    stored_name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    has_halves: bool


def read_spec(model_dir: Path) -> VisionSpec:
    """Raises BadCheckpoint where there is no Pixtral in either format."""
    if hugging_face.is_hugging_face(model_dir):
        return hugging_face.read_spec(model_dir)
    return VisionSpec.from_params(read_params(model_dir))


def vision_tensors(model_dir: Path) -> list[StoredTensor]:
    """All that belong to the vision tower, by their names; reads nothing but headers.

    Raises:
        BadCheckpoint: where files are missing or malformed, or hold none.
    """
    is_theirs = hugging_face.is_hugging_face(model_dir)
    files = hugging_face.weight_files(model_dir) if is_theirs else _weight_files(model_dir)
    found = [tensor for path in files for tensor in _tensors(path, is_theirs)]
    if not found:
        raise BadCheckpoint(f"{model_dir}: its safetensors hold no vision weights")
    return sorted(found, key=lambda tensor: tensor.name)


def _weight_files(model_dir: Path) -> list[Path]:
    files = sorted(model_dir.glob("consolidated*.safetensors"))
    if not files:
        raise BadCheckpoint(f"{model_dir} holds no consolidated*.safetensors")
    return files


def _tensors(path: Path, is_theirs: bool) -> Iterator[StoredTensor]:
    offset, header = _read_header(path)
    for stored_name, entry in header.items():
        name = hugging_face.mistral_name(stored_name) if is_theirs else stored_name
        if name is None or not name.startswith(VISION_PREFIXES):
            continue
        begin, end = entry["data_offsets"]
        yield StoredTensor(
            name=name,
            path=path,
            stored_name=stored_name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            begin=offset + begin,
            end=offset + end,
            has_halves=is_theirs and hugging_face.has_halves(name),
        )


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
