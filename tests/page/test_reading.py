"""The page's texts beside the answer: code, the exported file, a screen reader's words, the key."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.page.tab import ROOT, Tab, answer_of, opened
from tests.support.stack.fleet import Tier

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = "What word is printed? $HOME `id` \\ 'it' \"is\""
NAME = "it's a $(street).png"


async def _code(tab: Tab, way: str) -> str:
    """The text that the button copies."""
    await tab.page.get_by_role("tab", name=way).click()
    await tab.page.locator(".code").get_by_role("button", name="Copy").click()
    copied: str = await tab.page.evaluate("navigator.clipboard.readText()")
    assert copied == await tab.page.get_by_role("tabpanel").text_content()
    return copied


async def _run(command: list[str], code: str, directory: Path) -> str:
    environment = {**os.environ, "NO_PROXY": "*"}
    environment["PATH"] = f"{ROOT / 'node_modules' / '.bin'}{os.pathsep}{environment['PATH']}"
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        input=code,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_code_asks_the_same(tab: Tab, tmp_path: Path) -> None:
    await tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await tab.set(temperature=0, top_k=1, max_tokens=8, system='Say "what" is there.')
    turn = await tab.ask(QUESTION, tab.file(NAME))
    turn = await tab.ask("What shape is black?")
    answer = await answer_of(turn).text_content()
    await turn.get_by_text("As code", exact=True).click()
    for shell in ("bash", "dash"):
        printed = await _run([shell], await _code(tab, "curl"), tmp_path)
        chunks = [json.loads(line[6:]) for line in printed.splitlines() if line[:7] == "data: {"]
        assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == answer
    for way in ("OpenAI SDK", "Python client"):
        assert await _run([sys.executable], await _code(tab, way), tmp_path) == answer
    printed = await _run(["bash"], await _code(tab, "gRPC"), tmp_path)
    texts = [event.get("delta", {}).get("text", "") for event in _documents(printed)]
    assert "".join(texts) == answer


def _documents(text: str) -> list[dict[str, Any]]:
    decoder, found, text = json.JSONDecoder(), [], text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:].strip()
    return found


async def test_the_conversation_is_exported(tab: Tab) -> None:
    file = tab.file("street.png")
    await tab.ask("What word is printed?", file)
    async with tab.page.expect_download() as download:
        await tab.page.get_by_role("button", name="Export", exact=True).click()
    told = json.loads((await (await download.value).path()).read_text("utf-8"))
    (conversation,) = told["conversations"]
    assert conversation["title"] == "What word is printed?"
    (turn,) = conversation["turns"]
    (answer,) = turn["answers"]
    assert answer["text"] == "It says BRAIN."
    assert answer["settings"] == {"model": "pixtral-mini"}
    image, text = conversation["messages"][0]["content"]
    assert text == {"type": "text", "text": "What word is printed?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    (report,) = answer["pixtral"]["images"]
    assert report["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert answer["usage"]["total_tokens"] > 0


async def test_a_screen_reader_is_told_once_and_the_answer_whole(tab: Tab) -> None:
    await tab.page.evaluate(
        """() => {
            window.told = [];
            const status = document.querySelector("[role=status]");
            new MutationObserver(() => window.told.push(status.textContent))
                .observe(status, { childList: true, characterData: true, subtree: true });
        }"""
    )
    await tab.ask("What word is printed?", tab.file("street.png"))
    assert await tab.page.evaluate("window.told") == ["Asked.", "Answer: It says BRAIN."]
    live = tab.page.locator("[aria-live], [role=log]")
    await expect(live).to_have_count(0)


async def test_by_keyboard_alone(tab: Tab) -> None:
    await expect(tab.question).to_be_focused()
    await tab.question.press_sequentially("What")
    await tab.page.keyboard.press("Shift+Enter")
    await tab.page.keyboard.type("is this?")
    await expect(tab.question).to_have_value("What\nis this?")
    for name in ("Add pictures", "Ask"):
        await tab.page.keyboard.press("Tab")
        focused = tab.page.locator(":focus")
        assert name in (await focused.get_attribute("aria-label") or await focused.inner_text())
    await tab.page.keyboard.press("Enter")
    turn = tab.turns.first
    await expect(turn.get_by_text("As code", exact=True)).to_be_visible()
    await expect(tab.question).to_be_focused()
    await turn.get_by_role("button", name="As code").press("Enter")
    await tab.page.get_by_role("tab", name="curl").press("ArrowLeft")
    await expect(tab.page.get_by_role("tab", name="gRPC")).to_be_focused()
    await expect(tab.page.get_by_role("tabpanel")).to_contain_text("buf curl")


async def test_a_key_is_asked_for_and_kept_in_memory_alone(
    browser: Browser, another_gateway: Callable[..., Tier], tmp_path: Path
) -> None:
    key = "pixtral-secret"
    digest = hashlib.sha256(key.encode()).hexdigest()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[acme]\nkeys = ["sha256:{digest}"]\n')
    with another_gateway(f"--api-keys={keys}") as tier:
        tier.until_ready()
        async with opened(browser, f"http://{tier.http_target}/", tmp_path) as tab:
            field = tab.page.get_by_label("This gateway asks for an API key.")
            await expect(field).to_be_focused()
            await field.fill("wrong")
            await field.press("Enter")
            await expect(tab.problem).to_have_text("The gateway does not know this key.")
            await field.fill(key)
            await field.press("Enter")
            await expect(field).to_be_hidden()
            turn = await tab.ask("Hello!")
            await turn.get_by_text("As code", exact=True).click()
            code = tab.page.get_by_role("tabpanel")
            await expect(code).to_contain_text("Bearer $PIXTRAL_API_KEY")
            assert key not in await tab.page.content()
            stored = "JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie])"
            assert key not in await tab.page.evaluate(stored)
            await tab.page.reload()
            await expect(field).to_be_visible()
