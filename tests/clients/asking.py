"""The question of all clients, and the small model's answer."""

import base64
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
MODEL = "pixtral-mini"
PICTURE = ROOT / "docs" / "demo" / "street.png"
PNG = PICTURE.read_bytes()
BASE64 = base64.b64encode(PNG).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
QUESTION = "How many shapes are there?"
ANSWER = "There are 3 shapes."
URL = os.environ.get("PIXTRAL_CLIENTS_URL", "")
V1 = f"{URL}/v1"


class Seen(BaseModel):
    """A thing in an image. Every value ends: the small model writes no JSON by itself."""

    kind: Literal["square", "circle", "diamond"]
    is_large: bool
    colours: list[Literal["red", "blue"]]


class Animal(BaseModel):
    """Nested, as people's own schemas are."""

    name: Literal["cat", "dog"]
    seen: Seen | None = None
