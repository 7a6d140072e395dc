"""Reads the header of a safetensors file, and nothing after it."""

import json
import struct
from pathlib import Path
from typing import Any

from pixtral_core.model.vision_spec import BadCheckpoint


def read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """The begin of the data in the file, and for each tensor its dtype, shape and offsets in the
    data.

    Raises:
        BadCheckpoint: if the file is not a safetensors file, or is cut short within its header.
    """
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
