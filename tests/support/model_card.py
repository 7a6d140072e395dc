"""The message lists of Pixtral-12B's model card, with other image URLs."""

import base64
from typing import Any

from tests.support.gateway_pictures import picture

NAME = "mistralai/Pixtral-12B-2409"
URLS = [
    "data:image/png;base64," + base64.b64encode(picture(*size)).decode()
    for size in ((40, 30), (60, 20), (20, 90))
]
SIMPLE: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Describe this image in one sentence."},
            {"type": "image_url", "image_url": {"url": URLS[0]}},
        ],
    },
]
ADVANCED: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Describe this image in one sentence."},
            {"type": "image_url", "image_url": {"url": URLS[0]}},
            {"type": "image_url", "image_url": {"url": URLS[1]}},
        ],
    },
    {"role": "assistant", "content": "The images show nature."},
    {"role": "user", "content": "More details please and answer only in French!."},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URLS[2]}}]},
]
