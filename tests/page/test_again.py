"""After an answer: copy it, ask again, go on, edit the question; and a gateway that is full."""

import pytest
from playwright.async_api import expect

from tests.page.canned import canned, delta
from tests.page.tab import Tab, answer_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_answer_is_copied_as_its_markdown(tab: Tab) -> None:
    await tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    async with canned(tab.page, "It is **red**."):
        turn = await tab.ask("Which colour?")
    await turn.get_by_role("button", name="Copy").click()
    await expect(turn.get_by_role("button", name="Copied")).to_be_visible()
    assert await tab.page.evaluate("navigator.clipboard.readText()") == "It is **red**."


async def test_regenerate_adds_an_answer_and_keeps_the_one_before(tab: Tab) -> None:
    async with canned(tab.page, "one", "two", "three") as gateway:
        turn = await tab.ask("Say something.")
        await turn.get_by_role("button", name="Regenerate").click()
        await expect(answer_of(turn)).to_have_text("two")
        await expect(turn.get_by_text("2 of 2")).to_be_visible()
        await turn.get_by_role("button", name="The answer before").click()
        await expect(answer_of(turn)).to_have_text("one")
        # The next question follows the answer that is shown.
        await tab.ask("And more?")
    assert gateway.bodies[0]["messages"] == gateway.bodies[1]["messages"]
    assert gateway.bodies[2]["messages"][1] == {"role": "assistant", "content": "one"}
    await expect(turn.get_by_role("button", name="Regenerate")).to_have_count(0)


async def test_an_answer_that_was_cut_off_goes_on(tab: Tab) -> None:
    cut = [delta(content="The first"), delta(finish="length")]
    async with canned(tab.page, cut, " and the second.") as gateway:
        turn = await tab.ask("Which?")
        await expect(turn.get_by_text("Cut off at the most tokens")).to_be_visible()
        await turn.get_by_role("button", name="Go on").click()
        await expect(answer_of(turn)).to_have_text("The first and the second.")
    await expect(turn.get_by_text("Cut off")).to_be_hidden()
    await expect(turn.get_by_role("button", name="Go on")).to_have_count(0)
    assert gateway.bodies[1]["continue_final_message"] is True
    assert gateway.bodies[1]["messages"][-1] == {"role": "assistant", "content": "The first"}


async def test_the_model_itself_goes_on(tab: Tab) -> None:
    await tab.set(max_tokens=2)
    turn = await tab.ask("What word is printed?", tab.file("street.png"))
    before = await answer_of(turn).text_content() or ""
    await tab.set(max_tokens="")
    await turn.get_by_role("button", name="Go on").click()
    await expect(answer_of(turn)).not_to_have_text(before)
    assert (await answer_of(turn).text_content() or "").startswith(before)


async def test_a_question_is_edited_and_what_followed_comes_back_by_undo(tab: Tab) -> None:
    async with canned(tab.page, "red", "blue", "green") as gateway:
        first = await tab.ask("Which colour?")
        await tab.ask("And this?")
        await first.hover()
        await first.get_by_role("button", name="Edit").click()
        field = tab.page.get_by_label("Edit the question")
        await expect(field).to_have_value("Which colour?")
        await field.fill("Which form?")
        await field.press("Enter")
        await expect(tab.turns).to_have_count(1)
        await expect(answer_of(tab.turns.first)).to_have_text("green")
    assert gateway.bodies[2]["messages"] == [{"role": "user", "content": "Which form?"}]
    await expect(tab.page.get_by_text("Asked again; 1 later turn removed.")).to_be_visible()
    await tab.page.get_by_role("button", name="Undo").click()
    await expect(tab.turns).to_have_count(2)
    await expect(answer_of(tab.turns.first)).to_have_text("red")
    await expect(answer_of(tab.turns.last)).to_have_text("blue")


async def test_escape_leaves_a_question_as_it_was(tab: Tab) -> None:
    async with canned(tab.page, "red"):
        turn = await tab.ask("Which colour?")
    await turn.hover()
    await turn.get_by_role("button", name="Edit").click()
    await tab.page.get_by_label("Edit the question").fill("Other")
    await tab.page.keyboard.press("Escape")
    await expect(turn.locator(".question > p")).to_have_text("Which colour?")
    await expect(answer_of(turn)).to_have_text("red")


async def test_a_full_gateway_is_asked_again_by_itself(tab: Tab) -> None:
    async with canned(tab.page, 1, 1, "There is room.") as gateway:
        turn = await tab.begin("Is there room?")
        await expect(turn.get_by_text("The gateway is full. Asking again in")).to_be_visible()
        await expect(answer_of(turn)).to_have_text("There is room.")
    await expect(turn.get_by_text("The gateway is full")).to_be_hidden()
    assert gateway.bodies[0] == gateway.bodies[1] == gateway.bodies[2]


async def test_the_wait_is_stopped_and_gives_the_question_back(tab: Tab) -> None:
    async with canned(tab.page, 3600):
        turn = await tab.begin("Is there room?")
        await expect(turn.get_by_text("The gateway is full. Asking again in")).to_be_visible()
        await tab.stop_button.click()
        await expect(tab.turns).to_have_count(0)
    await expect(tab.question).to_have_value("Is there room?")
    await expect(tab.ask_button).to_be_visible()


async def test_a_picture_is_seen_large_and_each_pixel_of_it(tab: Tab) -> None:
    async with canned(tab.page, "a street"):
        turn = await tab.ask("What is it?", tab.file("street.png"))
    await turn.get_by_role("button", name="See street.png large").click()
    large = tab.page.get_by_role("dialog", name="Picture")
    image = large.get_by_role("button", name="street.png: show each pixel")
    before = await image.bounding_box()
    await image.click()
    await expect(image).to_have_attribute("aria-pressed", "true")
    assert await image.bounding_box() != before
    await tab.page.keyboard.press("Escape")
    await expect(large).to_be_hidden()
    await expect(turn.get_by_role("button", name="See street.png large")).to_be_focused()
