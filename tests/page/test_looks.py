"""For everyone: axe-core finds nothing, and pictures of the page are taken for the documents."""

import os
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, ViewportSize, expect

from tests.page.canned import canned
from tests.page.tab import ROOT, Tab, answer_of, open_timing, opened

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
# Where `make test-page` wants the pictures.
PICTURES = os.environ.get("PAGE_PICTURES")
# Before and after something was asked.
SIZES = {"wide": ((1280, 800), (1280, 900)), "narrow": ((360, 780), (360, 780))}

MARKDOWN = r"""
## Revenue by region

*Europe* leads in **every quarter**; Asia comes closer from `Q3` on.

| Region | Q1 | Q2 | Q3 | Q4 |
|:-------|---:|---:|---:|---:|
| Europe | 4.2 | 4.6 | 5.1 | 5.3 |
| Americas | 3.1 | 3.0 | 3.4 | 3.9 |
| Asia | 2.2 | 2.9 | 4.0 | 4.8 |

A region's growth over the year is

$$
g = \left(\frac{r_{4}}{r_{1}}\right)^{1/3} - 1
$$

so that Asia grows by $g \approx 29.7\,\%$ a quarter.
"""
CODE = '''
Here is the growth in Python:

```python
def growth(first: float, last: float, steps: int = 3) -> float:
    """The mean growth of a step."""
    return (last / first) ** (1 / steps) - 1

print(f"{growth(2.2, 4.8):.1%}")  # 29.7%
```

1. Europe is largest, at $19.2 M.
2. Asia grows fastest.
   - It overtakes the Americas in Q3.

> The axis begins at 2, not at 0.
'''


async def findings(tab: Tab) -> list[str]:
    # Evaluated, and not added as a script: the page's policy would not have it.
    await tab.page.evaluate(AXE.read_text("utf-8"))
    found: Any = await tab.page.evaluate("axe.run()")
    assert found["passes"]
    return [
        f"{each['id']}: {node['target']}: {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
async def test_nothing_keeps_anybody_out(
    browser: Browser, url: str, tmp_path: Path, scheme: Literal["light", "dark"], size: str
) -> None:
    directory = tmp_path if PICTURES is None else ROOT / PICTURES
    before, after = (ViewportSize(width=width, height=height) for width, height in SIZES[size])
    is_phone = size == "narrow"

    async def seen(name: str) -> None:
        assert await findings(tab) == []
        await _picture(tab, directory / f"{name}-{size}-{scheme}.png")

    async with opened(
        browser,
        url,
        tmp_path,
        color_scheme=scheme,
        viewport=before,
        device_scale_factor=2 if is_phone else 1.25,
        has_touch=is_phone,
        reduced_motion="reduce",
    ) as tab:
        await expect(tab.page.get_by_label("Model")).to_have_value("pixtral-mini")
        await seen("empty")

        await tab.ask("What word is printed?", tab.file("street.png"))
        second = await tab.ask("What shape is black?")
        await expect(second.get_by_text("1 picture cached")).to_be_visible()
        await tab.page.set_viewport_size(after)
        await open_timing(second)
        await tab.page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        await seen("answered")

        await second.get_by_text("As code", exact=True).click()
        await tab.choose(tab.file_of("bad.png", b"no picture"))
        await tab.begin("And this?")
        await expect(tab.problem).to_contain_text("refused")
        assert await findings(tab) == []
        await tab.page.get_by_role("button", name="Remove bad.png").click()

        await tab.page.get_by_role("button", name="New", exact=True).click()
        await tab.question.fill("")
        async with canned(tab.page, MARKDOWN, CODE):
            for name, question in [("markdown", "How does it grow?"), ("code", "As code, please")]:
                turn = await tab.ask(question)
                await expect(turn.locator(".math:not(:has(.katex))")).to_have_count(0)
                await answer_of(turn).evaluate("each => scrollTo(0, each.offsetTop - 90)")
                await seen(name)

        await tab.page.get_by_role("button", name="Settings", exact=True).click()
        await seen("settings")
        await tab.page.get_by_role("button", name="Close the settings").click()
        await tab.open_history()
        await seen("history")


async def _picture(tab: Tab, path: Path) -> None:
    await tab.page.mouse.move(0, 0)
    await tab.page.screenshot(path=path, animations="disabled", caret="hide")


async def test_nothing_moves_where_that_is_not_wanted(tab: Tab) -> None:
    await tab.page.emulate_media(reduced_motion="reduce")
    moving: Any = await tab.page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((each) => {
            const style = getComputedStyle(each);
            return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0;
        }).length"""
    )
    assert moving == 0


async def test_a_drawer_covers_the_page_on_a_phone_alone(tab: Tab) -> None:
    await tab.page.set_viewport_size({"width": 360, "height": 700})
    opener = tab.page.get_by_role("button", name="Settings", exact=True)
    await opener.click()
    await expect(tab.page.locator("#page")).to_have_attribute("inert", "")
    await expect(tab.page.get_by_label("System message")).to_be_focused()
    await tab.page.keyboard.press("Escape")
    await expect(tab.page.get_by_label("System message")).to_be_hidden()
    await expect(opener).to_be_focused()
    await tab.page.set_viewport_size({"width": 1280, "height": 700})
    await opener.click()
    await expect(tab.page.locator("#page")).not_to_have_attribute("inert", "")
    await expect(tab.page.get_by_label("System message")).to_be_visible()
