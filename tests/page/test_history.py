"""The conversations that the browser keeps: search, names, undo, export and import."""

import json
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.page.canned import canned
from tests.page.tab import Tab, answer_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def two_conversations(tab: Tab) -> None:
    async with canned(tab.page, "It is a diamond.", "It says BRAIN."):
        await tab.ask("Which shape?", tab.file("street.png"))
        await tab.page.get_by_role("button", name="New", exact=True).click()
        await tab.ask("What word?")


async def test_a_conversation_is_kept_and_opened_again(tab: Tab) -> None:
    await two_conversations(tab)
    await tab.page.reload()
    await expect(answer_of(tab.turns.first)).to_have_text("It says BRAIN.")
    items = await tab.open_history()
    await expect(items).to_contain_text(["What word?", "Which shape?"])
    await items.nth(1).get_by_role("button", name="Which shape?").first.click()
    await expect(answer_of(tab.turns.first)).to_have_text("It is a diamond.")
    await expect(tab.turns.first.locator(".shown img")).to_be_visible()


async def test_a_search_looks_through_questions_and_answers(tab: Tab) -> None:
    await two_conversations(tab)
    items = await tab.open_history()
    for words, found in [("diamond", "Which shape?"), ("brain WORD", "What word?")]:
        await tab.page.get_by_label("Search conversations").fill(words)
        await expect(items).to_have_count(1)
        await expect(items).to_contain_text(found)
    await tab.page.get_by_label("Search conversations").fill("nowhere")
    await expect(tab.page.get_by_text("No conversation has these words.")).to_be_visible()


async def test_a_conversation_is_renamed(tab: Tab) -> None:
    await two_conversations(tab)
    items = await tab.open_history()
    await items.first.get_by_role("button", name="Rename").click()
    await tab.page.get_by_label("New name").fill("The printed word")
    await tab.page.keyboard.press("Enter")
    await expect(items.first).to_contain_text("The printed word")
    await tab.page.reload()
    await expect(await tab.open_history()).to_contain_text(["The printed word", "Which shape?"])


async def test_a_deleted_conversation_comes_back_by_undo(tab: Tab) -> None:
    await two_conversations(tab)
    items = await tab.open_history()
    await items.nth(1).hover()
    await items.nth(1).get_by_role("button", name="Delete").click()
    await expect(items).to_have_count(1)
    await tab.page.get_by_role("button", name="Close the conversations").click()
    await tab.page.get_by_role("button", name="Undo").click()
    items = await tab.open_history()
    await expect(items).to_have_count(2)
    await items.nth(1).get_by_role("button", name="Which shape?").first.click()
    await expect(answer_of(tab.turns.first)).to_have_text("It is a diamond.")


async def test_what_is_deleted_is_gone_after_a_reload(tab: Tab) -> None:
    await two_conversations(tab)
    items = await tab.open_history()
    await items.first.get_by_role("button", name="Delete").click()
    await expect(items).to_have_count(1)
    await expect(tab.turns).to_have_count(0)
    await tab.page.reload()
    await expect(await tab.open_history()).to_contain_text(["Which shape?"])


async def test_an_export_is_imported_again(tab: Tab, tmp_path: Path) -> None:
    await two_conversations(tab)
    items = await tab.open_history()
    async with tab.page.expect_download() as download:
        await tab.page.get_by_role("button", name="Export all").click()
    file = tmp_path / "all.json"
    await (await download.value).save_as(file)
    for _ in range(2):
        await items.first.hover()
        await items.first.get_by_role("button", name="Delete").click()
    await expect(items).to_have_count(0)
    async with tab.page.expect_file_chooser() as chooser:
        await tab.page.get_by_role("button", name="Import").click()
    await (await chooser.value).set_files(file)
    await expect(items).to_contain_text(["What word?", "Which shape?"])
    await items.nth(1).get_by_role("button", name="Which shape?").first.click()
    await expect(answer_of(tab.turns.first)).to_have_text("It is a diamond.")
    await expect(tab.turns.first.locator(".shown img")).to_be_visible()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no JSON", "The file is not JSON."),
        ("{}", "The file is not an export of this page."),
        ({"version": 7}, "The file is of version 7"),
        ({"conversations": [{"title": "x"}]}, "The file is damaged: a number is missing."),
        ("remote", "The file is damaged: a picture is not in the file."),
    ],
)
async def test_a_file_that_is_no_export_is_refused_with_the_reason(
    tab: Tab, tmp_path: Path, text: str | dict[str, object], reason: str
) -> None:
    picture = {"name": "x.png", "size": 1, "type": "image/png", "url": "http://127.0.0.1:1/x.png"}
    turn = {"question": "", "pictures": [picture], "results": [], "answers": [], "shown": 0}
    whole = {"format": "pixtral-serve conversations", "version": 1, "conversations": []}
    if text == "remote":
        kept = {"title": "x", "created": 1, "updated": 1, "turns": [turn]}
        text = {"conversations": [kept]}
    file = tmp_path / "file.json"
    file.write_text(text if isinstance(text, str) else json.dumps(whole | text))
    items = await tab.open_history()
    async with tab.page.expect_file_chooser() as chooser:
        await tab.page.get_by_role("button", name="Import").click()
    await (await chooser.value).set_files(file)
    await expect(tab.page.locator("#problem")).to_contain_text(reason)
    await expect(items).to_have_count(0)
