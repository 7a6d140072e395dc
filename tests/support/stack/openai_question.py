"""A question about images in OpenAI's format."""

import base64
from typing import Any

from pixtral_client import Sampling

MODEL = "random-pixtral"
SCHEMA = {
    "type": "object",
    "properties": {"at": {"enum": ["cat", "dog"]}},
    "required": ["at"],
    "additionalProperties": False,
}
# Greedy, with exactly max_tokens tokens.
OPTIONS: Sampling = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


def url_of(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def question(*pictures: bytes) -> list[Any]:
    shown = [{"type": "image_url", "image_url": {"url": url_of(each)}} for each in pictures]
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [*shown, {"type": "text", "text": "What is this?"}]},
    ]
