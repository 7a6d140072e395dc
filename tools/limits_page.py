"""Writes docs/limits.md, and the ranges of docs/api.md, from the table of limits.

python -m tools.limits_page [--check]: with --check, fails if they are out of date.
"""

import re
import sys
from pathlib import Path

from pixtral_core.limits import TABLE
from pixtral_core.settings import ENV_PREFIX, ProcessSettings
from pixtral_decoder.settings import DecoderSettings
from pixtral_gateway.settings import GatewaySettings

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, API = DOCS / "limits.md", DOCS / "api.md"

HEAD = """\
# Limits

`python -m tools.limits_page` makes this page from `core/pixtral_core/limits.py`, which every tier
reads. `[]` is an entry of a list or a map.

| a request | over gRPC | over HTTP |
|---|---|---|
| beyond a field's limit | `INVALID_ARGUMENT` with the field's path | 400 with the path in `param` |
| too large as a whole | `RESOURCE_EXHAUSTED` | 413 |

The gateway refuses such a request before any image is encoded. There are two exceptions: the
encoder counts the scans of a JPEG, and the decoder measures the seconds that a structure takes.

## Fixed limits

| field | limit | |
|---|---|---|
"""
SET = """
## Limits that settings change

`PIXTRAL_CONTEXT_LENGTH` also bounds the number of all parts of the messages.
[settings.md](settings.md) has all settings, and [tenants.md](tenants.md) the limits of a tenant.

| variable | default | |
|---|---|---|
"""
SETTINGS: dict[str, type[ProcessSettings]] = {
    "max_images": GatewaySettings,
    "max_image_bytes": GatewaySettings,
    "max_image_pixels": GatewaySettings,
    "request_timeout_seconds": GatewaySettings,
    "context_length": DecoderSettings,
}

_ROW = re.compile(r"\| `([\w.\[\]]+)` \|")


def page() -> str:
    rows = [
        f"| {', '.join(f'`{path}`' for path in limit.paths)} | {limit} | {limit.description} |\n"
        for limit in TABLE.values()
    ]
    settings = [
        f"| `{ENV_PREFIX}{name.upper()}` | `{info.default}` | {info.description} |\n"
        for name, info in ((name, cls.model_fields[name]) for name, cls in SETTINGS.items())
    ]
    return "".join([HEAD, *rows, SET, *settings])


def with_ranges(text: str) -> str:
    """The API's page with the ranges of the table; text after a semicolon stays."""
    return "".join(map(_with_range, text.splitlines(keepends=True)))


def range_of(field: str) -> str:
    """The range of a field; empty if the table has none."""
    own = [f"{limit}" for limit in TABLE.values() if field in limit.paths]
    each = [f"{limit} each" for limit in TABLE.values() if f"{field}[]" in limit.paths]
    return ", ".join([*own, *each])


def _with_range(line: str) -> str:
    found = _ROW.match(line)
    if not found or not (bound := range_of(found[1])):
        return line
    cells = line.split("|")
    _, semicolon, rule = cells[3].strip().partition(";")
    cells[3] = f" {bound}{semicolon}{rule} "
    return "|".join(cells)


def main(arguments: list[str]) -> int:
    pages = {PAGE: page(), API: with_ranges(API.read_text("utf-8"))}
    if "--check" not in arguments:
        for path, text in pages.items():
            path.write_text(text, "utf-8")
        return 0
    stale = [path.name for path, text in pages.items() if path.read_text("utf-8") != text]
    if stale:
        print(f"out of date: {', '.join(stale)}; run python -m tools.limits_page")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
