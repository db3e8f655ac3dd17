"""The labels of a dataset: as many as there are, some to learn from, and samples by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset, TensorDataset, default_collate

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.doubles import Doubles
from lightning_gradcam.attribution.isolation import random_state
from lightning_gradcam.run.samples import SEED, choose, way_of_loading


def some_labels(loader: Any, dataset: Any, number: int, batch_fn: Callable[[Any], Batch]) -> Tensor | None:
    """Labels of a dataset, evenly spaced, read as its loader reads them where it has no list of them.

    Args:
        loader: See :func:`load`.
        dataset: The dataset.
        number: How many labels, at most.
        batch_fn: Reads a batch.

    Returns:
        ``(number, ...)``; ``None`` where they cannot be had.
    """
    with suppress(Exception):  # of the user's
        indices = choose(number, len(dataset))
        labels = _label_list(dataset)
        if labels is not None:
            return torch.stack([torch.as_tensor(labels[index]) for index in indices])
        collate = getattr(loader, "collate_fn", None) or default_collate
        options = {"collate_fn": Doubles((collate,)).of(collate), "batch_sampler": BatchSampler(indices, 16, False)}
        with random_state(SEED, holder=(dataset, options["collate_fn"])):
            batches = [batch_fn(batch) for batch in DataLoader(dataset, **way_of_loading(loader), **options)]
        return torch.cat([batch.labels for batch in batches if batch.labels is not None])
    return None


def number_of_classes(dataset: Any) -> int | None:
    """One more than the largest label of a dataset that has all of them as a list; ``None`` where it has not."""
    with suppress(Exception):  # of the user's
        labels = torch.as_tensor(_label_list(dataset))
        if labels.ndim == 1 and bool((labels == labels.round()).all()) and int(labels.max()) > 0:
            return int(labels.max()) + 1
    return None


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
    labels = _label_list(dataset)
    if labels is not None:
        return labels.tolist() if isinstance(labels, Tensor) else labels
    with random_state(SEED, holder=dataset):
        return [dataset[index][1] for index in range(len(dataset))]


def _label_list(dataset: Any) -> Sequence[Any] | Tensor | None:
    """All labels of a dataset that has them at once; ``None`` where they must be read item by item."""
    if isinstance(dataset, Subset):
        labels = _label_list(dataset.dataset)
        if isinstance(labels, Tensor):
            return labels[list(dataset.indices)]
        return None if labels is None else [labels[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1]
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == len(dataset):
            return labels
    return None
