"""docs/architecture.md has a line for each module, and it is the module's own first line."""

from tools.architecture_page import PAGE, page


def test_the_map_is_that_of_the_modules() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text
