"""The dashboards as code: `python -m deploy.grafana.dashboards` writes the JSON beside this file.

With `--check` it writes nothing, and exits with 1 if the JSON is out of date.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import decoder, encoder, fleet, gateway

HERE = Path(__file__).parent
DASHBOARDS = {
    "fleet": fleet.dashboard,
    "gateway": gateway.dashboard,
    "encoder": encoder.dashboard,
    "decoder": decoder.dashboard,
}


def render() -> Mapping[Path, str]:
    """The content of each file."""
    return {
        HERE / f"{name}.json": json.dumps(make().build(), cls=JSONEncoder, indent=2, sort_keys=True)
        + "\n"
        for name, make in DASHBOARDS.items()
    }


def main() -> None:
    if "--check" in sys.argv[1:]:
        stale = [
            path.name
            for path, text in render().items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; run `make dashboards`")
        return
    for path, text in render().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
