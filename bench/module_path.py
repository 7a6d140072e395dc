"""Where Python finds modules, in the processes that measurements start."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# This checkout where it is not installed: the folder of each import package.
FOLDERS = ("core", "gateway", "services/encoder", "services/decoder", "client", "cli", "protos")
OURS = (ROOT, *(ROOT / folder for folder in FOLDERS))


def module_path(*paths: Path) -> dict[str, str]:
    """The variable that puts these before what this process was given."""
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*map(str, paths), *([given] if given else [])])}
