"""What is looked at: images with their labels, regions and names, and how a loader's batch is read as such."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_gradcam.attribution.regions import plain_region


@dataclass(frozen=True)
class Batch:
    """The samples that are looked at.

    Attributes:
        images: ``(n, c, H, W)`` or, with 1, 3 or 4 channels, ``(n, H, W, c)``, as the model gets them.
        labels: Class indices ``(n,)`` or ``(n, 1)``, or multi-hot ``(n, classes)``; ``None`` where there are none.
        regions: Places to mark by name, such as ``"object"``: boxes ``(n, 4)`` as x0, y0, x1, y1 in pixels, right and
            bottom exclusive, or masks ``(n, H, W)`` with values from 0 to 1; torchvision's ``tv_tensors`` too. A box
            without area or an empty mask means that the sample has none. A name of letters, digits, '_', '-' or '.'.
        inputs: What ``forward_fn`` needs beside or instead of the images.
        ids: How each sample is called in pictures; filled with the dataset's indices where it is left empty.
        groups: The name of the group that each sample belongs to, such as ``"tagged"``; numbers are logged for each
            group as well. Names as those of regions; whole numbers become names.

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

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("labels", self.labels)):
            if not isinstance(value, Tensor) and (name == "images" or value is not None):
                raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}")
        if self.images.ndim != 4 or not self.images.numel():
            raise ValueError(f"`images` must be (n, c, H, W) and not empty, got {tuple(self.images.shape)}")
        n, (height, width) = len(self.images), self.size
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
            if tuple(region.shape) not in ((n, 4), (n, height, width)):
                raise ValueError(
                    f"region {name!r} must be boxes ({n}, 4) or masks ({n}, {height}, {width}), "
                    f"got {tuple(region.shape)}"
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

    @property
    def channels_last(self) -> bool:
        """Whether the images are ``(n, H, W, c)``, by the axis that can only be channels."""
        return self.images.shape[3] in (1, 3, 4) and min(self.images.shape[1:3]) > 4

    @property
    def pictures(self) -> Tensor:
        """The images as ``(n, c, H, W)``."""
        return self.images.movedim(3, 1) if self.channels_last else self.images

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.pictures.shape[2], self.pictures.shape[3]

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

    def part(self, samples: slice) -> Batch:
        """Some of the samples; of ``inputs``, what has one entry a sample is cut alike."""
        n = len(self.images)
        cut = replace(self, ids=(), groups=())
        cut = cut.apply(lambda tensor: tensor[samples] if tensor.ndim and len(tensor) == n else tensor)
        return replace(cut, ids=self.ids[samples], groups=self.groups[samples])

    def parts(self, at_once: int | None) -> list[Batch]:
        """The batch in parts of so many samples; ``None``: as one."""
        n = len(self.images)
        if at_once is None or at_once >= n:
            return [self]
        return [self.part(slice(start, start + at_once)) for start in range(0, n, at_once)]


def sample_name(sample: int | str) -> str:
    """How pictures and tables name a sample: an index behind a number sign, a name of its own as it is."""
    return f"#{sample}" if isinstance(sample, int) else sample


def check_name(what: str, name: object) -> None:
    """Refuse a name that could not be a part of a tag and of a file name everywhere."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise ValueError(
            f"{what} must be up to 64 letters, digits, '_', '-' or '.', the first a letter, digit or '_', got {name!r}"
        )


def default_batch(batch: Any) -> Batch:
    """Read the usual forms of a batch: ``(images, labels)`` or a mapping.

    Args:
        batch: ``(images, labels)`` as tuple or list, or a mapping with ``"image"``, ``"images"`` or
            ``"pixel_values"`` and, if there are any, ``"label"`` or ``"labels"``.

    Raises:
        ValueError: If it is anything else; the message shows its structure and asks for a ``batch_fn``.
    """
    images = labels = None
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in ("image", "images", "pixel_values") if key in batch), None)
        labels = next((batch[key] for key in ("label", "labels") if key in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        images, labels = batch
    if not isinstance(images, Tensor) or images.ndim != 4 or not isinstance(labels, Tensor | None):
        raise ValueError(
            f"cannot read the batch {structure(batch)}; expected (images, labels) or a mapping with 'image' and "
            "'label', images (n, c, H, W); pass `batch_fn=lambda batch: Batch(images=..., labels=...)`"
        )
    return Batch(images, labels)


def structure(value: Any) -> str:
    """Describe nested containers and tensors in one line: ``(tensor (16, 3, 32, 32) float32, int)``."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {structure(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        items = ", ".join(structure(item) for item in value[:8]) + (", ..." if len(value) > 8 else "")
        return f"({items})" if isinstance(value, tuple) else f"[{items}]"
    return type(value).__name__


def joined(batch: Batch, images: Tensor) -> Batch:
    """The batch, and behind it the same samples once more with other images."""
    n = len(batch.images)
    both = replace(batch, ids=(), groups=())
    both = both.apply(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == n else tensor)
    return replace(both, images=torch.cat([batch.images, images]), ids=[*batch.ids] * 2, groups=[*batch.groups] * 2)


def shift(batch: Batch) -> Batch:
    """The batch with its images moved by one pixel to the right; their left column stays as well."""
    images, axis = batch.images, 2 if batch.channels_last else 3
    parts = images.narrow(axis, 0, 1), images.narrow(axis, 0, images.shape[axis] - 1)
    return replace(batch, images=torch.cat(parts, axis))
