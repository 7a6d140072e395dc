"""Asking: pictures in, the answer as it comes, stopping it, the next turn."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Route, expect

from tests.page.tab import Tab, answer_of, open_timing, opened, told_of
from tests.support.stack.fleet import Tier
from tests.support.stack.service import Service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

MANY = 3000
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


async def test_a_picture_that_is_dropped_anywhere(tab: Tab) -> None:
    file = tab.file("street.png")
    await tab.drag("dragEnter", file)
    await expect(tab.page.get_by_text("Drop to add")).to_be_visible()
    await tab.drag("drop", file)
    await expect(tab.page.get_by_text("Drop to add")).to_be_hidden()
    await expect(tab.tray).to_contain_text(["street.png"])
    turn = await tab.ask("What word is printed?")
    await expect(answer_of(turn)).to_have_text("It says BRAIN.")
    await expect(tab.tray).to_have_count(0)


async def test_a_picture_that_is_pasted(tab: Tab) -> None:
    await tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await tab.page.evaluate(
        """async () => {
            const file = await (await fetch("page/example.png")).blob();
            await navigator.clipboard.write([new ClipboardItem({ "image/png": file })]);
        }"""
    )
    await tab.question.press("ControlOrMeta+v")
    await expect(tab.tray).to_have_count(1)
    turn = await tab.ask("How many diamonds are there?")
    await expect(answer_of(turn)).to_have_text("There are 2 diamonds.")


async def test_two_pictures_one_of_them_removed_again(tab: Tab) -> None:
    files = [tab.file("a.png", "chart.png"), tab.file("first.png", "first.png")]
    await tab.choose(*files, tab.file("second.png", "second.png"))
    await tab.page.get_by_role("button", name="Remove a.png").click()
    await expect(tab.tray).to_contain_text(["first.png", "second.png"])
    turn = await tab.ask("Which picture has more shapes?")
    await expect(answer_of(turn)).to_have_text("The first.")
    await expect(turn.locator(".shown figcaption")).to_contain_text(
        [re.compile(r"first\.png.*encoded in .+ms"), re.compile(r"second\.png.*encoded in .+ms")]
    )


async def test_the_example(tab: Tab) -> None:
    await tab.page.get_by_role("button", name="Use the example").click()
    await expect(tab.tray).to_contain_text(["example.png"])
    await tab.ask_button.click()
    await expect(answer_of(tab.turns.first)).to_have_text("It says BRAIN.")


async def test_the_answer_is_seen_as_it_comes_and_stop_stops_the_engine(
    tab: Tab, service: Service
) -> None:
    before = service.generated()
    await tab.set(min_tokens=MANY, max_tokens=MANY)
    turn = await tab.begin("Tell me a long story.")
    await expect(answer_of(turn)).not_to_be_empty()
    seen = await answer_of(turn).text_content()
    await expect(answer_of(turn)).not_to_have_text(seen or "")
    assert service.running() == 1
    await tab.stop_button.click()
    await expect(turn.get_by_text("Stopped.")).to_be_visible()
    wait_until(service.is_idle, "the engine idle after Stop")
    assert 0 < service.generated() - before < MANY
    assert (await answer_of(turn).text_content() or "").startswith(seen or "")
    # And on from there.
    await tab.set(min_tokens=0, max_tokens=4)
    await tab.ask("And then?")
    await expect(tab.turns).to_have_count(2)


async def test_escape_stops_it_too(tab: Tab, service: Service) -> None:
    await tab.set(min_tokens=MANY, max_tokens=MANY)
    turn = await tab.begin("Tell me a long story.")
    await expect(answer_of(turn)).not_to_be_empty()
    await tab.page.keyboard.press("Escape")
    await expect(turn.get_by_text("Stopped.")).to_be_visible()
    wait_until(service.is_idle, "the engine idle after Escape")


async def test_the_next_question_finds_the_picture_cached(tab: Tab, service: Service) -> None:
    before = service.encoded()
    first = await tab.ask("What word is printed?", tab.file("street.png"))
    await open_timing(first)
    await expect(told_of(first, "Encode")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    await expect(first.locator(".bar .encode")).to_have_count(1)
    second = await tab.ask("What shape is black?")
    await expect(answer_of(second)).to_have_text("It is a diamond.")
    await expect(second.get_by_text("1 picture cached")).to_be_visible()
    await open_timing(second)
    await expect(told_of(second, "Encode")).to_have_text("cached")
    await expect(second.locator(".bar .encode")).to_have_count(0)
    assert service.encoded() == before + 1
    # As the gateway counted them.
    prompt, picture, text, cached = [
        int(re.sub(r"\D", "", await told_of(second, name).inner_text()))
        for name in ("Prompt", "Picture", "Text", "Cached")
    ]
    assert prompt == picture + text
    assert 0 < cached < prompt


async def test_a_file_that_is_refused_wears_the_reason(tab: Tab) -> None:
    good, bad = tab.file("good.png"), tab.file_of("bad.png", b"no picture at all")
    await tab.choose(good, bad)
    await tab.begin("What word is printed?")
    worn = tab.tray.filter(has_text="not a PNG, JPEG, WebP, GIF, BMP, ICO or AVIF image")
    await expect(worn).to_have_count(1)
    await expect(worn).to_contain_text("bad.png")
    await expect(tab.problem).to_contain_text("bad.png was refused")
    await expect(tab.turns).to_have_count(0)
    # The question is not lost, and goes without it.
    await expect(tab.question).to_have_value("What word is printed?")
    await worn.get_by_role("button", name="Remove bad.png").click()
    await tab.question.press("Enter")
    await expect(answer_of(tab.turns.first)).to_have_text("It says BRAIN.")
    await expect(tab.problem).to_be_hidden()


async def test_what_the_gateway_would_not_take_is_not_sent(tab: Tab, service: Service) -> None:
    picture = tab.file("large.png").read_bytes()
    large = tab.file_of("large.png", picture + bytes(1_000_000))
    await tab.choose(large, tab.file_of("notes.txt", b"text"), *[tab.file("a.png")] * 3)
    await expect(tab.tray.nth(0)).to_contain_text("larger than 1 MB")
    await expect(tab.tray.nth(1)).to_contain_text("not a PNG, JPEG, WebP or GIF")
    await expect(tab.tray.nth(4)).to_contain_text("one more than the 4 that")
    await tab.begin("What is this?")
    await expect(tab.problem).to_contain_text("large.png: larger than 1 MB")
    await expect(tab.turns).to_have_count(0)


async def test_text_is_never_markup(tab: Tab) -> None:
    async def choice(route: Route) -> None:
        # The model itself says it.
        body = json.loads(route.request.post_data or "")
        await route.continue_(post_data={**body, "structured_outputs": {"choice": [MARKUP]}})

    await tab.page.route("**/v1/chat/completions", choice)
    name = "<img src=x onerror=document.title='owned'>.png"
    turn = await tab.ask(MARKUP, tab.file(name))
    await expect(answer_of(turn)).to_have_text(MARKUP)
    await expect(turn.locator(".question > p")).to_have_text(MARKUP)
    await expect(turn.locator(".name")).to_have_text(name)
    await expect(tab.page).to_have_title("pixtral-serve")


async def test_a_reload_keeps_the_conversation_and_new_begins_another(tab: Tab) -> None:
    await tab.ask("What word is printed?", tab.file("street.png"))
    await tab.page.reload()
    await expect(answer_of(tab.turns.first)).to_have_text("It says BRAIN.")
    second = await tab.ask("What shape is black?")
    await expect(answer_of(second)).to_have_text("It is a diamond.")
    await tab.page.get_by_role("button", name="New").click()
    await expect(tab.turns).to_have_count(0)
    await tab.page.reload()
    await expect(tab.page.get_by_text("Drop a picture, ask")).to_be_visible()
    await expect(tab.turns).to_have_count(0)


async def test_new_ends_an_answer_that_is_on_its_way(tab: Tab, service: Service) -> None:
    await tab.set(min_tokens=MANY, max_tokens=MANY)
    turn = await tab.begin("Tell me a long story.")
    await expect(answer_of(turn)).not_to_be_empty()
    await tab.page.get_by_role("button", name="New").click()
    wait_until(service.is_idle, "the engine idle after New")
    await expect(tab.ask_button).to_be_visible()
    await expect(tab.turns).to_have_count(0)
    await expect(tab.question).to_have_value("")


async def test_a_connection_that_breaks_leaves_what_had_come(
    browser: Browser, another_gateway: Callable[..., Tier], tmp_path: Path
) -> None:
    with another_gateway() as tier:
        tier.until_ready()
        async with opened(browser, f"http://{tier.http_target}/", tmp_path) as tab:
            await tab.set(min_tokens=MANY, max_tokens=MANY)
            turn = await tab.begin("Tell me a long story.")
            await expect(answer_of(turn)).not_to_be_empty()
            tier.process.kill()
            await expect(turn.get_by_text("The connection ended before")).to_be_visible()
            await expect(answer_of(turn)).not_to_be_empty()
            await expect(tab.ask_button).to_be_visible()


async def test_a_gateway_that_is_gone_gives_the_question_back(tab: Tab) -> None:
    await expect(tab.page.get_by_label("Model")).to_have_value("pixtral-mini")
    await tab.choose(tab.file("street.png"))
    await tab.page.route("**/v1/chat/completions", lambda route: route.abort())
    await tab.begin("What word is printed?")
    await expect(tab.problem).to_have_text("The gateway cannot be reached.")
    await expect(tab.question).to_have_value("What word is printed?")
    await tab.page.unroute("**/v1/chat/completions")
    await tab.question.press("Enter")
    await expect(answer_of(tab.turns.first)).to_have_text("It says BRAIN.")


async def test_a_phone(tab: Tab) -> None:
    await tab.page.set_viewport_size({"width": 360, "height": 700})
    await tab.choose(tab.file("a-rather-long-name-of-a-picture-file-for-a-phone.png"))
    turn = await tab.ask("What word is printed? " + "unbroken" * 20)
    await turn.get_by_text("As code", exact=True).click()
    await open_timing(turn)
    await tab.page.get_by_role("button", name="Settings", exact=True).click()
    width: Any = await tab.page.evaluate("document.documentElement.scrollWidth")
    assert width == 360
    for button in await tab.page.get_by_role("button").all():
        if await button.is_visible() and not await button.get_attribute("role"):
            box = await button.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
