"""A gateway that looks names up in a JSON file, PIXTRAL_TEST_NAMES: {"decoder": ["127.0.0.1"]}.

No process may change what the machine's own resolver says; all else is the gateway itself.
"""

import json
import os
from functools import partial
from pathlib import Path
from unittest import mock

from pixtral_gateway.__main__ import main
from pixtral_gateway.upstream.discovery import Group

NAMES = Path(os.environ.pop("PIXTRAL_TEST_NAMES"))


def addresses(name: str) -> list[str]:
    found: list[str] = json.loads(NAMES.read_text("utf-8"))[name]
    return found


async def look_up(name: str, port: int) -> set[str]:
    return {f"{address}:{port}" for address in addresses(name)}


if __name__ == "__main__":
    with mock.patch("pixtral_gateway.process.Group", partial(Group, resolve=look_up)):
        main()
