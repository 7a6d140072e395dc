"""Checks every query of the runbook with promtool.

python -m tools.runbook_queries PROMTOOL
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tools.expressions import runbook


def main() -> None:
    queries = [
        {"record": f"runbook:query:{number}", "expr": expression.text}
        for number, expression in enumerate(runbook())
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "runbook.yaml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "runbook", "rules": queries}]}))
        checked = subprocess.run(
            [sys.argv[1], "check", "rules", file],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if checked.returncode != 0:
        sys.exit(f"docs/runbook.md:\n{checked.stdout}")
    print(f"{len(queries)} queries of the runbook parse")


if __name__ == "__main__":
    main()
