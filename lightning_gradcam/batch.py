"""The fixed batch: choose samples, load them as the loader would, read them, fingerprint them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from lightning_gradcam._lightning import before_batch_transfer, validating
from lightning_gradcam.isolation import random_state

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

SEED = 0  # random augmentations draw the same pixels for the fixed batch in every run

Samples = int | Sequence[int] | Dataset[Any]


@dataclass(frozen=True)
class Batch:
    """The samples that are looked at.

    Attributes:
        images: ``(n, c, H, W)``, as the model gets them.
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
        n, _, height, width = self.images.shape
        if self.labels is not None and (self.labels.ndim not in (1, 2) or len(self.labels) != n):
            raise ValueError(
                f"`labels` must be ({n},) or ({n}, classes), got {tuple(self.labels.shape)}; "
                "return masks as `regions`, from a `batch_fn` of your own"
            )
        object.__setattr__(self, "regions", {name: _plain(region) for name, region in self.regions.items()})
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
        names = [f"{called(one)}/{number + 1}" for one in self.ids for number in range(times)]
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


def called(sample: int | str) -> str:
    """How a sample is called: by its index behind a number sign, by a name of its own as it is."""
    return f"#{sample}" if isinstance(sample, int) else sample


def check_name(what: str, name: object) -> None:
    """Refuse a name that could not be a part of a tag and of a file name everywhere."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise ValueError(
            f"{what} must be up to 64 letters, digits, '_', '-' or '.', the first a letter, digit or '_', got {name!r}"
        )


def _plain(region: Any) -> Tensor:
    """A region as a plain tensor; boxes of another format than x0, y0, x1, y1 are brought to that."""
    if type(region).__name__ == "BoundingBoxes":
        from torchvision.transforms.v2.functional import convert_bounding_box_format
        from torchvision.tv_tensors import BoundingBoxFormat

        region = convert_bounding_box_format(region, new_format=BoundingBoxFormat.XYXY)
    if not isinstance(region, Tensor):
        raise TypeError(f"`regions` must hold tensors, got {type(region).__name__}")
    return region.as_subclass(Tensor)


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


def as_samples(samples: Samples) -> Samples:
    """Check the ``samples`` argument and make its integers Python's own; refuse what can never work."""
    if isinstance(samples, Dataset):
        if not isinstance(samples, Sized):
            raise ValueError(f"`samples` as a dataset needs a length, {type(samples).__name__} has none")
        if not len(samples):
            raise ValueError(f"`samples` must hold at least one sample, got an empty {type(samples).__name__}")
        return samples
    if isinstance(samples, Integral) and not isinstance(samples, bool):
        if samples < 1:
            raise ValueError(f"`samples` must be at least 1, got {samples}")
        return int(samples)
    if isinstance(samples, Sequence) and not isinstance(samples, str):
        if not samples:
            raise ValueError("`samples` must name at least one index, got none")
        for index in samples:
            if not isinstance(index, Integral) or isinstance(index, bool) or index < 0:
                raise ValueError(f"`samples` must hold indices of the dataset, 0 or above, got {index!r}")
        return [int(index) for index in samples]
    raise TypeError(f"`samples` must be a number, indices or a dataset, got {type(samples).__name__}")


def choose(samples: int | Sequence[int], length: int) -> list[int]:
    """Indices into a dataset of ``length``: the given ones, or so many evenly spaced from the first on.

    Raises:
        ValueError: If the dataset is empty or an index lies outside it.
    """
    if not length:
        raise ValueError("the dataset to take `samples` from is empty")
    if isinstance(samples, int):
        number = min(samples, length)
        return [i * length // number for i in range(number)]
    outside = [index for index in samples if index >= length]
    if outside:
        raise ValueError(f"`samples` names the indices {outside}, the dataset has {length} samples, 0 to {length - 1}")
    return list(samples)


def load(loader: Any, samples: Samples) -> tuple[Any, list[int] | None, int | None]:
    """Load samples as ``loader`` would, without iterating it or disturbing what it hands out later.

    They pass through its ``collate_fn`` and, where it has workers, through a throw-away worker of the same kind, so
    that no persistent worker moves on. All random states are restored, those of generators that the dataset owns among
    them; random augmentations draw from a fixed seed.

    Args:
        loader: The data loader whose dataset and way of loading are used; ``None`` if there is none.
        samples: How many samples, which indices, or a dataset to take instead of the loader's own. An iterable
            dataset gives its first items, a loader without automatic batching its first batch.

    Returns:
        The collated batch, the indices of its samples (``None``: the first ones), and the dataset's length
        (``None``: unknown).

    Raises:
        ValueError: If there is no dataset, it is empty, or it cannot give these samples.
    """
    dataset: Any = samples if isinstance(samples, Dataset) else getattr(loader, "dataset", None)
    if loader is None and dataset is None:
        raise ValueError("the trainer has no data loader to take `samples` from; pass a dataset as `samples`")
    if dataset is None:
        raise ValueError(
            f"the data loader, a {type(loader).__name__}, has no `dataset` to take samples from; "
            "pass a dataset of your own as `samples`"
        )
    options: dict[str, Any] = {"collate_fn": getattr(loader, "collate_fn", None) or default_collate}
    if loader is not None and getattr(loader, "num_workers", 0):
        options["num_workers"] = 1
        options["worker_init_fn"] = loader.worker_init_fn
        options["multiprocessing_context"] = loader.multiprocessing_context
    unbatched = getattr(loader, "batch_sampler", None) is None and dataset is not samples
    indices = length = None
    if unbatched or isinstance(dataset, IterableDataset):
        if not isinstance(samples, int):
            raise ValueError(
                f"`samples` as indices needs a dataset that is read by index and batched by its loader, got "
                f"{type(dataset).__name__} in a {type(loader).__name__} without these; pass a number"
            )
        options["batch_size"] = None if unbatched else samples
    else:
        length = len(dataset)
        if isinstance(samples, Dataset):
            indices = list(range(length))
        else:
            pool = getattr(
                getattr(loader, "sampler", None), "indices", None
            )  # a SubsetRandomSampler splits the dataset
            if not isinstance(samples, int) or not isinstance(pool, Sequence):
                pool = range(length)
            indices = [pool[i] for i in choose(samples, len(pool))]
        options["batch_sampler"] = [indices]
    with random_state(SEED, holder=(dataset, options["collate_fn"])):
        generator = torch.Generator().manual_seed(SEED)
        for batch in DataLoader(dataset, generator=generator, **options):
            return batch, indices, length
    raise ValueError("the dataset to take `samples` from is empty")


@dataclass(frozen=True)
class Fingerprint:
    """What tells one fixed batch from another.

    Attributes:
        identity: Hash of the dataset's length, the samples' ids and their labels: which samples these are.
        pixels: Hash of the images: another resolution or precision changes it, and they are the same samples still.
        length: The dataset's length, ``None`` where that is not known.
    """

    identity: str
    pixels: str
    length: int | None = None

    @classmethod
    def of(cls, batch: Batch, length: int | None) -> Fingerprint:
        labels = None if batch.labels is None else batch.labels.tolist()
        identity = repr((length, list(batch.ids), labels)).encode()
        pixels = batch.images.float().contiguous().numpy().tobytes()
        return cls(hashlib.sha256(identity).hexdigest(), hashlib.sha256(pixels).hexdigest(), length)


def fixed_batch(
    trainer: Trainer, pl_module: LightningModule, loader: Any, samples: Samples, batch_fn: Callable[[Any], Batch]
) -> tuple[Batch, Fingerprint]:
    """Load the fixed batch and pass it through the module's batch-transfer hooks, on every process the same.

    The first process loads and hands its samples to the others.

    Args:
        trainer: A trainer whose strategy is set up.
        pl_module: Its module.
        loader: See :func:`load`.
        samples: See :func:`load`.
        batch_fn: Reads what the transfer hooks give.

    Returns:
        The batch on the CPU, at most as many samples as asked for, and its fingerprint.

    Raises:
        ValueError: If the samples cannot be loaded or read, or an image is not finite.
        TypeError: If ``batch_fn`` returns no :class:`Batch`.
    """
    raw = indices = length = error = None
    if trainer.is_global_zero:
        try:
            raw, indices, length = load(loader, samples)
        except Exception as failure:  # the other processes wait for the broadcast
            error = failure
    message = f"{type(error).__name__}: {error}" if error else None
    message, raw, indices, length = trainer.strategy.broadcast((message, raw, indices, length))
    if message:
        raise error or RuntimeError(f"the first process could not load the fixed batch: {message}")

    holder = (pl_module, getattr(trainer, "datamodule", None))
    with torch.inference_mode(False), random_state(SEED, holder), validating(trainer, pl_module):
        raw = trainer.precision_plugin.convert_input(raw)
        raw = before_batch_transfer(pl_module, raw)
        batch = batch_fn(trainer.strategy.batch_to_device(raw))
        if not isinstance(batch, Batch):
            raise TypeError(f"`batch_fn` must return a `Batch`, got {type(batch).__name__}")
        batch = batch.apply(lambda tensor: tensor.detach().to("cpu", copy=True))
    if indices is None:
        batch = batch.part(slice(samples if isinstance(samples, int) else None))
    if not batch.ids:
        batch = replace(batch, ids=indices or range(len(batch.images)))
    broken = [name for name, image in zip(batch.ids, batch.images, strict=True) if not image.isfinite().all()]
    if broken:
        raise ValueError(
            f"the images of the samples {broken} hold NaN or infinite values; "
            "mend the data or choose others by `samples=[...]`"
        )
    for name, region in batch.regions.items():
        _check_boxes(name, region, batch)
    return batch, Fingerprint.of(batch, length)


def _check_boxes(name: str, region: Tensor, batch: Batch) -> None:
    """Refuse boxes in another form or unit, which would leave wrong numbers without a word."""
    if region.ndim != 2:
        return
    height, width = batch.images.shape[2:]
    x0, y0, x1, y1 = region.float().unbind(1)
    there = (x1 != x0) & (y1 != y0)
    away = there & ((x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height))
    problem = None
    if ((x1 < x0) | (y1 < y0)).any():
        problem = "a right or bottom edge before the left or top one, as boxes of x, y, width, height have"
    elif region.is_floating_point() and there.any() and region.max() <= 1 and (region % 1 != 0).any():
        problem = "values from 0 to 1 alone, as boxes in fractions of the image have"
    elif away.any():
        problem = f"boxes outside the images of {height} x {width} pixels, as those of another resolution"
    if problem:
        raise ValueError(
            f"region {name!r} has {problem}; `batch_fn` must return boxes as x0, y0, x1, y1 in pixels of the images "
            "that the model gets, right and bottom exclusive"
        )


def shift(batch: Batch) -> Batch:
    """The batch with its images moved by one pixel to the right; their left column stays as well."""
    images = batch.images
    return replace(batch, images=torch.cat([images[..., :1], images[..., :-1]], -1))


def balanced(dataset: Dataset[Any], number: int) -> list[int]:
    """Indices of samples with as equal a number of each class as there are, for ``samples=``.

    Args:
        dataset: With ``targets`` or ``labels``, one class index a sample, or a :class:`~torch.utils.data.TensorDataset`
            with the labels second, or a :class:`~torch.utils.data.Subset` of one of these. Of any other dataset every
            item is read, whose second part is its label.
        number: How many indices, at least 1; fewer come back where the dataset is smaller.

    Returns:
        The indices in the order of the dataset; those of a class are evenly spaced over its samples.

    Raises:
        ValueError: If ``number`` is below 1.
    """
    if number < 1:
        raise ValueError(f"`number` must be at least 1, got {number}")
    members: dict[int, list[int]] = {}
    for index, label in enumerate(_labels(dataset)):
        members.setdefault(int(label), []).append(index)
    shares = dict.fromkeys(sorted(members), 0)
    left = min(number, sum(map(len, members.values())))
    while left:  # one more of each class in turn, until the number is reached
        for label in shares:
            if left and shares[label] < len(members[label]):
                shares[label] += 1
                left -= 1
    chosen = [(members[label], share) for label, share in shares.items() if share]
    return sorted(indices[i] for indices, share in chosen for i in choose(share, len(indices)))


def _labels(dataset: Any) -> Sequence[Any]:
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset)
        return [labels[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].tolist()
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == len(dataset):
            return labels
    with random_state(SEED, holder=dataset):
        return [dataset[index][1] for index in range(len(dataset))]
