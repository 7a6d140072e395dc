"""Reads YAML with PyYAML's C parser, which is much faster than its Python parser."""

from collections.abc import Iterator
from typing import Any

import yaml


def load(text: str) -> Any:
    """Like yaml.safe_load."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


def load_all(text: str) -> Iterator[Any]:
    """Like yaml.safe_load_all."""
    return yaml.load_all(text, Loader=yaml.CSafeLoader)
