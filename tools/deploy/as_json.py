"""Prints a directory's manifests as one JSON array: `python -m tools.deploy.as_json DIR`."""

import json
import sys
from pathlib import Path

from tools import safe_yaml


def main(directory: Path) -> None:
    texts = [path.read_text("utf-8") for path in sorted(directory.glob("*.yaml"))]
    print(json.dumps([obj for text in texts for obj in safe_yaml.load_all(text)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
