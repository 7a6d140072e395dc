"""The fingerprint: a short digest of everything that determines an embedding."""

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pixtral_core.cache.wire_format import DType
from pixtral_core.model.checkpoint import StoredTensor, read_spec, vision_tensors
from pixtral_core.model.vision_spec import VisionSpec

# Raise this number with any change of an embedding's values: decoding, resizing, normalisation, or
# the tower's arithmetic beyond rounding. Version 2 turns photographs upright and scales 16-bit
# grey.
PREPROCESSING_VERSION = 2

# Raise this number with any change of the tower's products in 8 bits beyond rounding.
FP8_VERSION = 1

# These fields belong to the part after the cut.
_NOT_THE_TOWERS = {
    "adapter_bias",
    "image_token_id",
    "image_break_token_id",
    "image_end_token_id",
}


def fingerprint(model_dir: Path, dtype: DType, *, fp8: bool = False) -> str:
    """32 hexadecimal digits, equal in every process that serves the same model.

    The fingerprint does not include the dtype in which a device computes: a CPU that computes in
    float32 has weights of `dtype`, and rounds the result to `dtype`. Its embedding differs from a
    GPU's by less than the rounding between layers does (docs/performance.md). `fp8` means that the
    tower multiplies in 8 bits, and changes the fingerprint.

    A model in Hugging Face's format has the fingerprint that it has in Mistral's. This function
    reads the vision weights and nothing else of the checkpoint. It blocks: run it in a thread, at
    start.

    Raises:
        BadCheckpoint: if files are missing or malformed.
    """
    spec = read_spec(model_dir)
    digest = hashlib.sha256()
    made = [PREPROCESSING_VERSION, dtype, _numbers(spec)]
    if fp8:
        made.append(f"fp8 {FP8_VERSION}")
    digest.update(json.dumps(made).encode())
    for tensor in vision_tensors(model_dir):
        digest.update(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        with (
            tensor.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data)[tensor.begin : tensor.end] as whole,
        ):
            for begin, end in _pieces(tensor, len(whole), spec.heads):
                with whole[begin:end] as piece:
                    digest.update(piece)
    return digest.hexdigest()[:32]


def _numbers(spec: VisionSpec) -> list[tuple[str, Any]]:
    return sorted((name, at) for name, at in asdict(spec).items() if name not in _NOT_THE_TOWERS)


def _pieces(tensor: StoredTensor, length: int, heads: int) -> Iterator[tuple[int, int]]:
    """The begin and end of each piece of the tensor, in the order of Mistral's format."""
    if not tensor.has_halves:
        yield 0, length
        return
    rows = tensor.shape[0]
    row, head = length // rows, rows // heads
    for first in range(0, rows, head):
        for pair in range(head // 2):
            for at in (first + pair, first + head // 2 + pair):
                yield at * row, (at + 1) * row
