"""Maps over images as one picture, for a notebook or a script."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from lightning_gradcam.attribution.isolation import torch_defaults
from lightning_gradcam.attribution.spatial import in_words
from lightning_gradcam.metrics.shapes import grid_letters
from lightning_gradcam.picture.display import photos, value_limits
from lightning_gradcam.picture.draw import notes
from lightning_gradcam.picture.grid import Caption, grid
from lightning_gradcam.picture.overlay import strongest
from lightning_gradcam.picture.view import Axes, strongest_pixels


@torch_defaults()
def show(
    images: Tensor | np.ndarray,
    maps: Tensor | np.ndarray,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Image:
    """Draw maps over their images, as the callback does: each by its own maximum, which stands below it.

    A map without a positive cell is said to be empty, and its photo is left as it is.

    Args:
        images: As the model gets them: images ``(n, c, H, W)``, volumes, of which the three
            planes through a map's strongest cell are drawn, or signals.
        maps: Signed maps ``(n, h, w)`` of them, such as :func:`~lightning_gradcam.gradcam` returns, or ``(n k, h, w)``
            of several scores a sample, which then stand in a row each.
        mean: What was subtracted from each channel to normalize the images, a number or one a channel.
        std: What each channel was divided by.

    Returns:
        A picture in RGB, which a notebook shows at the end of a cell; ``.save("maps.png")`` writes it.

    Raises:
        ValueError: If the shapes do not fit, or of mean and std one is missing or fits not the channels.

    Warns:
        UserWarning: If images without mean and std have values outside [0, 1], by which scale they are shown.
    """
    images, maps = (torch.as_tensor(one).detach().cpu() for one in (images, maps))
    maps = maps.float()
    d = images.ndim - 2
    if d not in (1, 2, 3) or not len(images) or maps.ndim != d + 1 or not len(maps) or len(maps) % len(images):
        letters = ", ".join(grid_letters(d)) if d in (1, 2, 3) else "h, w"
        raise ValueError(
            f"`images` must have the shape (n, c, {letters.upper()}) and `maps` (n, {letters}), or k for each image, "
            f"got {tuple(images.shape)} and {tuple(maps.shape)}; of a single one give `image[None]` and `map[None]`"
        )
    if (mean is None) != (std is None):
        raise ValueError("`show` needs `mean` and `std` together, got one of them")
    grey, note = photos(images, mean, std)
    if note:
        advice = "give `mean` and `std` for their true brightness"
        warnings.warn(f"`show`: {note.partition('; ')[0]}; {advice}.", stacklevel=3)
    k, limits = len(maps) // len(images), value_limits(images, mean, std, None) if d == 1 else None
    titles = [f"#{i}" if k == 1 else f"#{i}/{one + 1}" for i in range(len(images)) for one in range(k)]
    captions = [
        Caption((title, ""), ("" if why else f"largest {most:.3g}", ""), None, why)
        for title, most, why in zip(titles, strongest(maps).tolist(), notes(maps), strict=True)
    ]
    key = f"0 to each map's maximum · {in_words(maps.shape[1:])} cells"
    columns = k if k > 1 else None
    repeated, planes = grey.repeat_interleave(k, 0), strongest_pixels(maps, tuple(images.shape[2:])) if d == 3 else None
    axes = Axes(limits=limits)
    return grid(repeated, maps, captions, {}, key, columns=columns, scale="run", axes=axes, planes=planes)
