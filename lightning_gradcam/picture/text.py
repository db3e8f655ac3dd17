"""Text in pictures: a font that covers the users' names, and lines that fit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Pillow's own font draws boxes for é, ß, → and others; DejaVu covers Latin, Greek, Cyrillic, Arabic and more.
_FONT = Path(__file__).parent / "fonts" / "DejaVuSansCondensed.ttf"


@cache
def load_font(path: str | Path | None, size: int) -> ImageFont.FreeTypeFont:
    """The font in a TrueType file, or this package's own, at a size in pixels."""
    return ImageFont.truetype(str(path or _FONT), size)


def printable(text: str) -> str:
    """One line of text: control characters, line breaks among them, become spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, shortened with an ellipsis to at most ``width`` pixels."""
    text = printable(text)[:200]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def missing_letters(texts: Iterable[str], font: ImageFont.FreeTypeFont) -> str:
    """The letters in the texts for which the font has no glyph, each once, sorted."""
    absent = _glyph(font, "\U0010ffff")
    letters = {letter for text in texts for letter in printable(text) if not letter.isspace()}
    return "".join(sorted(letter for letter in letters if _glyph(font, letter) == absent))


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    canvas = Image.new("L", (2 * int(font.size), 2 * int(font.size)))
    ImageDraw.Draw(canvas).text((0, 0), letter, 255, font)
    return canvas.tobytes()
