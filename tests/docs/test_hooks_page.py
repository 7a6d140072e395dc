"""docs/hooks.md is that of the hooks, and none is without both tests."""

from pathlib import Path

import pytest

from tools import hooks_page
from tools.hooks_page import PAGE, BadHook, hooks, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tools.hooks_page"


def test_every_library_that_is_reached_into_is_there() -> None:
    libraries = {hook.fields["Library"] for hook in hooks()}
    assert libraries == {"mistral-common", "redis", "torch", "uvicorn", "vLLM"}


@pytest.mark.parametrize("lacks", ["test_still_there", "test_still_needed", "Why", "a file"])
def test_a_hook_that_lacks_something_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    fields = ("Library", "Changes", "Why", "Upstream", "Versions")
    lines = "".join(f"{field}: some\n" for field in fields if field != lacks)
    tests = "".join(
        f"def {name}_x() -> None: ...\n"
        for name in ("test_still_there", "test_still_needed")
        if name != lacks
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "package" / "hook.py").write_text(f'"""Does.\n\n{lines}"""\n')
    if lacks != "a file":
        (tmp_path / "tests" / "test_hook.py").write_text(tests)
    monkeypatch.setattr(hooks_page, "ROOT", tmp_path)
    monkeypatch.setattr(hooks_page, "PACKAGES", {"package": "tests"})
    with pytest.raises(BadHook, match=f"package/hook.py: no {lacks if lacks != 'a file' else ''}"):
        list(hooks())
