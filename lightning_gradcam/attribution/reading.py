"""What a loader hands out, read as a batch: which of its parts are the images, the labels, masks and boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import groupby
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch, has_rows
from lightning_gradcam.attribution.objects import are_targets, is_list_of_mappings, of_mask, of_targets
from lightning_gradcam.attribution.regions import check_boxes, plain_region
from lightning_gradcam.attribution.spatial import Size

IMAGES = ("image", "images", "img", "imgs", "x", "pixel_values", "input", "inputs", "data")
IMAGES += ("video", "videos", "clip", "clips", "frames", "pixel_values_videos", "volume", "volumes")
IMAGES += ("signal", "signals", "waveform", "waveforms", "audio", "ecg")
LABELS = ("label", "labels", "y", "target", "targets", "lab", "cls")
MASKS = ("mask", "masks", "seg", "segmentation", *LABELS)
_NO_MASKS = {"pixel", "attention", "padding", "pad", "valid"}  # of masks that say which pixels or tokens count
_LABEL_WORDS = {"label", "labels", "target", "targets", "class", "category"}
_NO_LABEL_WORDS = {"weight", "weights", "size", "sizes", "name", "names", "length", "lengths", "mask", "masks"}
_MANY = 200  # more values than any set of classes in use has, and fewer than a photo has

Path = tuple[Any, ...]  # keys, names and places that lead from a container to what it holds


class AskError(ValueError):
    """Something that cannot be known and must be said by an argument.

    Attributes:
        arguments: What to paste, by the name of the argument of :class:`~lightning_gradcam.GradCAMCallback`.
    """

    def __init__(self, text: str, **arguments: str) -> None:
        super().__init__(text)
        self.arguments = arguments


@dataclass(frozen=True)
class ReadBatch:
    """What a loader's batch was read as.

    Attributes:
        batch: The batch.
        images: Where its images lie in what the loader hands out.
        labels: Where its labels lie; ``None`` where it has none.
        source: Where lies what the region ``object`` is from; ``None`` where there is none.
        sizes: Heights and widths ``(n, 2)`` of images that came as a list; ``None``: they came as one tensor.
        main_classes: ``(n,)``, the class of most of a mask's pixels or a sample's boxes, :data:`NO_LABEL` where there
            is none; ``None`` without masks and boxes. The region ``object`` is of this class.
        notes: What was taken for what.
        views: Whether there are other images beside these of the same shape, as views of self-supervised learning.
    """

    batch: Batch
    images: Path
    labels: Path | None
    source: Path | None
    sizes: Tensor | None
    main_classes: Tensor | None
    notes: tuple[str, ...]
    views: bool = False

    @classmethod
    def of(cls, batch: Batch) -> ReadBatch:
        """One that the user has read."""
        return cls(batch, (), None, None, None, None, ())


def default_batch(batch: Any) -> Batch:
    """Read a batch by what its parts are and how they are called.

    Args:
        batch: The images, or a tuple, list, mapping or dataclass that holds them, at most one container deep. Images
            are ``(n, c, H, W)``, floating-point or ``uint8``, or a list of ``(c, H, W)``: in a tuple the first that
            fits, among names ``image``, ``img``, ``x``, ``pixel_values``, ``input`` or ``data``, else the only one.
            Where there are none, volumes and clips of five axes, or signals of three, count.
            Labels have a row a sample: in a tuple the first, among names ``label``, ``y``, ``target``, ``lab`` or
            ``cls``, else one that holds such a word. What has the images' height and width and few values is a mask,
            and a list of dicts with boxes is of a detector: the region ``object`` is the class of most pixels or boxes,
            all boxes of it, which is the label where there is no other.

    Raises:
        ValueError: If no images can be told; the message shows the batch's structure and asks for a ``batch_fn``.
    """
    read = read_batch(batch)
    return replace(read.batch, labels=read.main_classes) if read.batch.labels is None else read.batch


def read_batch(raw: Any) -> ReadBatch:
    """As :func:`default_batch`, and what was taken for what."""
    parts, place = dict(_parts(raw)), partial(_place, raw)
    where = _find_images(raw, parts)
    found, sizes = _as_images(parts.pop(where))
    as_read, notes = Batch(found), []  # which knows what the images know of themselves
    source, main, region = _find_region(parts, as_read, sizes)
    if region is None and found.ndim == 5 and as_read.time_axis is None:
        turned = replace(as_read, time_axis=1)
        source, main, region = _find_region(parts, turned, sizes)
        as_read = as_read if region is None else turned  # so that the mask has told
    images, n = as_read.images, len(found)
    if found.ndim == 5 and hasattr(found, "pixdim") and as_read.spacing is None:
        notes.append("leaves out the voxel spacing, which is not one and the same for all samples")
    labels = _find_labels(raw, parts, n, where)
    value = None if labels is None else torch.as_tensor(parts.pop(labels))
    try:
        batch = replace(as_read, labels=value)
    except (TypeError, ValueError) as error:
        paste = to_paste(raw, where, labels)
        raise AskError(f"cannot read the batch {structure(raw)}: {error}", batch_fn=paste) from error
    taken = [f"images from `{place(where)}`"] + ([f"labels from `{place(labels)}`"] if labels is not None else [])
    if region is not None and source is not None:
        try:
            check_boxes("object", region, batch.size)
            batch = replace(batch, regions={"object": region})
            taken.append(f"the region `object` from `{place(source)}`")
        except (TypeError, ValueError) as error:
            notes.append(f"leaves out `{place(source)}`: {error}")
            source = None
    left = [f"`{place(path)}`" for path, part in parts.items() if _is_box(path) or isinstance(part, Tensor)]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        notes.append(f"sets aside {', '.join(left[:5])}{more}")
    views = any(_is_image(part) and part.shape == images.shape and not _name(path) for path, part in parts.items())
    return ReadBatch(batch, where, labels, source, sizes, main, (f"reads {', '.join(taken)}", *notes), views)


def _find_region(
    parts: dict[Path, Any], batch: Batch, sizes: Tensor | None
) -> tuple[Path | None, Tensor | None, Tensor | None]:
    """What tells where an object lies, taken out of the parts: its path, each sample's class, and the region."""
    images, n, size = batch.images, len(batch.images), batch.size
    targets = next((path for path, part in parts.items() if are_targets(part, n)), None)
    if targets is not None and len(size) == 2:
        return targets, *of_targets(parts.pop(targets), images, sizes)
    masks = [path for path, part in parts.items() if _is_mask(part, n, size) and not _NO_MASKS & _words(path)]
    named = _by_name(masks, MASKS)
    masks = [path for path in masks if path in named or not (_name(path) in IMAGES or _is_picture(parts[path], images))]
    varied = [path for path in masks if len(parts[path].unique()) > 1]  # unlike a mask of all that counts
    masks = varied or masks
    usual = _by_name(masks, MASKS)
    if usual or len(masks) == 1 or (masks and not any(map(_name, masks))):  # of several names none tells
        first = [*usual, *masks][0]
        return first, *of_mask(parts.pop(first), size)
    for path, part in parts.items():
        if type(part).__name__ == "BoundingBoxes" and part.shape == (n, 4):
            return path, None, plain_region(parts.pop(path))
    return None, None, None


def item(value: Any, path: Path) -> Any:
    """What a path leads to."""
    for step in path:
        value = getattr(value, step) if isinstance(step, str) and not isinstance(value, Mapping) else value[step]
    return value


def items_of(value: Any) -> list[tuple[Any, Any]] | None:
    """The items of a mapping, named tuple, tuple, list or dataclass by key, name or place; ``None`` of others."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    if is_dataclass(value) and not isinstance(value, type):
        return [(one.name, getattr(value, one.name)) for one in fields(value)]
    return None


def _parts(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What a batch holds, also within one more container."""
    items = items_of(value)
    if items is None or len(path) > 1 or _is_list_of_images(value) or is_list_of_mappings(value) or _is_list(value):
        yield path, value
    else:
        for key, part in items:
            yield from _parts(part, (*path, key))


def _is_image(value: Any, axes: int = 4) -> bool:
    kind = isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.uint8)
    return kind and value.ndim == axes and value.numel() > 0


def _is_signal(value: Any) -> bool:
    return _is_image(value, 3) and value.is_floating_point()


def _sizes_of(images: Tensor) -> set[tuple[int, ...]]:
    """What the spatial axes of images of five axes may be: the last three, or all but the channels behind time."""
    shape = tuple(images.shape)
    return {shape[2:], (shape[1], *shape[3:])}


def _is_list_of_images(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_image(one, 3) for one in value)


def _is_list(value: Any) -> bool:
    """Whether it is a list of numbers or texts, one a sample."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(one, (Real, str)) for one in value)


def _find_images(raw: Any, parts: Mapping[Path, Any]) -> Path:
    large = [path for path, part in parts.items() if _is_image(part, 5)]  # volumes and clips
    masks = {
        path
        for path, part in parts.items()
        for one in large
        if _is_image(part) and len(part) == len(parts[one]) and tuple(part.shape[1:]) in _sizes_of(parts[one])
    }
    fits = [path for path, part in parts.items() if _is_image(part) or _is_list_of_images(part)]
    fits = [path for path in fits if path not in masks]
    usual = _by_name([*fits, *large], IMAGES)
    # Signals look like the states of a sequence model, so they count where nothing else does.
    fits = fits or large or [path for path, part in parts.items() if _is_signal(part)]
    usual = usual or _by_name(fits, IMAGES)
    if usual:
        return usual[0]
    maybe = [path for path in fits if not _is_one_mask(parts[path])] or fits
    if len(maybe) == 1 or (maybe and not any(_name(path) for path in maybe)):
        return maybe[0]
    known = f"; images may be any of {', '.join(_place(raw, path) for path in fits)}" if fits else ""
    raise AskError(
        f"cannot read the batch {structure(raw)}{known}; expected images (n, c, H, W) alone, first in a tuple or under "
        "a name such as 'image'; pass `batch_fn=lambda batch: Batch(images=..., labels=...)`",
        **({"batch_fn": to_paste(raw, fits[0], None)} if fits else {}),
    )


def _name(path: Path) -> str:
    """The name that a path ends in, empty where it ends in a place."""
    return path[-1].lower() if path and isinstance(path[-1], str) else ""


def _words(path: Path) -> set[str]:
    return set(_name(path).split("_"))


def _by_name(paths: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The paths that end in one of the names, in the order of the names."""
    return sorted((path for path in paths if _name(path) in names), key=lambda path: names.index(_name(path)))


def _as_images(found: Any) -> tuple[Tensor, Tensor | None]:
    """Images as one tensor; those of a list padded at the right and bottom, with their sizes."""
    if isinstance(found, Tensor):
        return found, None
    height, width = (max(image.shape[axis] for image in found) for axis in (1, 2))
    padded = [
        torch.nn.functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in found
    ]
    return torch.stack(padded), torch.tensor([image.shape[1:] for image in found])


def _find_labels(raw: Any, parts: Mapping[Path, Any], n: int, images: Path) -> Path | None:
    fits = [path for path, part in parts.items() if _may_be_labels(part, n) and not _is_box(path)]
    speaking = [path for path in fits if _LABEL_WORDS & _words(path) and not _NO_LABEL_WORDS & _words(path)]
    unnamed = [path for path in fits if not _name(path)]
    of_whole = [path for path in unnamed if not _is_fraction(parts[path])] or unnamed
    found = [*_by_name(fits, LABELS), *speaking, *sorted(of_whole, key=lambda path: _is_before(path, images))]
    together = [path for path in found if len(path) > 1 and path[:-1] == found[0][:-1] != images[:-1]]
    if found and _name(found[0]) not in LABELS and len(alike := speaking or together) > 1:
        several = ", ".join(_place(raw, path) for path in alike)
        raise AskError(
            f"cannot read the batch {structure(raw)}: labels may be any of {several}; pass "
            "`batch_fn=lambda batch: Batch(images=..., labels=...)`",
            batch_fn=to_paste(raw, images, found[0]),
        )
    return found[0] if found else None


def _is_fraction(part: Any) -> bool:
    """Whether it holds numbers that are not whole, as weights and embeddings are."""
    values = torch.as_tensor(part)
    return values.is_floating_point() and bool((values != values.round()).any()) and values.ndim == 1


def _is_before(path: Path, images: Path) -> bool:
    """Whether a part of a tuple comes before the images, as an index does rather than a label."""
    places = [one[0] for one in (path, images) if one and isinstance(one[0], int)]
    return len(places) == 2 and places[0] < places[1]


def _may_be_labels(part: Any, n: int) -> bool:
    if isinstance(part, (list, tuple)):
        return len(part) == n and all(isinstance(one, Real) for one in part)
    return has_rows(part, n) and part.ndim in (1, 2) and not part.is_complex()


def _is_box(path: Path) -> bool:
    return "box" in _name(path)


def _is_picture(part: Tensor, images: Tensor) -> bool:
    """Whether a part of the images' own shape may be other images, of few values: it is no class a pixel."""
    if part.shape != images.shape or not part.is_floating_point():
        return False
    return bool((part.sum(1) != 1).any()) if images.shape[1] > 1 else _is_one_mask(images)


def _is_one_mask(part: Any) -> bool:
    """Whether it is a mask of one channel, whatever the images' size."""
    one_channel = isinstance(part, Tensor) and part.shape[1] == 1
    return one_channel and _is_mask(part, len(part), tuple(part.shape[2:]))


def _is_mask(part: Any, n: int, size: Size) -> bool:
    """Whether it has the images' height and width, or all their spatial axes, and few values, all of them whole."""
    axes = len(size)
    if not isinstance(part, Tensor) or part.ndim not in (axes + 1, axes + 2) or part.is_complex():
        return False
    if part.shape[:1] != (n,) or tuple(part.shape[-axes:]) != size:
        return False
    values = part.unique()
    several = part.ndim == axes + 2 and part.shape[1] > 1
    whole = not part.is_floating_point() or bool((values == values.round()).all())
    return whole and len(values) <= (2 if several else _MANY) and (not several or set(values.tolist()) <= {0, 1})


def _place(value: Any, path: Path) -> str:
    """A path as one would write it behind ``batch``."""
    text = "batch"
    for step in path:
        by_name = isinstance(step, str) and not isinstance(value, Mapping)
        text += f".{step}" if by_name else f"[{step!r}]"
        value = item(value, (step,))
    return text


def to_paste(raw: Any, images: Path, labels: Path | None, more: str = "") -> str:
    """A ``batch_fn`` that takes images and labels from these places, as one would write it."""
    second = "" if labels is None else f", labels={_place(raw, labels)}"
    return f"lambda batch: Batch(images={_place(raw, images)}{second}{more})"


def _kind(value: Any) -> Any:
    """What is the same for values that can be told of at once."""
    if isinstance(value, Tensor):
        return value.ndim, value.dtype
    return tuple(value) if isinstance(value, Mapping) else (type(value), len(items_of(value) or ()))


def structure(value: Any, depth: int = 3) -> str:
    """Describe nested containers and tensors in one line: ``(tensor (16, 3, 32, 32) float32, int)``."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    items = items_of(value)
    if items is None:
        return type(value).__name__
    if not depth:
        return f"{type(value).__name__} of {len(items)}"
    if not isinstance(value, (tuple, list)) or hasattr(value, "_fields"):
        more = ", ..." if len(items) > 12 else ""
        inside = ", ".join(f"{key!r}: {structure(one, depth - 1)}" for key, one in items[:12]) + more
        return f"{{{inside}}}" if isinstance(value, Mapping) else f"{type(value).__name__}({inside})"
    runs = []
    for _, same in groupby((one for _, one in items), _kind):
        texts = [structure(one, depth - 1) for one in same]
        like = "x" if len(set(texts)) == 1 else "like"
        runs.append(f"{len(texts)} {like} {texts[0]}" if len(texts) > 1 else texts[0])
    inside = ", ".join(runs[:8]) + (", ..." if len(runs) > 8 else "")
    return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
