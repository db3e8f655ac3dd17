"""What datasets and datamodules tell of themselves: the names of classes, and how images were normalized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

import torch

from lightning_gradcam.attribution.sequences import as_list, is_array

_T = TypeVar("_T")
_DEEPEST = 8  # wrappers around a dataset


def find_class_names(dataset: Any, datamodule: Any = None) -> list[str] | None:
    """The names of the classes by their index, as a dataset, what it wraps, or else a datamodule tells them.

    In ``classes``, ``class_names``, ``labels``, ``pathologies``, ``class_to_idx``, or the ``names`` of one of the
    ``features``. ``None`` where there are none, or where datasets that are joined differ in theirs.
    """
    return _inside(dataset, _class_names) or _inside(datamodule, _class_names)


def find_normalization(
    dataset: Any, channels: int, datamodule: Any = None
) -> tuple[list[float] | None, list[float] | None]:
    """Mean and std of the ``Normalize`` in a dataset's transform, by its name: torchvision's and others' alike.

    Otherwise that of a datamodule's ``normalize``, or its ``mean`` and ``std`` where these are fractions of the images'
    range. ``None`` twice where there is none, none for so many channels, or where datasets that are joined differ.
    """
    found = _inside(dataset, partial(_normalization, channels=channels)) or _of_datamodule(datamodule, channels)
    return found or (None, None)


def _attribute(holder: Any, name: str) -> Any:
    with suppress(Exception):  # a property of the user's
        return getattr(holder, name, None)
    return None


def _inside(holder: Any, find: Callable[[Any], _T | None], path: tuple[int, ...] = ()) -> _T | None:
    """What is found in a dataset or, from the outside in, in what it wraps."""
    if holder is None or isinstance(holder, (str, bytes)) or is_array(holder):
        return None
    if id(holder) in path or len(path) == _DEEPEST:
        return None
    path = (*path, id(holder))
    found = None
    with suppress(Exception):  # what the user's own sequences and mappings do
        found = find(holder)
    for name in ("dataset", "data"):
        found = _inside(_attribute(holder, name), find, path) if found is None else found
    parts = as_list(_attribute(holder, "datasets"))
    if found is None and isinstance(parts, list) and parts:
        first, *others = (_inside(part, find, path) for part in parts)
        found = first if all(other == first for other in others) else None
    return found


def _class_names(holder: Any) -> list[str] | None:
    for name in ("classes", "class_names", "pathologies", "class_to_idx", "labels"):
        names = _names_in(_attribute(holder, name))
        if names and (name != "labels" or len(set(names)) == len(names)):  # they may be those of the samples
            return names
    features = _attribute(holder, "features")  # of a data set of Hugging Face, by column
    columns = dict(features) if isinstance(features, Mapping) else {}
    found = {name: names for name, column in columns.items() if (names := _names_in(_attribute(column, "names")))}
    alone = next(iter(found.values())) if len(found) == 1 else None
    return found.get("label", found.get("labels", alone))


def _names_in(value: Any) -> list[str] | None:
    """Names by their index, of a sequence of them or of a mapping from either to the other."""
    value = as_list(value)
    if isinstance(value, Mapping):
        pairs = [pair if isinstance(pair[0], Integral) else pair[::-1] for pair in value.items()]
        by_index = dict(reversed(pairs))  # of several names of one class the first
        value = [by_index.get(index) for index in range(len(by_index))]
    if not isinstance(value, list):
        return None
    names: list[Any] = [
        one[0] if isinstance(one, tuple) and one else one for one in value
    ]  # with synonyms, as ImageNet's
    return names if names and all(isinstance(name, str) for name in names) else None


def _normalization(holder: Any, channels: int) -> tuple[list[float], list[float]] | None:
    return _of_transforms([_attribute(holder, "transform"), _attribute(holder, "transforms")], channels)


def _of_transforms(pending: list[Any], channels: int) -> tuple[list[float], list[float]] | None:
    for _ in range(100):  # transforms may hold one another
        transform: Any = pending.pop() if pending else None
        if type(transform).__name__ == "Normalize":
            flags = _attribute(transform, "flags")  # where kornia keeps them
            kept = flags if isinstance(flags, Mapping) else {}
            mean, std = (kept.get(name, _attribute(transform, name)) for name in ("mean", "std"))
            found = _fitting(mean, std, channels)
            kind = _attribute(transform, "normalization") or "standard"  # albumentations has others
            if found and kind == "standard":
                return found
        elif isinstance(transform, (Sequence, torch.nn.Sequential)) and not isinstance(transform, str):
            pending += list(transform)
        elif transform is not None:
            pending += [_attribute(transform, name) for name in ("transforms", "transform")]
    return None


def _of_datamodule(datamodule: Any, channels: int) -> tuple[list[float], list[float]] | None:
    normalize = _attribute(datamodule, "normalize")
    found = _of_transforms([normalize], channels)
    if found or datamodule is None or normalize is False:
        return found
    found = _fitting(_attribute(datamodule, "mean"), _attribute(datamodule, "std"), channels)
    return found if found and min(found[0]) >= 0 and max(*found[0], *found[1]) <= 1 else None


def _fitting(mean: Any, std: Any, channels: int) -> tuple[list[float], list[float]] | None:
    """Mean and std as lists, where they are numbers for one channel or all, and std is above 0."""
    if mean is None or std is None:
        return None
    with suppress(Exception):  # what cannot be made a tensor
        values = [torch.as_tensor(as_list(one), dtype=torch.float64).flatten().tolist() for one in (mean, std)]
        if {len(one) for one in values} <= {1, channels} and min(values[1]) > 0:
            return values[0], values[1]
    return None
