"""Which axis of images counts channels, and which is time: told by what the model's first convolution reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradcam.attribution.batch import Batch, few_of
from lightning_gradcam.attribution.layout import NoMapError
from lightning_gradcam.attribution.reading import AskError

_CLIPS = ("video", "videos", "clip", "clips", "frames", "pixel_values_videos")  # names of what a loader hands out
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def with_axes(model: nn.Module, batch: Batch, forward: Callable[[Batch], Any], name: str = "") -> tuple[Batch, str]:
    """The batch with its time axis, where it has one.

    Of five axes a ``Conv3d`` reads volumes or clips with channels before the others, and a ``Conv2d`` the frames of
    clips as rows; of three axes a ``Conv1d`` reads signals with channels first. Never does the number of channels tell
    alone. A ``Conv3d`` reads clips, and not volumes, if they are called so, or if it treats the first of the three axes
    unlike the others and reads three channels. Where the first convolution reads neither order, one has to be said;
    without any convolution channels are taken to come first.

    Args:
        model: A stand-in.
        batch: The samples, of which one or two are run.
        forward: Runs the model on a batch.
        name: What the loader calls the images, if it does.

    Returns:
        The batch, and in words how it is read; empty where nothing was open.

    Raises:
        AskError: If the first convolution does not tell. The message asks for ``time_axis``.
        NoMapError: If frames are run one by one.
    """
    images = batch.images
    if images.ndim == 4 or batch.time_axis is not None:
        return batch, ""
    few = few_of(batch)
    with _reading(model) as calls, torch.no_grad():
        forward(few)
    first: tuple[Any, Any] = calls[0] if calls else (None, None)
    module, given = first
    if images.ndim == 3:
        return _of_signals(batch, few.images, module, given)
    if isinstance(module, nn.Conv2d) and len(given) == len(few.images) and sum(one is module for one, _ in calls) > 1:
        raise NoMapError(
            "the model runs its network for images once for each frame of a clip, so that no layer hands out a map of "
            "the whole; hand it the frames as rows, (n * t, c, H, W)"
        )
    found = _orders(few.images, module, given)
    if len(found) > 1 or (not found and given is not None and images.shape[1] > 1):
        raise AskError(
            f"the images {tuple(images.shape)} may be (n, c, t, H, W), (n, t, c, H, W) or volumes (n, c, D, H, W), and "
            f"the model does not tell: its first convolution reads {tuple(given.shape)}; give `time_axis=1` for "
            "(n, t, c, H, W), else `time_axis=2`, with which a volume is shown slice by slice"
        )
    time_axis = found[0] if found else None
    if time_axis is None and (name in _CLIPS or _reads_clips(module, images)):
        time_axis = 2
    if time_axis is None:
        others = "`Batch(time_axis=2)` says that they are clips (n, c, t, H, W), 1 that they are (n, t, c, H, W)"
        return batch, f"takes the images for volumes (n, c, D, H, W); {others}"
    order = "(n, t, c, H, W)" if time_axis == 1 else "(n, c, t, H, W)"
    return replace(batch, time_axis=time_axis), f"takes the images for clips {order}, by what the model reads first"


@contextmanager
def _reading(model: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """The modules with a kernel as they are called, and of the first the tensor that it gets."""
    found: list[tuple[Any, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            found.append((module, None if found else args[0].detach()))

    handles = [
        module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, _CONVOLUTIONS)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _orders(images: Tensor, module: Any, given: Any) -> list[int | None]:
    """What the time axis of images of five axes may be: 1, 2 where frames are rows, or ``None``: channels are first."""
    if given is None:
        return []
    if isinstance(module, nn.Conv3d):
        options = {None: images, 1: images.movedim(2, 1)}
    else:
        options = {1: images.flatten(0, 1), 2: images.movedim(2, 1).flatten(0, 1)}
        if len(given) == len(images):  # called for one frame at a time
            options = {1: images[:, 0], 2: images[:, :, 0]}
    same = [order for order, one in options.items() if one.shape == given.shape and torch.equal(one, given.to(one))]
    fits = [order for order, one in options.items() if one.shape[:2] == given.shape[:2]]
    return same[:1] or fits


def _reads_clips(module: Any, images: Tensor) -> bool:
    """Whether a convolution treats the first axis unlike the two others, which it treats alike, of coloured images."""
    if not isinstance(module, nn.Conv3d) or images.shape[1] != 3:
        return False
    by_axis = list(zip(module.kernel_size, module.stride, strict=True))
    return by_axis[0] != by_axis[1] == by_axis[2]


def _of_signals(batch: Batch, images: Tensor, module: Any, given: Any) -> tuple[Batch, str]:
    if isinstance(module, nn.Conv2d) and given.shape == (len(images), 1, *images.shape[1:]):
        raise AskError(
            f"the images {tuple(batch.images.shape)} have no axis of channels, and the model's first convolution reads "
            f"{tuple(given.shape)}; give them one in `batch_fn`, and take it away in `forward_fn`",
            batch_fn="lambda batch: Batch(images=batch[0][:, None], labels=batch[1])",
            forward_fn="lambda module, batch: module(batch.images[:, 0])",
        )
    turned = images.mT
    if isinstance(module, nn.Conv1d) and given.shape[1] == turned.shape[1]:
        same = given.shape == turned.shape and torch.equal(given.to(turned), turned)
        if same or turned.shape[1] != images.shape[1]:
            how = "takes the images for signals (n, length, c), by what the model reads first"
            return replace(batch, time_axis=1), how
    return batch, "takes the images for signals (n, c, length); `Batch(time_axis=1)` says that they are (n, length, c)"
