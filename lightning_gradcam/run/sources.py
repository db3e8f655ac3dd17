"""Where samples come from: which data loader, or its first batch where it has no dataset to take them from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import Dataset

from lightning_gradcam.run.trainer import Source, Trainer, candidate_sources, named_loaders

NUMBER = 16  # of samples, where nothing is said of it

Choice = int | list[int] | Dataset[Any]
Samples = Choice | str  # a text is the key of a data loader


class NoBatchYetError(ValueError):
    """The samples can only come with a batch that Lightning has not handed over yet."""


def choose_source(trainer: Trainer, samples: Samples, first_batch: Any = None) -> tuple[Source, Choice]:
    """Where the samples come from, and which: a key names a loader, of which so many as usual are taken.

    Args:
        trainer: The trainer.
        samples: Those of the settings.
        first_batch: A :func:`copy_of_batch` of what Lightning handed over, if it has.

    Raises:
        ValueError: If there is no loader of this name, or none with a dataset that has indices.
        NoBatchYetError: If the first batch has to serve and is ``None``.
    """
    candidates = candidate_sources(trainer)
    source, choice = _chosen(candidates, samples)
    without_dataset = _without_dataset(source, choice)
    if without_dataset is None:
        if len(candidates) > 1 and source.together is None and not isinstance(samples, (str, Dataset)):
            rank_zero_info(f"GradCAMCallback takes its samples from the first of {len(candidates)} data loaders.")
        return source, choice
    kind = type(without_dataset).__name__
    if not isinstance(choice, int):
        raise ValueError(
            f"`samples` as indices needs a data loader with a `dataset`, a {kind} has none; pass a number, of which "
            "its first batch gives as many as it has, or a dataset of your own"
        )
    if first_batch is None:
        raise NoBatchYetError(
            f"the data loader, a {kind}, has no `dataset`, so its first batch serves as the fixed one"
        )
    return replace(source, first_batch=first_batch), choice


def awaits_batch_of(trainer: Trainer, samples: Samples, dataloader_idx: int) -> bool:
    """Whether the first batch of this loader of an evaluation has to serve."""
    try:
        source, choice = _chosen(candidate_sources(trainer), samples)
    except ValueError:  # of which the look tells
        return False
    return source.index == dataloader_idx and _without_dataset(source, choice) is not None


def copy_of_batch(batch: Any) -> Any:
    """A batch with copies of its tensors, on the CPU."""
    with torch.inference_mode(False):
        return apply_to_collection(batch, torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))


def _chosen(candidates: list[Source], samples: Samples) -> tuple[Source, Choice]:
    if not isinstance(samples, str):
        source = candidates[0] if candidates else Source(None)
        return (replace(source, together=None) if isinstance(samples, Dataset) else source), samples
    for source in candidates:
        if source.key == samples:
            return replace(source, together=None), NUMBER
    keys = [source.key for source in candidates if source.key is not None]
    raise ValueError(
        f"`samples` must be the key of a validation loader where it is a text, one of {keys}, got {samples!r}; return "
        "the loaders as a dict to give them keys, or pass a number, indices or a dataset"
    )


def _without_dataset(source: Source, choice: Choice) -> Any:
    """The loader of an evaluation that has no dataset, where samples are to come from one."""
    if source.index is None or isinstance(choice, Dataset):
        return None
    loaders = source.loader if source.together is None else source.together
    return next((one for _, one in named_loaders(loaders) if getattr(one, "dataset", None) is None), None)
