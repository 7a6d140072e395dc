"""The fonts that words are printed in: packages of open fonts, some of them never trained on.

They are needed to train and to measure, not to serve: `pip install font-roboto
font-source-sans-pro font-source-serif-pro font-manrope font-fredoka-one font-caladea
font-hanken-grotesk` (Apache-2.0 and OFL-1.1).
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

TRAINING_FONTS = (
    "font_roboto/Roboto-Regular.ttf",
    "font_roboto/Roboto-Medium.ttf",
    "font_roboto/Roboto-Bold.ttf",
    "font_roboto/Roboto-Black.ttf",
    "font_roboto/Roboto-BoldItalic.ttf",
    "font_source_sans_pro/SourceSansPro-Regular.ttf",
    "font_source_sans_pro/SourceSansPro-Semibold.ttf",
    "font_source_sans_pro/SourceSansPro-Bold.ttf",
    "font_source_serif_pro/SourceSerifPro-Regular.ttf",
    "font_source_serif_pro/SourceSerifPro-Semibold.ttf",
    "font_source_serif_pro/SourceSerifPro-Bold.ttf",
    "font_manrope/Manrope-Medium.ttf",
    "font_manrope/Manrope-Bold.ttf",
    "font_fredoka_one/FredokaOne-Regular.ttf",
)
HELD_OUT_FONTS = (
    "font_hanken_grotesk/HankenGrotesk-Medium.otf",
    "font_hanken_grotesk/HankenGrotesk-Bold.otf",
    "font_caladea/Caladea-Regular.ttf",
    "font_caladea/Caladea-Bold.ttf",
)


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font at `size` pixels an em. Raises FileNotFoundError naming the package it is in."""
    package, file = name.split("/")
    found = find_spec(package)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"install {package.replace('_', '-')}: its fonts are drawn with")
    path = Path(found.origin).parent / "files" / file
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def advance(name: str, size: int, character: str) -> float:
    """How far the pen moves, in pixels."""
    return font(name, size).getlength(character)
