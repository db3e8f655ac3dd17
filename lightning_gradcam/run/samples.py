"""The fixed batch: choose samples, load them as the loader would, fingerprint them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Number
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from lightning_gradcam.attribution.batch import Batch, of_rows
from lightning_gradcam.attribution.doubles import Doubles
from lightning_gradcam.attribution.isolation import random_state
from lightning_gradcam.attribution.reading import ReadBatch, default_batch, read_batch
from lightning_gradcam.attribution.regions import check_boxes
from lightning_gradcam.attribution.sequences import as_list, is_array
from lightning_gradcam.run.failures import on_first_process
from lightning_gradcam.run.sizes import Size, image_size, of_one_size
from lightning_gradcam.run.sources import NUMBER, Choice, Samples
from lightning_gradcam.run.trainer import LightningModule, Source, Trainer, transfer

SEED = 0  # random augmentations draw the same pixels for the fixed batch in every run


class Items(Dataset[Any]):
    """Anything with a length and items as a dataset."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def as_samples(samples: Any) -> Samples:
    """Bring the ``samples`` argument to one form: a number, a list of indices, a dataset, or a loader's key.

    Raises:
        ValueError: If it can never work.
        TypeError: If it is of another type.
    """
    if isinstance(samples, str):
        return samples
    if _are_indices(samples):
        return _checked_indices(as_list(samples), "samples", "indices of the dataset")
    samples = as_list(samples) if is_array(samples) and not samples.ndim else samples
    if isinstance(samples, Integral) and not isinstance(samples, bool):
        if samples < 1:
            raise ValueError(f"`samples` must be at least 1, got {samples}")
        return int(samples)
    indexable = hasattr(type(samples), "__getitem__") and hasattr(type(samples), "__len__")
    if not isinstance(samples, Dataset) and (not indexable or isinstance(samples, (Mapping, bytes, nn.Module))):
        raise TypeError(
            "`samples` must be a number, indices, a dataset, or the key of a validation loader, got "
            f"{type(samples).__name__}"
        )
    if not isinstance(samples, Sized):
        raise ValueError(f"`samples` as a dataset needs a length, {type(samples).__name__} has none")
    if not len(samples):
        raise ValueError(f"`samples` must hold at least one sample, got an empty {type(samples).__name__}")
    return samples if isinstance(samples, Dataset) else Items(samples)


def _are_indices(samples: Any) -> bool:
    """Whether this is a sequence of numbers; a sequence of anything else is a dataset."""
    if is_array(samples):
        return samples.ndim == 1
    if not isinstance(samples, Sequence) or isinstance(samples, (bytes, Dataset)):
        return False
    with random_state(holder=samples):  # it may be a lazy one, whose items are read and augmented
        return not len(samples) or isinstance(samples[0], (Number, str)) or getattr(samples[0], "ndim", 1) == 0


def _checked_indices(indices: list[Any], argument: str, what: str) -> list[int]:
    if not indices:
        raise ValueError(f"`{argument}` must name at least one index, got none")
    for index in indices:
        if not isinstance(index, Integral) or isinstance(index, bool) or int(index) < 0:
            raise ValueError(f"`{argument}` must hold {what}, 0 or above, got {index!r}")
    return [int(index) for index in indices]


def as_pictures(pictures: Any) -> int | list[int]:
    """Bring the ``pictures`` argument to one form: a number, or positions in the fixed batch.

    Raises:
        ValueError: If it can never work.
        TypeError: If it is of another type.
    """
    pictures = as_list(pictures)
    if isinstance(pictures, list):
        positions = _checked_indices(pictures, "pictures", "positions in the fixed batch")
        twice = sorted({one for one in positions if positions.count(one) > 1})
        if twice:
            raise ValueError(f"`pictures` must name each position once, got {twice} several times")
        return positions
    if not isinstance(pictures, Integral) or isinstance(pictures, bool):
        raise TypeError(f"`pictures` must be a number or positions in the fixed batch, got {type(pictures).__name__}")
    if pictures < 1:
        raise ValueError(f"`pictures` must be at least 1, got {pictures}")
    return int(pictures)


def choose(samples: int | Sequence[int], length: int, argument: str = "samples", whole: str = "dataset") -> list[int]:
    """Indices into a dataset of ``length``: the given ones, or so many evenly spaced from the first on.

    Raises:
        ValueError: If the dataset is empty or an index lies outside it; the message names the argument, and what of.
    """
    if not length:
        raise ValueError("the dataset to take `samples` from is empty")
    if isinstance(samples, int):
        number = min(samples, length)
        return [i * length // number for i in range(number)]
    outside = [index for index in samples if index >= length]
    if outside:
        raise ValueError(
            f"`{argument}` names the indices {outside}, the {whole} has {length} samples, 0 to {length - 1}"
        )
    return list(samples)


def load(loader: Any, samples: Choice) -> tuple[Any, list[int] | None, int | None]:
    """Load samples as ``loader`` would, without iterating it or disturbing what it hands out later.

    They pass through its ``collate_fn`` and, where it has workers, through a throw-away worker of the same kind, so
    that no persistent worker moves on. All random states are restored, those of generators that the dataset owns among
    them; random augmentations draw from a fixed seed. Where the loader joins images of one size only, others are
    replaced, see :func:`~lightning_gradcam.run.sizes.of_one_size`.

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
    collate = getattr(loader, "collate_fn", None) or default_collate
    read = partial(_first_batch, loader, dataset, collate_fn=Doubles((collate,)).of(collate))
    unbatched = getattr(loader, "batch_sampler", None) is None and dataset is not samples
    if unbatched or isinstance(dataset, IterableDataset):
        if not isinstance(samples, int):
            raise ValueError(
                f"`samples` as indices needs a dataset that is read by index and batched by its loader, got "
                f"{type(dataset).__name__} in a {type(loader).__name__} without these; pass a number"
            )
        return read(batch_size=None if unbatched else samples), None, None
    pool: Sequence[int] = range(len(dataset))
    part = _part_of_dataset(loader) if isinstance(samples, int) else None
    pool = pool if part is None else part
    indices = list(pool) if isinstance(samples, Dataset) else [pool[i] for i in choose(samples, len(pool))]
    try:
        return read(batch_sampler=[indices]), indices, len(dataset)
    except Exception:
        others = pool if isinstance(samples, int) else None
        indices = of_one_size(indices, others, partial(_read_sizes, loader, dataset))
        if indices is None:
            raise
    return read(batch_sampler=[indices]), indices, len(dataset)


def load_together(loaders: Any, samples: int | list[int]) -> tuple[Any, list[int] | None, int | None]:
    """The same of a dict or list of loaders whose batches come as one: as such a dict or list.

    The indices and the length are those of every loader, and ``None`` where the loaders differ.
    """
    if not isinstance(loaders, (Mapping, list, tuple)):
        return load(loaders, samples)
    named = dict(loaders if isinstance(loaders, Mapping) else enumerate(loaders))
    loaded = {name: load_together(loader, samples) for name, loader in named.items()}
    batches = {name: batch for name, (batch, _, _) in loaded.items()}
    whole = batches if isinstance(loaders, Mapping) else type(loaders)(batches.values())
    (_, indices, length), *others = loaded.values()
    return (whole, indices, length) if all(one[1:] == (indices, length) for one in others) else (whole, None, None)


def _first_batch(loader: Any, dataset: Any, **options: Any) -> Any:
    with random_state(SEED, holder=(dataset, options["collate_fn"])):
        for batch in DataLoader(dataset, **way_of_loading(loader), **options):
            return batch
    raise ValueError("the dataset to take `samples` from is empty")


def _read_sizes(loader: Any, dataset: Any, indices: Sequence[int]) -> Iterator[Size]:
    """The sizes of the images at these indices, each read when it is asked for."""
    options: dict[str, Any] = {"batch_size": None, "sampler": indices, "collate_fn": image_size}
    with random_state(SEED, holder=dataset):
        yield from DataLoader(dataset, **way_of_loading(loader), **options)


def samples_at_once(loader: Any, n: int, with_shifted: bool) -> int | None:
    """How many of ``n`` samples to run at a time, so that a look takes the memory of a validation step.

    Args:
        loader: That of validation.
        n: So many samples there are; up to the usual 16 run as one.
        with_shifted: Whether each image is run twice.

    Returns:
        ``None``: all.
    """
    if n <= NUMBER:
        return None
    sizes = (getattr(one, "batch_size", None) for one in (loader, getattr(loader, "batch_sampler", None)))
    size = next((size for size in sizes if isinstance(size, int) and size > 0), 2 * NUMBER)
    return max(1, size // 2 if with_shifted else size)


def way_of_loading(loader: Any) -> dict[str, Any]:
    """Options for a loader of our own that reads as this one does: in a throw-away worker, if it has some."""
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(SEED)}
    if loader is not None and getattr(loader, "num_workers", 0):
        options["num_workers"] = 1
        options["worker_init_fn"] = loader.worker_init_fn
        options["multiprocessing_context"] = loader.multiprocessing_context
    return options


def _part_of_dataset(loader: Any) -> list[int] | None:
    """The indices of the part that the loader draws from, as a ``SubsetRandomSampler`` does; ``None``: all of them."""
    holder = loader
    for _ in range(8):  # a batch sampler holds a sampler, which may hold another, and so on
        inner = [getattr(holder, name, None) for name in ("batch_sampler", "sampler", "_sampler")]
        if holder is not loader:  # by which Lightning deals a sampler out to processes
            inner.append(getattr(getattr(holder, "dataset", None), "_sampler", None))
        holder = next((one for one in inner if one is not None), None)
        indices = getattr(holder, "indices", None)
        if isinstance(indices, (Sequence, np.ndarray, torch.Tensor)):
            return [int(index) for index in indices]
    return None


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


@dataclass(frozen=True)
class Loaded:
    """The fixed batch as it was loaded.

    Attributes:
        read: What it was read as, its tensors on the CPU.
        raw: What the transfer hooks gave.
        fingerprint: Of the batch.
    """

    read: ReadBatch
    raw: Any
    fingerprint: Fingerprint


def _load_from(source: Source, samples: Any) -> tuple[Any, list[int] | None, int | None]:
    if source.first_batch is not None:
        return source.first_batch, None, None
    return load(source.loader, samples) if source.together is None else load_together(source.together, samples)


def fixed_batch(
    trainer: Trainer, pl_module: LightningModule, source: Source, samples: Choice, batch_fn: Callable[[Any], Batch]
) -> Loaded:
    """Load the fixed batch and pass it through the module's batch-transfer hooks, on every process the same.

    The first process loads and hands its samples to the others.

    Args:
        trainer: A trainer whose strategy is set up.
        pl_module: Its module.
        source: The data loader, or its first batch.
        samples: See :func:`load`.
        batch_fn: Reads what the transfer hooks give.

    Returns:
        At most as many samples as asked for.

    Raises:
        ValueError: If the samples cannot be loaded or read, or an image is not finite.
        TypeError: If ``batch_fn`` returns no :class:`Batch`.
    """
    load_it = partial(_load_from, source, samples)
    raw, indices, length = on_first_process(trainer, load_it, "load the fixed batch")
    with torch.inference_mode(False), random_state(SEED):
        if source.first_batch is None:
            raw = transfer(trainer, pl_module, trainer.precision_plugin.convert_input(raw), source.index or 0)
        else:  # the hooks have had it
            raw = apply_to_collection(raw, Tensor, lambda tensor: tensor.to(trainer.strategy.root_device))
        read = _read(raw, batch_fn)
        n = len(read.batch.images)
        if indices is None and isinstance(samples, int) and samples < n:
            raw = of_rows(raw, n, lambda rows: rows[:samples])
            read = read_batch(raw) if batch_fn is default_batch else ReadBatch.of(read.batch.part(slice(samples)))
        read = replace(read, batch=read.batch.apply(lambda tensor: tensor.detach().to("cpu", copy=True)))
    batch = read.batch
    if not batch.ids:
        batch = replace(batch, ids=_names_of(indices, len(batch.images)))
    broken = [name for name, image in zip(batch.ids, batch.images, strict=True) if not image.isfinite().all()]
    if broken:
        raise ValueError(
            f"the images of the samples {broken} hold NaN or infinite values; "
            "mend the data or choose others by `samples=[...]`"
        )
    for name, region in batch.regions.items():
        check_boxes(name, region, batch.size)
    return Loaded(replace(read, batch=batch), raw, Fingerprint.of(batch, length))


def _names_of(indices: list[int] | None, n: int) -> Sequence[int | str]:
    """The dataset's indices, numbered where it gives several images an index, as crops of it."""
    if indices is None or n % len(indices):
        return range(n)
    times = n // len(indices)
    return indices if times == 1 else [f"#{index}/{number + 1}" for index in indices for number in range(times)]


def _read(raw: Any, batch_fn: Callable[[Any], Batch]) -> ReadBatch:
    if batch_fn is default_batch:
        return read_batch(raw)
    batch = batch_fn(raw)
    if not isinstance(batch, Batch):
        raise TypeError(f"`batch_fn` must return a `Batch`, got {type(batch).__name__}")
    return ReadBatch.of(batch)
