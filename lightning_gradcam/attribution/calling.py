"""How a model is run on a batch: on its images, on the whole, or by the names that its forward gives its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_gradcam.attribution.batch import Batch, few_of, with_items
from lightning_gradcam.attribution.reading import (
    IMAGES,
    LABELS,
    MASKS,
    AskError,
    Path,
    ReadBatch,
    item,
    items_of,
    structure,
)

_NAMES_OF_WHOLE = (["batch"], ["sample"], ["samples"])


@dataclass(frozen=True)
class Call:
    """Runs a model on the images, alone or where the loader had put them.

    Attributes:
        name: As one would write it.
        images: Where the images go in ``batch.inputs``, which is then what the loader handed out; ``None``: they are
            handed over alone.
        as_list: Whether images go as a list of ``(c, H, W)``, each of its own size, ``batch.inputs`` ``(n, 2)``.
        keywords: The argument for each part of ``batch.inputs``; ``None``: it goes as one.
        unpacked: Whether a mapping goes as keywords, all of it.
    """

    name: str
    images: Path | None = None
    as_list: bool = False
    keywords: tuple[tuple[str, Path], ...] | None = None
    unpacked: bool = False

    def __call__(self, model: Any, batch: Batch) -> Any:
        """The model's output."""
        images: Any = batch.images
        if self.as_list:
            images = [image[:, :h, :w] for image, (h, w) in zip(images, batch.inputs.tolist(), strict=True)]
        if self.images is None:
            return model(images)
        whole = _put(batch.inputs, self.images, images)
        if self.keywords is not None:
            return model(**{name: item(whole, path) for name, path in self.keywords})
        return model(**whole) if self.unpacked else model(whole)


def _put(whole: Any, path: Path, images: Any) -> Any:
    """The containers with other images in their place."""
    if not path:
        return images
    inside = _put(item(whole, path[:1]), path[1:], images)
    return with_items(whole, {path[0]: inside})


def find_call(
    model: nn.Module, read: ReadBatch, raw: Any, run: Callable[[Callable[[Any, Batch], Any], Batch], Any]
) -> tuple[Call, Batch]:
    """Find how the model takes a batch: as images, as a whole, or by keywords whose names the batch has.

    Args:
        model: A stand-in.
        read: What the batch was read as.
        raw: What the loader handed out, on the model's device.
        run: Runs ``(model, batch) -> output`` on some samples.

    Returns:
        The call, and the samples with the inputs that it needs.

    Raises:
        AskError: If none works, or none gives something with a row a sample; the message names what the forward takes.
    """
    first: Exception | None = None
    fallback: tuple[Call, Batch] | None = None
    for call in _calls(model, read, raw):
        alone = call.images is None
        inputs = read.sizes if call.as_list else read.batch.inputs if alone else raw
        batch = replace(read.batch, inputs=inputs)
        try:
            fits = _gives_rows(partial(run, call), batch.part(slice(2 * len(few_of(batch).images) - 1)), alone)
        except Exception as error:
            first = first or error
            continue
        if fits:
            return call, batch
        fallback = (call, batch) if alone else fallback
    if fallback is not None:  # which a target of the user's may read
        return fallback
    takes = list(_parameters(model))
    if first is not None and len(takes) == 1 and takes[0].lower() in IMAGES:
        raise first
    why = "" if first is None else f" ({type(first).__name__}: {first})"
    required = [name for name, one in _parameters(model).items() if _is_required(one)]
    others = [f"{name}=batch.inputs" for name in required if name.lower() not in IMAGES][: len(required) - 1]
    paste = f"lambda module, batch: module({', '.join(['batch.images', *others])})"
    error = AskError(
        f"{type(model).__name__} cannot be run on the images alone{why}; its forward takes ({', '.join(takes)}), the "
        f"batch is {structure(raw)}; pass a `forward_fn=lambda module, batch: ...` that calls what is to be looked at, "
        "and what it needs beside `batch.images` as `Batch(..., inputs=...)` from `batch_fn`",
        **({"forward_fn": paste} if others else {}),
    )
    vars(error).update(vars(first) if first else {})
    raise error from first


def _calls(model: nn.Module, read: ReadBatch, raw: Any) -> Iterator[Call]:
    """The ways to call the model, the likeliest first."""
    alone = Call("forward(images)", as_list=read.sizes is not None)
    if read.images == ():
        yield alone
        return
    parameters = _parameters(model)
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    required = [name.lower() for name, one in parameters.items() if _is_required(one)]
    whole = [Call("forward(batch)", read.images)] if len(required) == 1 else []
    yield from [*whole, alone] if required in _NAMES_OF_WHOLE else [alone, *whole]
    if takes_all and isinstance(raw, Mapping):
        yield Call("forward(**batch)", read.images, unpacked=True)
    keywords = _keywords(parameters, read, raw)
    if keywords is not None:
        text = ", ".join(f"{name}=..." for name, _ in keywords)
        yield Call(f"forward({text})", read.images, keywords=keywords)


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # of a scripted or built-in one
        return {}


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind in (
        parameter.POSITIONAL_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def _keywords(
    parameters: Mapping[str, inspect.Parameter], read: ReadBatch, raw: Any
) -> tuple[tuple[str, Path], ...] | None:
    """Which part of the batch each argument gets, by its name alone; ``None`` where one gets none."""
    names = {key for key, _ in items_of(raw) or () if isinstance(key, str)}
    found: list[tuple[str, Path]] = []
    for name, parameter in parameters.items():
        required, of_labels = _is_required(parameter), name.lower() in LABELS
        alike = next((one for one in (name, f"{name}s", name.removesuffix("s")) if one in names), None)
        if alike is not None and (required or (alike == name and not of_labels)):
            found.append((name, (alike,)))
        elif name.lower() in IMAGES and read.images not in [path for _, path in found] and required:
            found.append((name, read.images))
        elif required and of_labels and read.labels is not None:
            found.append((name, read.labels))
        elif required and name.lower() in MASKS and read.source is not None:
            found.append((name, read.source))
        elif required:
            return None
    given = [path for _, path in found]
    return tuple(found) if any(read.images[: len(path)] == path for path in given) else None


def has_a_row_each(output: Any, samples: int) -> bool:
    """Whether an output has something with a row for each sample."""
    if isinstance(output, Tensor):
        return output.ndim > 0 and len(output) == samples
    if isinstance(output, (list, tuple)) and len(output) == samples and any(isinstance(one, Mapping) for one in output):
        return True
    items = items_of(output)
    if items is None:
        items = list(getattr(output, "__dict__", {}).items())
    return any(has_a_row_each(one, samples) for _, one in items)


def _gives_rows(run: Callable[[Batch], Any], few: Batch, alone: bool) -> bool:
    """Whether what comes out has a row for each sample; of images alone also for one, since `batch[0]` is a row too."""
    output, samples = run(few), len(few.images)
    if not has_a_row_each(output, samples):
        return False
    if not alone or samples == 1 or not isinstance(output, Tensor):
        return True
    try:
        one = run(few.part(slice(1)))
    except Exception:  # a model that takes no single sample
        return True
    return not (isinstance(one, Tensor) and one.shape == output.shape)
