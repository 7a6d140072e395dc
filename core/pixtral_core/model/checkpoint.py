"""Finds the vision tower in a checkpoint, in Mistral's format or Hugging Face's."""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral_core.model import hugging_face
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec, read_params

INDEX = "consolidated.safetensors.index.json"
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


def check_language_model(model_dir: Path, params: Mapping[str, Any]) -> None:
    """Checks that the files in Mistral's format hold every part of the language model.

    An engine may leave a part that no file holds as it was allocated, and answer all the same.
    Reads headers alone, so that it names a part and not each tensor of it.

    Raises:
        BadCheckpoint: names the part, or the file of the index that is missing.
    """
    names = {name for path in _weight_files(model_dir) for name in _read_header(path)[1]}
    parts = ["tok_embeddings.", "norm."]
    parts += [f"layers.{number}." for number in range(int(params.get("n_layers") or 0))]
    if not params.get("tied_embeddings"):
        parts.append("output.")
    for part in parts:
        if not any(name.startswith(part) for name in names):
            advice = "download its files again"
            if part == "output.":
                advice += (
                    ", or set tied_embeddings in params.json if the model has its embeddings tied"
                )
            raise BadCheckpoint(f"{model_dir}: no file holds {part}weight or the like; {advice}")


def _weight_files(model_dir: Path) -> list[Path]:
    files = sorted(model_dir.glob("consolidated*.safetensors"))
    if not files:
        raise BadCheckpoint(f"{model_dir} holds no consolidated*.safetensors")
    for name in _indexed(model_dir / INDEX):
        if model_dir / name not in files:
            raise BadCheckpoint(f"{model_dir / name} is missing, which {INDEX} names")
    return files


def _indexed(index: Path) -> list[str]:
    """Names of the files that an index says the checkpoint has; none where there is no index."""
    if not index.is_file():
        return []
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(file) for file in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadCheckpoint(f"{index} has no weight_map") from None


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
    header.pop("__metadata__", None)
    return 8 + length, header
