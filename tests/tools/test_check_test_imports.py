"""The check of what the tests import."""

from pathlib import Path

import pytest

from tools.check_test_imports import faults


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("core/test_a.py", "from tests.core.test_b import picture", "the test tests.core.test_b"),
        ("core/test_a.py", "from tests.core import test_b", "the test tests.core.test_b"),
        ("core/fuzz.py", "import tests.core.test_b", "the test tests.core.test_b"),
        ("e2e/test_a.py", "from tests.e2e.conftest import Kind", "the conftest tests.e2e.conftest"),
        ("support/a.py", "from bench.loops import percentile", "the benchmark bench.loops"),
        ("core/test_a.py", "    import bench", "the benchmark bench"),
    ],
)
def test_what_lies_in_a_test_is_not_shared(
    tmp_path: Path, file: str, line: str, fault: str
) -> None:
    indented = line if not line.startswith(" ") else f"def late():\n{line}"
    write(tmp_path / "tests" / file, f"import json\n\n{indented}\n")
    (found,) = faults(tmp_path / "tests")
    at = 4 if indented != line else 3
    assert found.startswith(f"tests/{file}:{at}: imports {fault}: ")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("core/test_a.py", "from tests.support.redis_server import RedisServer"),
        ("core/test_a.py", "from tests.core.images import picture"),
        ("bench/test_a.py", "from bench.loops import percentile"),
        ("core/test_a.py", "from unittest import mock"),
    ],
)
def test_what_is_made_to_be_shared_is(tmp_path: Path, file: str, line: str) -> None:
    write(tmp_path / "tests" / file, line)
    assert not list(faults(tmp_path / "tests"))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
