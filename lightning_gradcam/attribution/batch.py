"""What is looked at: images, volumes, clips or signals with their labels, regions and names."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_gradcam.attribution.names import sample_name
from lightning_gradcam.attribution.regions import are_boxes, plain_region
from lightning_gradcam.attribution.sequences import part_of
from lightning_gradcam.attribution.spatial import Size

_LARGE = 1024 * 1024  # pixels; of larger images one is enough to find things out, and all that is affordable


@dataclass(frozen=True)
class Batch:
    """The samples that are looked at.

    Attributes:
        images: ``(n, c, *spatial)`` with one, two or three spatial axes, as the model gets them: signals
            ``(n, c, length)``, images ``(n, c, H, W)`` or, with 1, 3 or 4 channels, ``(n, H, W, c)``, volumes
            ``(n, c, D, H, W)``, and clips.
        labels: Class indices ``(n,)`` or ``(n, 1)``; one-hot, smoothed or multi-hot ``(n, classes)``; or values, of a
            regression. ``None`` where there are none. A sample without a label has -1, -100 or NaN, or a row without
            a 1; entries -1, -100 and NaN of a multi-hot row are unknown.
        regions: Places to mark by name, such as ``"object"``: boxes ``(n, 4)`` as x0, y0, x1, y1 in pixels, right and
            bottom exclusive, or masks ``(n, H, W)`` with values from 0 to 1; torchvision's ``tv_tensors`` too. Of
            volumes boxes ``(n, 6)`` as x0, y0, z0, x1, y1, z1, the last axis first, of clips with the frame for z, of
            signals ``(n, 2)`` as start and end, or masks ``(n, *spatial)``. Several boxes a sample are ``(n, m, 4)``
            and so on: as a mask they are their union, and a box of a map may overlap any of them. A box without area,
            as in padding, is none; with none, or an empty mask, a sample has no such region. What may be either, of
            images 4 pixels wide, is a mask. A name of letters, digits, '_', '-' or '.'.
        inputs: What ``forward_fn`` needs beside or instead of the images.
        ids: How each sample is called in pictures; filled with the dataset's indices where it is left empty.
        groups: The name of the group that each sample belongs to, such as ``"tagged"``; numbers are logged for each
            group as well. Names as those of regions; whole numbers become names.
        multilabel: Whether a row of labels ``(n, classes)`` may name several classes, so that each class has a
            probability of its own. ``None``: told by the rows, which sum to 1 where they name one; in a run by those
            of more samples, and by the losses among the modules.
        time_axis: Which axis of ``images`` is time, the frames of clips: 2 of ``(n, c, t, H, W)``, 1 of
            ``(n, t, c, H, W)`` and of signals ``(n, length, c)``. ``None``: there is none, or the model's first layer
            tells.
        spacing: The size of a voxel along each spatial axis of volumes, in any unit: the pictures have these
            proportions. ``None``: that of images that carry it, as MONAI's do and are alike, else all 1.

    Raises:
        TypeError: If the images, labels or a region are no tensor.
        ValueError: If a shape or name is not as above.
    """

    images: Tensor
    labels: Tensor | None = None
    regions: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Any = None
    ids: Sequence[int | str] = ()
    groups: Sequence[str] = ()
    multilabel: bool | None = None
    time_axis: int | None = None
    spacing: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("labels", self.labels)):
            if not isinstance(value, Tensor) and (name == "images" or value is not None):
                raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}")
        if self.images.ndim not in (3, 4, 5) or not self.images.numel():
            raise ValueError(
                "`images` must be (n, c, H, W), (n, c, D, H, W), (n, t, c, H, W) or (n, c, length) and not empty, got "
                f"{tuple(self.images.shape)}"
            )
        self._check_axes()
        n, size = len(self.images), self.size
        if self.labels is not None and (self.labels.ndim not in (1, 2) or len(self.labels) != n):
            raise ValueError(
                f"`labels` must be ({n},) or ({n}, classes), got {tuple(self.labels.shape)}; "
                "return masks as `regions`, from a `batch_fn` of your own"
            )
        object.__setattr__(self, "regions", {name: plain_region(region) for name, region in self.regions.items()})
        for name, region in self.regions.items():
            check_name("the name of a region", name)
            if not region.isfinite().all():
                raise ValueError(f"region {name!r} holds NaN or infinite values")
            if len(region) != n or not (are_boxes(region, size) or region.shape[1:] == size):
                clips = self.images.ndim == 5 and self.time_axis is None
                raise ValueError(
                    f"region {name!r} must be boxes ({n}, {2 * len(size)}), ({n}, m, {2 * len(size)}) or masks "
                    f"{(n, *size)}, "
                    f"got {tuple(region.shape)}{'; of clips (n, t, c, H, W) give `time_axis=1`' * clips}"
                )
        for name in ("ids", "groups"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"`{name}` must name each sample, got one text, {value!r}")
            if isinstance(value, (Tensor, np.ndarray)):  # as collated
                value = value.tolist()
                object.__setattr__(self, name, value)
            if value and len(value) != n:
                raise ValueError(f"`{name}` must name {n} samples, got {len(value)}")
        object.__setattr__(self, "groups", [str(one) if isinstance(one, Integral) else one for one in self.groups])
        for group in self.groups:
            check_name("the name of a group", group)

    def _check_axes(self) -> None:
        """Take what MONAI's images and torchvision's videos know of themselves, and check what is said of the axes."""
        kind = type(self.images).__name__
        spacing = _spacing_of(self.images) if self.spacing is None and kind == "MetaTensor" else self.spacing
        time_axis = self.images.ndim - 4 if self.time_axis is None and kind == "Video" else self.time_axis
        if kind in ("MetaTensor", "Video"):
            object.__setattr__(self, "images", self.images.as_subclass(Tensor))
        if time_axis is not None and (self.images.ndim == 4 or time_axis not in range(1, self.images.ndim)):
            raise ValueError(
                "`time_axis` must be 2 of clips (n, c, t, H, W), 1 of (n, t, c, H, W) and signals (n, length, c), or "
                f"another axis of five, got {time_axis!r} for images {tuple(self.images.shape)}"
            )
        if spacing is not None:
            spacing = tuple(map(float, spacing))
            if len(spacing) != self.images.ndim - 2 or not all(0 < side < math.inf for side in spacing):
                raise ValueError(
                    f"`spacing` must be {self.images.ndim - 2} numbers above 0, one a spatial axis of images "
                    f"{tuple(self.images.shape)}, got {spacing}"
                )
        object.__setattr__(self, "time_axis", time_axis)
        object.__setattr__(self, "spacing", spacing)

    @property
    def channel_axis(self) -> int:
        """The axis of the images that counts channels; of ``(n, H, W, c)``, which can only be channels, the last."""
        last = self.images.ndim == 4 and self.images.shape[3] in (1, 3, 4) and min(self.images.shape[1:3]) > 4
        return 3 if last else 2 if self.time_axis == 1 else 1

    @property
    def time(self) -> int | None:
        """Which of the three spatial axes of clips, counted from 0, is time; ``None``: these are no clips."""
        return None if self.time_axis is None or self.images.ndim < 5 else max(self.time_axis - 2, 0)

    @property
    def pictures(self) -> Tensor:
        """The images as ``(n, c, *spatial)``."""
        return self.images.movedim(self.channel_axis, 1)

    @property
    def size(self) -> Size:
        """The length of each spatial axis, such as height and width."""
        shape = list(self.images.shape[1:])
        del shape[self.channel_axis - 1]
        return tuple(shape)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``function`` applied to every tensor in it."""
        return replace(
            self,
            images=function(self.images),
            labels=None if self.labels is None else function(self.labels),
            regions={name: function(region) for name, region in self.regions.items()},
            inputs=apply_to_collection(self.inputs, Tensor, function),
        )

    def repeated(self, times: int) -> Batch:
        """The images, labels, regions and names of each sample so many times in a row, numbered from 1."""
        if times == 1:
            return self
        rows = replace(self, inputs=None, ids=(), groups=()).apply(lambda tensor: tensor.repeat_interleave(times, 0))
        names = [f"{sample_name(one)}/{number + 1}" for one in self.ids for number in range(times)]
        return replace(rows, ids=names, groups=[one for one in self.groups for _ in range(times)])

    def part(self, samples: slice | list[int]) -> Batch:
        """Some of the samples; of ``inputs``, what has one entry a sample is cut alike."""
        n = len(self.images)
        cut = replace(self, ids=(), groups=())
        inputs = of_rows(self.inputs, n, lambda rows: part_of(rows, samples))
        cut = replace(cut, inputs=None).apply(lambda tensor: tensor[samples])
        return replace(cut, inputs=inputs, ids=part_of(self.ids, samples), groups=part_of(self.groups, samples))

    def parts(self, at_once: int | None) -> list[Batch]:
        """The batch in parts of so many samples; ``None``: as one."""
        n = len(self.images)
        if at_once is None or at_once >= n:
            return [self]
        return [self.part(slice(start, start + at_once)) for start in range(0, n, at_once)]


def _spacing_of(images: Any) -> Sequence[float] | None:
    """The voxel spacing of images that carry it, where it is the same for all, to a thousandth."""
    known = getattr(images, "pixdim", None)
    found = known if isinstance(known, (list, tuple)) else [known]
    if known is None or not len(found):
        return None
    each = torch.stack([torch.as_tensor(one, dtype=torch.float64, device="cpu").flatten() for one in found])
    fits = each.shape[1] == images.ndim - 2 and bool((each > 0).all() and each.isfinite().all())
    return each[0].tolist() if fits and torch.allclose(each, each[:1], 1e-3, 0) else None


def check_name(what: str, name: object) -> None:
    """Refuse a name that could not be a part of a tag and of a file name everywhere."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise ValueError(
            f"{what} must be up to 64 letters, digits, '_', '-' or '.', the first a letter, digit or '_', got {name!r}"
        )


def of_rows(value: Any, n: int, function: Callable[[Any], Any]) -> Any:
    """Nested containers with ``function`` applied to what has an entry a sample: tensors, and lists of other things."""
    if isinstance(value, Tensor):
        return function(value) if value.ndim and len(value) == n else value
    if isinstance(value, Mapping):
        return with_items(value, {key: of_rows(item, n, function) for key, item in value.items()})
    if type(value) in (list, tuple) and len(value) == n and not any(has_rows(item, n) for item in value):
        return function(value)
    if isinstance(value, (list, tuple)):
        return with_items(value, {i: of_rows(item, n, function) for i, item in enumerate(value)})
    if is_dataclass(value) and not isinstance(value, type):
        names = [one.name for one in fields(value)]
        return with_items(value, {name: of_rows(getattr(value, name), n, function) for name in names})
    return value


def few_of(batch: Batch) -> Batch:
    """One or two samples, with which is found out what is the same for all."""
    return batch.part(slice(2 if math.prod(batch.size) <= _LARGE else 1))


def has_rows(value: Any, n: int) -> bool:
    """Whether it is a tensor with a row for each of ``n`` samples."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n


def with_items(container: Any, items: Mapping[Any, Any]) -> Any:
    """A copy of a mapping, list, tuple or dataclass with some items replaced, by key, place or name."""
    if hasattr(container, "_replace"):  # a named tuple
        return container._replace(
            **{container._fields[key] if isinstance(key, int) else key: items[key] for key in items}
        )
    if isinstance(container, tuple):
        return type(container)(items.get(i, item) for i, item in enumerate(container))
    found: Any = copy.copy(container)
    for key, item in items.items():
        if isinstance(container, (Mapping, list)):
            found[key] = item
        else:  # a dataclass, which may be frozen
            object.__setattr__(found, key, item)
    return found


def joined(batch: Batch, images: Tensor) -> Batch:
    """The batch, and behind it the same samples once more with other images."""
    n = len(batch.images)
    inputs = of_rows(batch.inputs, n, lambda rows: torch.cat([rows, rows]) if isinstance(rows, Tensor) else rows * 2)
    both = replace(batch, ids=(), groups=(), inputs=None).apply(lambda tensor: torch.cat([tensor, tensor]))
    images = torch.cat([batch.images, images])
    return replace(both, images=images, inputs=inputs, ids=[*batch.ids] * 2, groups=[*batch.groups] * 2)


def shift(batch: Batch) -> Batch:
    """The batch with its images moved by one pixel along the last axis, to the right; the first ones stay as well."""
    images, axis = batch.images, batch.images.ndim - (2 if batch.channel_axis == 3 else 1)
    parts = images.narrow(axis, 0, 1), images.narrow(axis, 0, images.shape[axis] - 1)
    return replace(batch, images=torch.cat(parts, axis))
