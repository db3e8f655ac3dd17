"""What grid and filmstrip draw alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont
from torch import Tensor

from lightning_gradcam.metrics.evidence import unreadable
from lightning_gradcam.picture.colormaps import AGAINST
from lightning_gradcam.picture.overlay import colors
from lightning_gradcam.picture.text import write

GUTTER = 4
TEXT = 13  # pixels
LINE = 17
PAPER, INK = "#ffffff", "#303030"
# Behind what the model says: right, wrong, unknown.
VERDICT: dict[bool | None, str] = {True: "#1b5e9b", False: "#b3261e", None: "#4a4a4a"}


def draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], corner: tuple[int, int]) -> None:
    """Outline a box, given in pixels of a picture whose upper left corner lies at ``corner``."""
    x0, y0, x1, y1 = (round(value + offset) for value, offset in zip(box, corner * 2, strict=True))
    if x1 - x0 > 4 and y1 - y0 > 4:
        # Three pixels in all: dashboards show the picture at a third, where thinner lines lose whole sides.
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline="black")
        draw.rectangle((x0 + 1, y0 + 1, x1 - 2, y1 - 2), outline="white", width=2)


def draw_gauge(draw: ImageDraw.ImageDraw, share: float, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """At the right edge of a tile, how large its map's maximum is: a share in [0, 1] of the sample's in the run."""
    right, bottom = corner[0] + size[0], corner[1] + size[1]
    draw.rectangle((right - 4, corner[1], right - 1, bottom - 1), fill="black")
    filled = round(share * size[1])
    if filled:
        draw.rectangle((right - 3, bottom - filled, right - 2, bottom - 1), fill="#ffd54a")


def draw_note(
    draw: ImageDraw.ImageDraw, letters: FreeTypeFont, note: str, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    """Across a tile, why it shows no map."""
    middle = corner[0] + size[0] // 2, corner[1] + size[1] // 2
    write(draw, middle, note, "white", letters, size[0], "m", outline="black")


def notes(maps: Tensor) -> list[str]:
    """Why each map ``(n, *grid)`` cannot be drawn or read; empty where it can."""
    said = {"not finite": "not finite", "zero": "map empty", "negative": "map empty"}
    if maps[0].numel() > 1:
        said["constant"] = "map constant"
    return [said.get(why, "") for why in unreadable(maps)]


def draw_foot(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    letters: FreeTypeFont,
    key: str,
    colormap: str | None,
    counterfactual: bool = False,
) -> None:
    """A colour bar from no evidence to the maximum, before it one of the evidence against, and the key."""
    middle = canvas.height - LINE // 2 - 1
    bar = (
        torch.linspace(0, 1, 48)[:, None].expand(-1, 3)
        if colormap is None
        else colors(torch.linspace(0, 1, 48), colormap)
    )
    if counterfactual and colormap is not None:
        against = torch.tensor(AGAINST[colormap]) / 255
        bar = torch.cat([torch.lerp(torch.ones(3), against, torch.linspace(1, 0, 24)[:, None]), bar])
    pixels = (bar * 255).round().to(torch.uint8).expand(9, -1, -1)
    canvas.paste(Image.fromarray(pixels.numpy()), (GUTTER, middle - 4))
    room = canvas.width - len(bar) - 4 * GUTTER
    write(draw, (GUTTER + len(bar) + 2 * GUTTER, middle), key, INK, letters, room)
