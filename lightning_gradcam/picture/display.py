"""How pictures look: the user's settings, and a fixed batch's images back as photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_gradcam.attribution.sequences import as_list
from lightning_gradcam.picture.overlay import COLORMAPS


@dataclass(frozen=True)
class Display:
    """How pictures look.

    Attributes:
        mean: What was subtracted from each channel of the images, a number or one a channel. With ``std`` it undoes
            the normalization. ``None``: taken from a ``Normalize`` in the dataset's transform or from the
            datamodule, see :func:`~lightning_gradcam.picture.datasets.find_normalization`.
        std: What each channel was divided by.
        class_names: The name of each class by its index. ``None``: those of the dataset or the datamodule, where
            these tell some, see :func:`~lightning_gradcam.picture.datasets.find_class_names`.
        colormap: ``"turbo"``, or ``"inferno"`` with a contour at half of the maximum, which reads without colours.
        scale: ``"sample"``: each map by its own maximum, and at the tile's edge a gauge of that against the sample's
            largest value in the run; ``"run"``: each map by that largest value.
        counterfactual: Draw in the grid where the evidence against the target lies as well, in a second colour: what
            would have to go for the target to be surer (arXiv 1610.02391, section on counterfactual explanations). For
            the methods with a sign. Both colours are then on one scale, up to the larger of both sides.
        tile: Longer side of a sample's tile in pixels, at least 32.
        per_sample: Give W&B each sample as an image of its own as well, with a caption; at most 108 of them.
        font: A TrueType file, for class names in scripts that the font of this package does not cover.

    Raises:
        ValueError: If a value is not as above.
    """

    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    class_names: Sequence[str] | None = None
    colormap: str = "turbo"
    scale: str = "sample"
    counterfactual: bool = False
    tile: int = 160
    per_sample: bool = False
    font: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std", "class_names"):
            object.__setattr__(self, name, as_list(getattr(self, name)))
        if (self.mean is None) != (self.std is None):
            raise ValueError("`Display` needs `mean` and `std` together, got one of them")
        if self.std is not None and not (torch.as_tensor(self.std) > 0).all():
            raise ValueError(f"`std` must be above 0 in every channel, got {self.std}")
        if self.colormap not in COLORMAPS:
            raise ValueError(f"`colormap` must be one of {sorted(COLORMAPS)}, got {self.colormap!r}")
        if self.scale not in ("sample", "run"):
            raise ValueError(f'`scale` must be "sample" or "run", got {self.scale!r}')
        if not isinstance(self.tile, int) or self.tile < 32:
            raise ValueError(f"`tile` must be at least 32 pixels, got {self.tile!r}")
        names = self.class_names
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"`class_names` must be a sequence of names, got {names!r}")
        if self.font is not None and not Path(self.font).is_file():
            raise ValueError(f"`font` must be a TrueType file, there is none at {str(self.font)!r}")


def photos(
    images: Tensor, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[Tensor, str | None]:
    """Images as the model gets them, back to grey photos.

    Args:
        images: ``(n, c, H, W)``.
        mean: See :class:`Display`.
        std: See :class:`Display`.

    Returns:
        Photos ``(n, H, W)`` in [0, 1], and a sentence where the values are not in [0, 1]: where no normalization is
        known on the scale that was assumed, one for the whole batch from its smallest to its largest value; where one
        is, that most values lie outside and are cut off.

    Raises:
        ValueError: If mean or std fit neither one channel nor the images'.
    """
    channels = images.shape[1]
    note = None
    values = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if mean is not None and std is not None:
        shift, scale = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
        for name, value in (("mean", shift), ("std", scale)):
            if len(value) not in (1, channels):
                raise ValueError(f"`{name}` has {len(value)} values, the images have {channels} channels")
        values = values * scale + shift
        if ((values < -0.01) | (values > 1.01)).float().mean() > 0.5:
            low, high = values.min(), values.max()
            note = (
                f"`mean` {mean} and `std` {std} bring the images to values from {low:.3g} to {high:.3g}, most of them "
                "outside 0 (black) to 1 (white); give by `Display(mean=..., std=...)` what they were normalized with"
            )
    elif values.min() < 0 or values.max() > 1:
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp_min(1e-12)
        note = (
            f"no normalization is known, so photos are shown on one scale from {low:.3g} (black) to {high:.3g} "
            "(white); give `Display(mean=..., std=...)` for their true brightness"
        )
    if channels == 3:
        luma = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
        return torch.einsum("nchw,c->nhw", values, luma).clamp(0, 1), note
    return values.mean(1).clamp(0, 1), note
