"""Text in pictures: a font that covers the users' names, and lines that fit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_AROUND = 3  # pixels around a line, for what letters have outside their own width
# Pillow's own font draws boxes for é, ß, → and others; DejaVu covers Latin, Greek, Cyrillic, Arabic and more.
_FONT = Path(__file__).parent / "fonts" / "DejaVuSansCondensed.ttf"


@cache
def load_font(path: str | Path | None, size: int) -> ImageFont.FreeTypeFont:
    """The font in a TrueType file, or this package's own, at a size in pixels."""
    return ImageFont.truetype(str(path or _FONT), size)


def printable(text: str) -> str:
    """One line of text: control characters, line breaks among them, become spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


@lru_cache(4096)
def fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, shortened with an ellipsis to at most ``width`` pixels."""
    text = printable(text)[:200]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    color: str,
    font: ImageFont.FreeTypeFont,
    width: float,
    anchor: str = "l",
    outline: str | None = None,
) -> float:
    """Write a line of text, shortened to at most ``width`` pixels; return its width.

    Args:
        draw: What to write on.
        place: Its left end, middle or right end, as the anchor says, and the middle of its height.
        text: The text.
        color: Of the letters.
        font: The font.
        width: The room that there is.
        anchor: ``"l"``, ``"m"`` or ``"r"``.
        outline: The colour of a line around the letters; ``None``: there is none.
    """
    line = fit(text, font, width)
    letters, across = _mask(line, font, 0)
    left = round(place[0] - {"l": 0, "m": across / 2, "r": across}[anchor]) - _AROUND
    corner = left, round(place[1] - letters.height / 2)
    if outline is not None:
        draw.bitmap(corner, _mask(line, font, 2)[0], fill=outline)
    draw.bitmap(corner, letters, fill=color)
    return across


@lru_cache(1024)
def _mask(text: str, font: ImageFont.FreeTypeFont, stroke: int) -> tuple[Image.Image, float]:
    """The ink of a line, and its width without the room around it. Most lines come again in the next picture."""
    across, height = font.getlength(text), sum(font.getmetrics())
    mask = Image.new("L", (int(across) + 2 * _AROUND + 1, height + 2 * _AROUND))
    ImageDraw.Draw(mask).text((_AROUND, mask.height / 2), text, 255, font, "lm", stroke_width=stroke)
    return mask, across


def missing_letters(texts: Iterable[str], font: ImageFont.FreeTypeFont) -> str:
    """The letters in the texts for which the font has no glyph, each once, sorted."""
    absent = _glyph(font, "\U0010ffff")
    letters = {letter for text in texts for letter in printable(text) if not letter.isspace()}
    return "".join(sorted(letter for letter in letters if _glyph(font, letter) == absent))


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    canvas = Image.new("L", (2 * int(font.size), 2 * int(font.size)))
    ImageDraw.Draw(canvas).text((0, 0), letter, 255, font)
    return canvas.tobytes()
