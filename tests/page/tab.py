"""The page as somebody sits before it."""

import io
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.async_api import Browser, Locator, Page, expect

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "pixtral-mini"
MAX_IMAGE_BYTES = 1_000_000
# The browser's own lines in its console about an answer that is an error, or none.
FAILED = "Failed to load resource: "

_numbers = itertools.count(time.time_ns())


class Tab:
    def __init__(self, page: Page, directory: Path) -> None:
        self.page = page
        self.question = page.get_by_label("Your question")
        self.ask_button = page.get_by_role("button", name="Ask", exact=True)
        self.stop_button = page.get_by_role("button", name="Stop", exact=True)
        self.turns = page.get_by_label("Conversation", exact=True).locator("> li")
        self.tray = page.get_by_label("Pictures to send").get_by_role("listitem")
        self.problem = page.get_by_role("alert")
        self._directory = directory

    def file(self, name: str, shown: str = "street.png") -> Path:
        """A picture of docs/demo in a file that nobody has seen before, by any name."""
        mark = PngInfo()
        mark.add_text("number", str(next(_numbers)))
        data = io.BytesIO()
        with Image.open(ROOT / "docs" / "demo" / shown) as image:
            image.save(data, "PNG", pnginfo=mark)
        return self.file_of(name, data.getvalue())

    def file_of(self, name: str, data: bytes) -> Path:
        path = self._directory / name
        path.write_bytes(data)
        return path

    async def choose(self, *files: Path) -> None:
        button = self.page.get_by_role("button", name="Add pictures")
        async with self.page.expect_file_chooser() as chooser:
            await button.click()
        await (await chooser.value).set_files(files)

    async def drag(self, kind: str, *files: Path) -> None:
        """As a file manager drags files: `dragEnter`, `drop` or `dragCancel`."""
        session = await self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        event = {"type": kind, "x": 200, "y": 200, "data": data}
        await session.send("Input.dispatchDragEvent", event)
        await session.detach()

    async def begin(self, question: str) -> Locator:
        """Asks; returns the turn, whose answer is still to come."""
        number = await self.turns.count()
        await self.question.fill(question)
        await self.question.press("Enter")
        return self.turns.nth(number)

    async def ask(self, question: str, *files: Path) -> Locator:
        """Asks; returns the turn once it is over."""
        if files:
            await self.choose(*files)
        turn = await self.begin(question)
        await expect(turn.get_by_text("As code", exact=True)).to_be_visible()
        return turn

    async def set(self, **settings: float | str) -> None:
        """Opens the settings, fills them in, and closes them."""
        await self.page.get_by_role("button", name="Settings", exact=True).click()
        for name, value in settings.items():
            await self.page.locator(f"[name={name}]").fill(str(value))
        await self.page.get_by_role("button", name="Close the settings").click()

    async def open_history(self) -> Locator:
        """The conversations in their list, which may be open already."""
        if await self.page.locator("#history").is_hidden():
            await self.page.get_by_role("button", name="Conversations", exact=True).click()
        return self.page.get_by_label("Kept conversations").get_by_role("listitem")


def answer_of(turn: Locator) -> Locator:
    return turn.locator(".answer")


async def open_timing(turn: Locator) -> None:
    await turn.get_by_role("button", name="to the first token").click()


def told_of(turn: Locator, name: str) -> Locator:
    """The text of a turn's open timeline about that."""
    entry = turn.get_by_role("figure").locator("dl > div")
    return entry.filter(has=turn.page.locator("dt", has_text=name)).locator("dd")


@asynccontextmanager
async def opened(browser: Browser, url: str, directory: Path, **options: Any) -> AsyncIterator[Tab]:
    """A tab of a browser that knows nothing yet. Nothing may go wrong in it unseen."""
    wrong: list[str] = []
    context = await browser.new_context(**options)
    try:
        page = await context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda line: (
                wrong.append(line.text)
                if line.type in ("error", "warning") and not line.text.startswith(FAILED)
                else None
            ),
        )
        await page.goto(url)
        yield Tab(page, directory)
        assert not wrong
    finally:
        await context.close()
