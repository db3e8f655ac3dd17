"""How pictures look: the user's settings, and a fixed batch's images back as photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_gradcam.attribution.sequences import as_list
from lightning_gradcam.picture.colormaps import COLORMAPS


@dataclass(frozen=True)
class Display:
    """How pictures look.

    Attributes:
        mean: What was subtracted from each channel of the images, a number or one a channel. With ``std`` it undoes
            the normalization. ``None``: taken from a ``Normalize`` in the dataset's transform or from the
            datamodule, see :func:`~lightning_gradcam.picture.datasets.find_normalization`.
        std: What each channel was divided by.
        window: The values of the images, as the model gets them, that are shown black and white, such as
            ``(-1000, 400)``; of signals the lowest and the highest that are drawn. In place of ``mean`` and ``std``.
            ``None``: of volumes, and of clips whose values are not in [0, 1], where no normalization is known, the 1st
            and the 99th percentile of the fixed batch; of signals its smallest and its largest value.
        class_names: The name of each class by its index. ``None``: those of the dataset or the datamodule, where
            these tell some, see :func:`~lightning_gradcam.picture.datasets.find_class_names`.
        colormap: ``"turbo"``, or ``"inferno"`` with a contour at half of the maximum, which reads without colours.
        scale: ``"sample"``: each map by its own maximum, and at the tile's edge a gauge of that against the sample's
            largest value in the run; ``"run"``: each map by that largest value.
        counterfactual: Draw in the grid where the evidence against the target lies as well, in a second colour: what
            would have to go for the target to be surer (arXiv 1610.02391, section on counterfactual explanations). For
            the methods with a sign. Both colours are then on one scale, up to the larger of both sides.
        tile: Longer side of an image's tile in pixels, at least 32. The planes of a volume, the frames of a clip or a
            signal take up to twice as much in width.
        per_sample: Give W&B each sample as an image of its own as well, with a caption; at most 108 of them.
        page: Give the loggers that take one the page of the run, which needs the record.
        font: A TrueType file, for class names in scripts that the font of this package does not cover.

    Raises:
        ValueError: If a value is not as above.
    """

    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    window: Sequence[float] | None = None
    class_names: Sequence[str] | None = None
    colormap: str = "turbo"
    scale: str = "sample"
    counterfactual: bool = False
    tile: int = 160
    per_sample: bool = False
    page: bool = True
    font: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std", "window", "class_names"):
            object.__setattr__(self, name, as_list(getattr(self, name)))
        if (self.mean is None) != (self.std is None):
            raise ValueError("`Display` needs `mean` and `std` together, got one of them")
        if self.std is not None and not (torch.as_tensor(self.std) > 0).all():
            raise ValueError(f"`std` must be above 0 in every channel, got {self.std}")
        self._check_window()
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

    def _check_window(self) -> None:
        window = self.window
        if window is None:
            return
        if self.mean is not None:
            raise ValueError("`Display` takes `window`, or `mean` and `std`, got all of them; give one or the other")
        numbers = isinstance(window, list) and all(isinstance(one, (int, float)) for one in window)
        if not numbers or len(window) != 2 or not -math.inf < window[0] < window[1] < math.inf:
            raise ValueError(f"`window` must be two numbers, the lower one first, got {window!r}")


def photos(
    images: Tensor,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    window: Sequence[float] | None = None,
    clips: bool = False,
) -> tuple[Tensor, str | None]:
    """Samples as the model gets them, back to grey photos.

    Args:
        images: ``(n, c, *spatial)``.
        mean: See :class:`Display`.
        std: See :class:`Display`.
        window: See :class:`Display`.
        clips: Whether one of three spatial axes is time.

    Returns:
        Photos ``(n, *spatial)`` in [0, 1], values that are not finite as black, and a sentence where no normalization
        is known and images are not in [0, 1], on the scale that was assumed, one for the whole batch: of images from
        the smallest to the largest value, of volumes and clips from the 1st to the 99th percentile, of signals without
        a word as of images. Or where a normalization is known and most values lie outside, that they are cut off.

    Raises:
        ValueError: If mean or std fit neither one channel nor the images'.
    """
    axes = images.ndim - 2
    if axes == 1:
        return _scaled(_curves(images, mean, std), *value_limits(images, mean, std, window)), None
    values, note = images.float() / 255 if images.dtype == torch.uint8 else images.float(), None
    if window is not None:
        values = _scaled(images.float(), *window)
    elif mean is not None and std is not None:
        values = _denormalized(values, mean, std)
        if ((values < -0.01) | (values > 1.01)).float().mean() > 0.5:
            low, high = values.min(), values.max()
            note = (
                f"`mean` {mean} and `std` {std} bring the images to values from {low:.3g} to {high:.3g}, most of them "
                "outside 0 (black) to 1 (white); give by `Display(mean=..., std=...)` what they were normalized with"
            )
    else:
        values, note = _on_one_scale(images, values, clips)
    if images.shape[1] == 3:
        luma = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
        values = torch.einsum("nc...,c->n...", values, luma)
    else:
        values = values.mean(1)
    return values.clamp(0, 1).nan_to_num(0), note


def value_limits(
    signals: Tensor,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    window: Sequence[float] | None,
) -> tuple[float, float]:
    """The values of signals ``(n, c, length)`` that are drawn lowest and highest."""
    if window is not None:
        return window[0], window[1]
    curves = _curves(signals, mean, std)
    finite = curves[curves.isfinite()]
    return (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)


def _on_one_scale(images: Tensor, values: Tensor, clips: bool) -> tuple[Tensor, str | None]:
    """What no normalization is known of, and a sentence if it had to be scaled; volumes always are."""
    in_unit = bool(values.min() >= 0 and values.max() <= 1)
    if images.ndim == 5 and not (clips and in_unit):
        low, high = _percentiles(images.float(), 0.01, 0.99)
        return _scaled(images.float(), low, high), (
            f"no normalization is known, so {'clips' if clips else 'volumes'} are shown on one scale from {low:.3g} "
            f"(black) to {high:.3g} (white), the 1st and the 99th percentile of their values; "
            f"`Display(window=({low:.3g}, {high:.3g}))` keeps that, or give another window"
        )
    if values.min() < 0 or values.max() > 1:
        low, high = values.min(), values.max()
        return (values - low) / (high - low).clamp_min(1e-12), (
            f"no normalization is known, so photos are shown on one scale from {low:.3g} (black) to {high:.3g} "
            "(white); give `Display(mean=..., std=...)` for their true brightness"
        )
    return values, None


def _curves(signals: Tensor, mean: float | Sequence[float] | None, std: float | Sequence[float] | None) -> Tensor:
    """The mean ``(n, length)`` of the channels, their normalization undone where it is given."""
    values = signals.float()
    return (values if mean is None or std is None else _denormalized(values, mean, std)).mean(1)


def _denormalized(values: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    channels, ones = values.shape[1], [1] * (values.ndim - 2)
    shift, scale = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, *ones) for value in (mean, std))
    for name, value in (("mean", shift), ("std", scale)):
        if len(value) not in (1, channels):
            raise ValueError(f"`{name}` has {len(value)} values, the images have {channels} channels")
    return values * scale + shift


def _scaled(values: Tensor, low: float, high: float) -> Tensor:
    return ((values - low) / max(high - low, 1e-12)).clamp(0, 1).nan_to_num(0)


def _percentiles(values: Tensor, *shares: float) -> list[float]:
    """The values below which these shares of the finite ones lie; ``quantile`` refuses as many as volumes have."""
    finite = values[values.isfinite()]
    if not len(finite):
        return [0.0] * len(shares)
    return [finite.kthvalue(1 + round(share * (len(finite) - 1))).values.item() for share in shares]
