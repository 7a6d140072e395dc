"""The settings at the side: what of them is asked for, and two of them side by side."""

import json
from typing import Any

import pytest
from playwright.async_api import Route, expect

from tests.page.canned import canned, delta
from tests.page.tab import Tab, answer_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCHEMA = {"type": "object", "properties": {"bars": {"enum": [3, 4, 5]}}, "required": ["bars"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


async def test_what_is_set_is_asked_for_and_nothing_else(tab: Tab) -> None:
    async with canned(tab.page, "plain", "set") as gateway:
        await tab.ask("One.")
        await tab.set(
            system="Be brief.",
            temperature=0.5,
            min_p=0.1,
            presence_penalty=1,
            seed=0,
            stop="END\nSTOP",
            schema=json.dumps(SCHEMA),
            tools=json.dumps([TOOL]),
        )
        await tab.ask("Two.")
    first, second = gateway.bodies
    assert set(first) == {"model", "messages", "stream", "stream_options"}
    assert second["messages"][0] == {"role": "system", "content": "Be brief."}
    assert second["stop"] == ["END", "STOP"]
    assert (second["temperature"], second["min_p"], second["seed"]) == (0.5, 0.1, 0)
    assert second["response_format"]["json_schema"]["schema"] == SCHEMA
    assert second["tools"] == [TOOL]


async def test_the_model_follows_a_schema(tab: Tab) -> None:
    await tab.set(schema=json.dumps(SCHEMA), max_tokens=40)
    turn = await tab.ask("How many bars are there?", tab.file("chart.png", "chart.png"))
    assert set(json.loads(await answer_of(turn).inner_text())) == {"bars"}


async def test_text_that_is_no_json_is_not_sent(tab: Tab) -> None:
    await tab.set(schema="{oops")
    await tab.begin("One.")
    await expect(tab.page.locator("#schema-problem")).to_have_text("This is not JSON.")
    await expect(tab.page.locator("[name=schema]")).to_be_focused()
    await expect(tab.turns).to_have_count(0)


async def test_reset_takes_all_back(tab: Tab) -> None:
    await tab.set(temperature=0.5, system="Be brief.")
    await tab.page.get_by_role("button", name="Settings", exact=True).click()
    await tab.page.get_by_role("button", name="Reset").click()
    for name in ("temperature", "system"):
        await expect(tab.page.locator(f"[name={name}]")).to_have_value("")
    await expect(tab.page.get_by_label("Model")).to_have_value("pixtral-mini")


async def test_several_answers_are_leafed_through(tab: Tab) -> None:
    both = [delta(0, content="red"), delta(1, content="blue")]
    ends = [delta(0, finish="stop"), delta(1, finish="stop")]
    await tab.set(n=2)
    async with canned(tab.page, both + ends) as gateway:
        turn = await tab.ask("Which colour?")
    assert gateway.bodies[0]["n"] == 2
    await expect(answer_of(turn)).to_have_text("red")
    await turn.get_by_role("button", name="The next answer").click()
    await expect(answer_of(turn)).to_have_text("blue")
    await expect(turn.get_by_text("2 of 2")).to_be_visible()


async def test_an_adapter_is_chosen(tab: Tab) -> None:
    async def models(route: Route) -> None:
        response = await route.fetch()
        told: Any = await response.json()
        adapter = {**told["data"][0], "id": "charts", "parent": told["data"][0]["id"]}
        await route.fulfill(json={"data": [told["data"][0], adapter]})

    await tab.page.route("**/v1/models", models)
    await tab.page.reload()
    await expect(tab.page.get_by_label("Model")).to_have_value("pixtral-mini")
    await tab.page.get_by_label("Model").select_option(label="charts (adapter)")
    async with canned(tab.page, "red") as gateway:
        await tab.ask("Which colour?")
    assert gateway.bodies[0]["model"] == "charts"


async def test_two_settings_side_by_side(tab: Tab) -> None:
    await tab.page.get_by_role("button", name="Settings", exact=True).click()
    await tab.page.locator("[name=temperature]").fill("0")
    await tab.page.get_by_role("button", name="Compare two settings").click()
    await expect(tab.page.get_by_role("button", name="B", exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )
    await tab.page.locator("[name=temperature]").fill("2")
    await tab.page.get_by_role("button", name="Close the settings").click()
    async with canned(tab.page, "cold", "cold", "more", "more") as gateway:
        turn = await tab.begin("How is it?")
        await expect(answer_of(turn)).to_have_text(["cold", "cold"])
        await expect(turn.get_by_role("button", name="As code")).to_have_count(2)
        await expect(turn.locator(".with")).to_contain_text(["temperature 0", "temperature 2"])
        second = await tab.begin("And now?")
        await expect(answer_of(second)).to_have_text(["more", "more"])
    assert [body["temperature"] for body in gateway.bodies] == [0, 2, 0, 2]


async def test_the_results_of_tools_go_back(tab: Tab) -> None:
    call = {"index": 0, "id": "abc123def", "function": {"name": "look", "arguments": '{"at": 1}'}}
    asks = [delta(tool_calls=[call]), delta(finish="tool_calls")]
    await tab.set(tools=json.dumps([TOOL]))
    async with canned(tab.page, asks, "It is red.") as gateway:
        turn = await tab.ask("Look at it.")
        await expect(turn.get_by_text("Calls look")).to_be_visible()
        await turn.get_by_label("Result of look").fill("red")
        await turn.get_by_role("button", name="Send the results").click()
        await expect(answer_of(tab.turns.last)).to_have_text("It is red.")
    called, result = gateway.bodies[1]["messages"][1:]
    assert called["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": 1}'}
    assert result == {"role": "tool", "tool_call_id": "abc123def", "content": "red"}


async def test_a_drawing_that_the_gateway_does_not_take_is_redrawn(tab: Tab) -> None:
    inside = '<rect width="9" height="9"/>'
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48">{inside}</svg>'
    async with canned(tab.page, "a square") as gateway:
        await tab.choose(tab.file_of("drawing.svg", drawing.encode()))
        await expect(tab.tray).to_contain_text(["drawing.png"])
        await tab.ask("What is it?")
    (part, _) = gateway.bodies[0]["messages"][0]["content"]
    assert part["image_url"]["url"].startswith("data:image/png;base64,")


async def test_the_look_is_chosen_and_stays(tab: Tab) -> None:
    await tab.page.emulate_media(color_scheme="light")
    await tab.page.get_by_role("button", name="Settings", exact=True).click()
    await tab.page.get_by_label("Look").select_option("dark")
    dark = await tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    await tab.page.reload()
    await expect(tab.page.locator("body")).to_have_css("background-color", dark)
    await tab.page.evaluate("document.documentElement.dataset.theme = 'light'")
    await expect(tab.page.locator("body")).not_to_have_css("background-color", dark)
