"""The Python in README and docs passes mypy --strict, so that it fits the SDK as it is."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = (f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
PAGES = ("README.md", "client/README.md", *DOCS)
# A program, not a piece of one: it says itself what it uses.
_PROGRAM = re.compile(r"^```python\n((?:from|import) .*?)^```$", re.MULTILINE | re.DOTALL)


def test_programs_in_the_docs_are_typed(tmp_path: Path) -> None:
    count = 0
    for page in PAGES:
        for number, code in enumerate(_PROGRAM.findall((ROOT / page).read_text("utf-8"))):
            name = f"{page.replace('/', '_').removesuffix('.md').lower()}_{number}.py"
            (tmp_path / name).write_text(code, "utf-8")
            count += 1
    assert count >= 7
    files = sorted(str(path) for path in tmp_path.glob("*.py"))
    done = subprocess.run(
        [*(sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml"), *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
