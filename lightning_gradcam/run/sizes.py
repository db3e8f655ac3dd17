"""Samples whose images are all of one size, where a loader's own collation cannot join the ones that were chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

FARTHEST = 256  # items that are read in search of one of the right size, for each sample

Size = tuple[int, ...] | None
ReadSizes = Callable[[Sequence[int]], Iterable[Size]]


def image_size(item: Any) -> Size:
    """The size of the image in a dataset's item: of its tensors, arrays and pictures the first with the most axes."""
    return max(_sizes_in(item), key=len, default=None)


def _sizes_in(item: Any) -> list[tuple[int, ...]]:
    if isinstance(item, Mapping):
        return [size for value in item.values() for size in _sizes_in(value)]
    if isinstance(item, (list, tuple)):
        return [size for value in item for size in _sizes_in(value)]
    if hasattr(item, "getbands"):  # one of Pillow's
        return [(len(item.getbands()), item.height, item.width)]
    with suppress(TypeError):
        return [tuple(item.shape)] if len(getattr(item, "shape", ())) > 1 else []
    return []


def of_one_size(indices: Sequence[int], pool: Sequence[int] | None, read_sizes: ReadSizes) -> list[int] | None:
    """Replace each sample whose image is not of the first one's size by the next one in the dataset that is.

    Args:
        indices: Of the samples that were chosen.
        pool: What they were chosen from; ``None``: the user named them.
        read_sizes: The sizes of the images at these indices, one after the other.

    Returns:
        The indices, fewer where there are not as many of that size nearby; ``None`` where all are of one size already.

    Raises:
        ValueError: If the user named samples of unlike sizes.
    """
    sizes = dict(zip(indices, read_sizes(indices), strict=True))
    size = sizes[indices[0]]
    others = [index for index in indices if sizes[index] != size]
    if not others:
        return None
    if pool is None:
        listed = ", ".join(f"{index} is {sizes[index]}" for index in indices)
        raise ValueError(
            f"the images that `samples` names are of unlike sizes, which the loader's `collate_fn` cannot join: "
            f"{listed}; name samples of one size, or give the loader a `collate_fn` that brings them to one"
        )
    found = [index for index in indices if sizes[index] == size]
    place = {index: position for position, index in enumerate(pool)}
    for index in others:
        following = [*pool[place[index] + 1 :], *pool[: place[index]]]
        unread = [one for one in following if one not in found and one not in others][:FARTHEST]
        of_that_size = (one for one, read in zip(unread, read_sizes(unread), strict=False) if read == size)
        found += [one for one in [next(of_that_size, None)] if one is not None]
    left_out = len(indices) - len(found)
    rank_zero_info(
        f"GradCAMCallback: {len(others)} of {len(indices)} samples have images of another size than {size}, that of "
        f"the first; the next ones of that size take their place{f', for {left_out} there is none' * (left_out > 0)}."
    )
    return sorted(found, key=place.__getitem__)
