"""Writes docs/settings.md from the settings classes.

python -m tools.settings_page [--check]: with --check, fails if the page is out of date.
"""

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from pixtral_core.settings import ENV_PREFIX, ProcessSettings
from pixtral_decoder.settings import DecoderSettings
from pixtral_encoder.settings import EncoderSettings
from pixtral_gateway.settings import GatewaySettings
from tools.generated_page import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
TIERS: dict[str, type[ProcessSettings]] = {
    "gateway": GatewaySettings,
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
}
# Settings whose defaults depend on the machine.
OF_THE_MACHINE = {
    "decode_processes": "the container's processors, at most 8",
    "decode_bytes": "a quarter of the container's memory",
}

HEAD = """\
# Settings

`python -m tools.settings_page` makes this page from the settings classes. A setting is

1. a flag (`--drain-seconds`), or else
2. a variable (`PIXTRAL_DRAIN_SECONDS`), or else
3. an entry (`drain_seconds`) of the TOML file that `--config` or `PIXTRAL_CONFIG` names.

A process reads its settings once, at start. OpenTelemetry's own variables configure
[traces](observing.md#switching-traces-on).
"""


def page() -> str:
    names: dict[str, list[str]] = {}
    for tier, cls in TIERS.items():
        for name in cls.model_fields:
            names.setdefault(name, []).append(tier)
    common = [name for name, tiers in names.items() if len(tiers) > 1 and _is_alike(name, tiers)]
    sections = [HEAD, _table("Several tiers", common, names)]
    for tier, cls in TIERS.items():
        own = [name for name in cls.model_fields if name not in common]
        sections.append(_table(f"The {tier}", own, {name: [tier] for name in own}))
    return "\n".join(sections)


def _is_alike(name: str, tiers: list[str]) -> bool:
    fields = [TIERS[tier].model_fields[name] for tier in tiers]
    return len({(f.description, _default(name, f), str(f.annotation)) for f in fields}) == 1


def _table(title: str, names: list[str], tiers: dict[str, list[str]]) -> str:
    shared = any(len(tiers[name]) > 1 for name in names)
    lines = [f"## {title}\n"]
    lines += (
        ["| variable | tiers | default | |", "|---|---|---|---|"]
        if shared
        else ["| variable | default | |", "|---|---|---|"]
    )
    for name in names:
        info = TIERS[tiers[name][0]].model_fields[name]
        of = f" {', '.join(tiers[name])} |" if shared else ""
        meaning = f"{info.description}{_choices(info)}".replace("|", "\\|")
        lines.append(f"| `{ENV_PREFIX}{name.upper()}` |{of} {_default(name, info)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(name: str, info: FieldInfo) -> str:
    if name in OF_THE_MACHINE:
        return OF_THE_MACHINE[name]
    if info.is_required():
        return "must be set"
    value: Any = info.default
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(each.lower() for each in value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _choices(info: FieldInfo) -> str:
    if get_origin(info.annotation) is not Literal:
        return ""
    return f" One of {', '.join(f'`{choice}`' for choice in get_args(info.annotation))}."


def main(arguments: list[str]) -> int:
    return write_or_check(PAGE, page(), "tools.settings_page", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
