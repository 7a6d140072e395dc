"""The answer's Markdown: what it looks like, and that nothing of it acts."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Locator, expect

from tests.page.canned import canned
from tests.page.tab import Tab, answer_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = r"""
## What the chart shows

The **largest** bar is *red*, `code` beside it: $a_i^2 + b_i^2 = c^2$, at $5 and $6.

| colour | bars |
|:-------|-----:|
| red    |    5 |
| blue   |    2 |

1. first
2. second
   - inner

> quoted

```python
def area(width: int) -> int:
    return width * 2  # twice
```

$$
\sum_{i=1}^{n} i = \frac{n(n+1)}{2}
$$

\[ x = \sqrt{y} \]

A [link][defined] and https://example.com/page.

- [x] done

[defined]: https://example.org/below
"""

HOSTILE = r"""
<img src="/hit/raw" onerror="document.title='owned'"><script>document.title='owned'</script>
<svg onload="document.title='owned'"></svg> <iframe src="/hit/frame"></iframe>
<style>body{display:none}</style> <a href="javascript:document.title='owned'">raw</a>

![by url](http://127.0.0.1:1/hit/image.png) ![data](data:image/svg+xml,<svg/onload=alert(1)>)

[script](javascript:document.title='owned') [upper](JaVaScRiPt:document.title='owned')
[entity](&#106;avascript:document.title='owned') [data](data:text/html,owned) [here](/v1/models)
[vb](vbscript:x) [file](file:///etc/passwd) <javascript:document.title='owned'> [quote](https://a.b/"onclick="x)

$\href{javascript:document.title='owned'}{x}$ $\url{javascript:x}$
$\includegraphics{http://127.0.0.1:1/hit/tex.png}$
$\htmlStyle{position:fixed}{x}$ $\htmlClass{evil}{x}$ $\kern-9999em\rule{9999em}{9999em}$
$\def\a{\a\a}\a$ $\undefined{x$

```html
<script>document.title='owned'</script><img src=/hit/code>
```

```"><img src=/hit/info>
x
```

| <img src=/hit/cell> |
|---|
| <script>document.title='owned'</script> |
"""


async def answers(tab: Tab, text: str) -> Locator:
    """A turn whose answer is that text."""
    async with canned(tab.page, text):
        return await tab.ask("Say it.")


@pytest_asyncio.fixture(loop_scope="session")
async def answer(tab: Tab) -> AsyncIterator[Locator]:
    yield answer_of(await answers(tab, TEXT))


async def test_headings_emphasis_lists_and_quotes(answer: Locator) -> None:
    await expect(answer.get_by_role("heading", name="What the chart shows")).to_be_visible()
    await expect(answer.locator("strong")).to_have_text("largest")
    await expect(answer.locator("em")).to_have_text("red")
    await expect(answer.locator("p > code")).to_have_text("code")
    await expect(answer.locator("ol > li")).to_have_count(2)
    await expect(answer.locator("ol ul > li")).to_have_text("inner")
    await expect(answer.locator("blockquote")).to_have_text("quoted")


async def test_a_table_has_its_cells_and_their_alignment(answer: Locator) -> None:
    await expect(answer.get_by_role("columnheader")).to_have_text(["colour", "bars"])
    await expect(answer.get_by_role("cell")).to_have_text(["red", "5", "blue", "2"])
    await expect(answer.get_by_role("cell", name="5")).to_have_css("text-align", "right")


async def test_code_is_coloured_and_copied(tab: Tab, answer: Locator) -> None:
    await tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = answer.locator(".code-block")
    await expect(block.locator(".language")).to_have_text("python")
    await expect(block.locator(".hl-keyword")).to_have_text(["def", "return"])
    await block.get_by_role("button", name="Copy").click()
    copied = await tab.page.evaluate("navigator.clipboard.readText()")
    assert copied == "def area(width: int) -> int:\n    return width * 2  # twice"


async def test_latex_is_drawn_and_dollars_of_money_stay(answer: Locator) -> None:
    await expect(answer.locator(".math .katex")).to_have_count(3)
    await expect(answer.locator(".math.display .katex-display")).to_have_count(2)
    await expect(answer.locator("p").first).to_contain_text("at $5 and $6.")
    await expect(answer.locator(".math math").first).to_be_attached()


async def test_links_open_beside_the_page_and_tell_nothing(answer: Locator) -> None:
    links = answer.get_by_role("link")
    await expect(links).to_have_text(["link", "https://example.com/page"])
    await expect(links.first).to_have_attribute("href", "https://example.org/below")
    for link in await links.all():
        await expect(link).to_have_attribute("target", "_blank")
        await expect(link).to_have_attribute("rel", "noopener noreferrer")


async def test_nothing_of_a_hostile_answer_acts(tab: Tab) -> None:
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.page.on("framenavigated", lambda frame: asked.append(f"frame {frame.url}"))
    answer = answer_of(await answers(tab, HOSTILE))
    await expect(answer.locator(".katex").first).to_be_visible()
    await expect(answer.locator(".code-block")).to_have_count(2)
    await tab.page.wait_for_load_state("networkidle")
    assert not [url for url in asked if "/hit/" in url or url.startswith("frame")]
    forbidden = "img, script, iframe, svg:not(.copy *):not(.katex *), style, object, embed, form"
    await expect(answer.locator(forbidden)).to_have_count(0)
    hrefs = [await link.get_attribute("href") or "" for link in await answer.locator("a").all()]
    assert sorted(hrefs) == ["http://127.0.0.1:1/hit/image.png", "https://a.b/%22onclick=%22x"]
    attributes: list[str] = await answer.evaluate(
        "each => [...each.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on")]
    await expect(answer.locator(".evil")).to_have_count(0)
    await expect(answer).to_contain_text("<script>document.title='owned'</script>")
    await expect(tab.page).to_have_title("pixtral-serve")
    # Nor does a size that LaTeX asks for cover the page.
    width: Any = await tab.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert width <= 0
    assert await tab.question.is_visible()
    await tab.question.click()


async def test_a_text_that_streams_ends_as_one_that_came_whole(tab: Tab) -> None:
    await tab.page.evaluate(
        """async (text) => {
            const { StreamedMarkdown } = await import("/page/markdown/streamed.js");
            const place = (id) => {
                const element = Object.assign(document.createElement("div"), { id });
                document.body.append(element);
                return new StreamedMarkdown(element);
            };
            place("whole").finish(text);
            const streamed = place("streamed");
            for (let end = 1; end <= text.length; end++) streamed.finish(text.slice(0, end));
        }""",
        TEXT.replace("[defined]: https://example.org/below", "last"),
    )
    drawn = []
    for name in ("whole", "streamed"):
        element = tab.page.locator(f"#{name}")
        await expect(element.locator(".katex")).to_have_count(3)
        await expect(element.locator(".hl-keyword")).to_have_count(2)
        drawn.append(await element.inner_html())
    assert drawn[0] == drawn[1]


async def test_what_is_settled_is_not_drawn_again(tab: Tab) -> None:
    is_the_same: Any = await tab.page.evaluate(
        """async () => {
            const { StreamedMarkdown } = await import("/page/markdown/streamed.js");
            const element = document.createElement("div");
            const streamed = new StreamedMarkdown(element);
            streamed.finish("one\\n\\ntwo\\nmore");
            const before = [...element.children];
            streamed.finish("one\\n\\ntwo\\nmore still\\n\\nthree\\n");
            return [...element.children].map((child, i) => child === before[i]);
        }"""
    )
    assert is_the_same == [True, False, False]
