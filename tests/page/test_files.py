"""Files that are no picture yet: the pages of a PDF, and photographs in HEIC."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.async_api import Locator, expect

from tests.page.tab import ROOT, Tab, answer_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

# A page with text in a font that the file does not bring along, as every PDF viewer has it.
TEXT = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R
/Resources<</Font<</F1 5 0 R>>>>>>endobj
4 0 obj<</Length 40>>stream
BT /F1 48 Tf 20 100 Td (Hello PDF) Tj ET
endstream endobj
5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj
trailer<</Root 1 0 R>>
"""


def pdf_of(tab: Tab, name: str, *pages: Image.Image) -> Path:
    data = io.BytesIO()
    pages[0].save(data, "PDF", save_all=True, append_images=pages[1:])
    return tab.file_of(name, data.getvalue())


def street() -> Image.Image:
    with Image.open(ROOT / "docs" / "demo" / "street.png") as image:
        return image.convert("RGB")


async def picture_of(entry: Locator) -> Image.Image:
    """The picture that an entry of the tray would send."""
    source = await entry.get_by_role("presentation").get_attribute("src")
    assert source is not None
    head, _, data = source.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


async def test_a_page_of_a_pdf_is_asked_about_as_a_picture(tab: Tab) -> None:
    await tab.drag("dragEnter", file := pdf_of(tab, "street.pdf", street()))
    await tab.drag("drop", file)
    await expect(tab.tray).to_contain_text(["street, page 1.jpg"])
    turn = await tab.ask("What word is printed?")
    await expect(answer_of(turn)).to_have_text("It says BRAIN.")


async def test_each_page_is_a_picture_and_those_that_do_not_fit_are_left_out(tab: Tab) -> None:
    sizes = [(300, 200), (1000, 3000), (720, 72), (72, 72), (72, 72), (72, 72)]
    colours = ["red", "blue", "white", "white", "white", "white"]
    pages = [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]
    await tab.choose(pdf_of(tab, "report.pdf", *pages))
    names = [f"report, page {number}.jpg" for number in range(1, 5)]
    await expect(tab.tray).to_contain_text(names)
    await expect(tab.tray.nth(3)).to_contain_text("of 6 pages; the others are left out")
    await expect(tab.tray.nth(0)).not_to_contain_text("left out")
    first, second = [await picture_of(tab.tray.nth(number)) for number in range(2)]
    # 150 pixels an inch, and no side longer than what a Pixtral sees.
    assert first.size == (625, 416)
    assert second.size == (513, 1540)
    assert first.getpixel((300, 200)) == pytest.approx((254, 0, 0), abs=3)
    assert second.getpixel((250, 700)) == pytest.approx((0, 0, 254), abs=3)


async def test_text_without_a_font_of_its_own_is_drawn(tab: Tab) -> None:
    await tab.choose(tab.file_of("hello.PDF", TEXT))
    await expect(tab.tray).to_contain_text(["hello, page 1.jpg"])
    grey = (await picture_of(tab.tray.first)).convert("L")
    assert grey.getpixel((2, 2)) == 255
    # The letters are where the page has them, and black.
    box = grey.point(lambda value: 255 * (value < 100)).getbbox()
    assert box is not None
    left, upper, right, lower = box
    assert 40 <= left < right <= 560
    assert 110 <= upper < lower <= 215


@pytest.mark.parametrize("mode", ["RGBA", "1"], ids=["JPEG 2000", "fax"])
async def test_pictures_inside_a_page_need_no_webassembly(tab: Tab, mode: str) -> None:
    """Scanners write these; Pillow writes JPEG 2000 for a picture with transparency."""
    await tab.choose(pdf_of(tab, "scan.pdf", street().convert(mode)))
    await expect(tab.tray).to_contain_text(["scan, page 1.jpg"])
    drawn = (await picture_of(tab.tray.first)).convert("L").resize((77, 48))
    whole = street().convert("L").resize((77, 48))
    differences = [abs(a - b) for a, b in zip(drawn.tobytes(), whole.tobytes(), strict=True)]
    assert sum(differences) / len(differences) < 12


async def test_nothing_of_it_is_loaded_without_a_pdf(tab: Tab) -> None:
    loaded: list[str] = []
    tab.page.on("request", lambda request: loaded.append(request.url))
    await tab.page.reload()
    await tab.choose(tab.file("street.png"))
    await expect(tab.tray).to_have_count(1)
    assert any(url.endswith("/page/main.js") for url in loaded)
    assert not [url for url in loaded if "/vendor/pdf/" in url]


async def test_a_pdf_that_cannot_be_read_wears_the_reason(tab: Tab) -> None:
    await tab.choose(tab.file_of("broken.pdf", b"%PDF-1.4 and nothing else"))
    await expect(tab.tray).to_contain_text(["a PDF that cannot be read"])
    await tab.begin("What is this?")
    await expect(tab.problem).to_contain_text("broken.pdf: a PDF that cannot be read")
    await expect(tab.turns).to_have_count(0)


async def test_a_pdf_with_a_password_wears_the_reason(tab: Tab) -> None:
    key = b"/Filter/Standard/V 1/R 2/P -4/O<" + b"41" * 32 + b">/U<" + b"42" * 32 + b">"
    locked = TEXT.replace(
        b"trailer<</Root 1 0 R>>",
        b"6 0 obj<<" + key + b">>endobj\n"
        b"trailer<</Root 1 0 R/Encrypt 6 0 R/ID[<" + b"43" * 16 + b"><" + b"43" * 16 + b">]>>",
    )
    await tab.choose(tab.file_of("locked.pdf", locked))
    await expect(tab.tray).to_contain_text(["a PDF with a password: print it"])


async def test_a_photograph_in_heic_says_what_to_do_where_the_browser_cannot_read_it(
    tab: Tab,
) -> None:
    """Chromium cannot. Safari reads it, and the page sends JPEG from there."""
    heic = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(200)
    await tab.choose(tab.file_of("IMG_1.HEIC", heic))
    await expect(tab.tray).to_contain_text(["HEIC, which this browser cannot read: convert it to"])
    await tab.begin("What is this?")
    await expect(tab.problem).to_contain_text("convert it to JPEG")
    await expect(tab.turns).to_have_count(0)
