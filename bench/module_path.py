"""The module path for processes that measurements start."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The folder of each import package, for a checkout that is not installed.
FOLDERS = ("core", "gateway", "services/encoder", "services/decoder", "client", "cli", "protos")
OURS = (ROOT, *(ROOT / folder for folder in FOLDERS))


def module_path(*paths: Path) -> dict[str, str]:
    """The environment variable that puts `paths` before this process's own module path."""
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*map(str, paths), *([given] if given else [])])}
