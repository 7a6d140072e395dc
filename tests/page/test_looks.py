"""For everyone: axe-core finds nothing serious, and pictures of it are taken for the README."""

import os
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, ViewportSize, expect

from tests.page.tab import ROOT, Tab, opened

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
# Where `make test-page` wants the pictures.
PICTURES = os.environ.get("PAGE_PICTURES")
# Before and after something was asked.
SIZES = {"wide": ((1000, 760), (1000, 1200)), "narrow": ((360, 780), (360, 780))}


async def _serious(tab: Tab) -> list[str]:
    # Evaluated, and not added as a script: the page's policy would not have it.
    await tab.page.evaluate(AXE.read_text("utf-8"))
    found: Any = await tab.page.evaluate("axe.run()")
    assert found["passes"]
    return [
        f"{each['id']}: {node['target']}: {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
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
    async with opened(
        browser,
        url,
        tmp_path,
        color_scheme=scheme,
        viewport=before,
        device_scale_factor=2 if is_phone else 1.5,
        has_touch=is_phone,
        reduced_motion="reduce",
    ) as tab:
        await expect(tab.page.get_by_text("pixtral-mini")).to_be_visible()
        assert await _serious(tab) == []
        await _picture(tab, directory / f"empty-{size}-{scheme}.png")

        await tab.ask("What word is printed?", tab.file("street.png"))
        second = await tab.ask("What shape is black?")
        await expect(second.get_by_text("cached", exact=True)).to_be_visible()
        await tab.page.set_viewport_size(after)
        assert await _serious(tab) == []
        await _picture(tab, directory / f"answered-{size}-{scheme}.png")

        await second.get_by_text("As code", exact=True).click()
        await tab.page.get_by_text("Sampling").click()
        await tab.choose(tab.file_of("bad.png", b"no picture"))
        await tab.begin("And this?")
        await expect(tab.problem).to_contain_text("refused")
        assert await _serious(tab) == []


async def _picture(tab: Tab, path: Path) -> None:
    await tab.page.mouse.move(0, 0)
    await tab.page.screenshot(path=path, animations="disabled", caret="hide")
