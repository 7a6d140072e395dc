"""docs/python.md is that of the SDK's docstrings, and they leave out no public name."""

import pixtral_client
from tools.python_page import PAGE, page, undocumented


def test_the_page_is_that_of_the_docstrings() -> None:
    assert PAGE.read_text("utf-8") == page()


def test_every_public_name_is_documented() -> None:
    assert undocumented() == []
    text = page()
    names = [name for name in pixtral_client.__all__ if not name.startswith("_")]
    assert [name for name in names if f"\n### {name}\n" not in text] == []
