"""The fonts in which words are printed, from packages of open fonts. Training does not use the
held-out fonts.

Training and measuring need these packages, and serving does not. The dependency group `training`
lists them. Their licences are Apache-2.0 and OFL-1.1; DejaVu and STIX come with matplotlib.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from PIL import ImageFont

_MATPLOTLIB: Final = "matplotlib/mpl-data/fonts/ttf"

# Each name is a package, and the path of a file in it.
TRAINING_FONTS = (
    *(
        f"font_roboto/files/Roboto-{style}.ttf"
        for style in ("Light", "Regular", "Medium", "Bold", "Black", "Italic", "BoldItalic")
    ),
    *(
        f"font_source_sans_pro/files/SourceSansPro-{style}.ttf"
        for style in ("Regular", "Semibold", "Bold", "It")
    ),
    *(
        f"font_source_serif_pro/files/SourceSerifPro-{style}.ttf"
        for style in ("Regular", "Semibold", "Bold")
    ),
    *(f"font_manrope/files/Manrope-{style}.ttf" for style in ("Regular", "Medium", "Bold")),
    *(f"font_lato/files/Lato-{style}.ttf" for style in ("Regular", "Bold", "Black", "Italic")),
    *(f"font_rhd/files/RedHatDisplay-{style}.ttf" for style in ("Regular", "Medium", "Bold")),
    *(f"{_MATPLOTLIB}/DejaVuSans{style}.ttf" for style in ("", "-Bold", "Mono", "Mono-Bold")),
    *(f"{_MATPLOTLIB}/DejaVuSerif{style}.ttf" for style in ("", "-Bold")),
    *(f"{_MATPLOTLIB}/STIXGeneral{style}.ttf" for style in ("", "Bol")),
    "font_fredoka_one/files/FredokaOne-Regular.ttf",
    "font_fjallaone/files/FjallaOne-Regular.ttf",
)
HELD_OUT_FONTS = (
    "font_hanken_grotesk/files/HankenGrotesk-Medium.otf",
    "font_hanken_grotesk/files/HankenGrotesk-Bold.otf",
    "font_caladea/files/Caladea-Regular.ttf",
    "font_caladea/files/Caladea-Bold.ttf",
)


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font at `size` pixels an em. Raises FileNotFoundError if its package is missing."""
    package, _, file = name.partition("/")
    found = find_spec(package)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"install {package.replace('_', '-')}, which contains {file}")
    path = Path(found.origin).parent / file
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def advance(name: str, size: int, character: str) -> float:
    """The distance in pixels from the start of the character to the start of the next one."""
    return font(name, size).getlength(character)
