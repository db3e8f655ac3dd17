"""Where the logits lie in what a model returns, and whether it has turned them into probabilities already."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from lightning_gradcam.attribution.reading import Path, items_of

SOFTMAX, SIGMOID, LOG_ODDS = "softmax", "sigmoid", "log-odds"
# Nodes of the autograd graph behind which the same values stand in the same order, some of them bounded, ...
_SAME_ORDER = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Clamp", "ClampMin", "ClampMax", "ToCopy"}
_SAME_ORDER |= {"Clone", "Alias"}
# ... and behind which some of them stand, or in another one.
_REORDERED = {"Permute", "Transpose", "T", "Select", "Slice", "Index", "IndexSelect", "Unbind", "Split", "Flip"}
_REORDERED |= {"Expand", "NanToNum", "UpsampleBilinear2D", "UpsampleNearest2D"}
# ... and behind which there are probabilities still, if there were only such before.
_MIXED = {"Add", "Sub", "Rsub", "Mul", "Div", "Mean", "Stack", "Cat", "Where", "Maximum", "Minimum"}
_ROUNDING = 1e-3
_MAKERS = {"Softmax": SOFTMAX, "Sigmoid": SIGMOID}
_FUNCTIONS = {
    torch.softmax,
    torch.sigmoid,
    torch.special.softmax,
    torch.special.expit,
    torch.nn.functional.softmax,
    torch.nn.functional.sigmoid,
    Tensor.softmax,
    Tensor.sigmoid,
    Tensor.sigmoid_,
}


def find_logits(output: Any, samples: int, classes: int | None = None) -> Path | None:
    """Find where the logits lie in a model's output: ``(n, classes)``, or ``(n, classes, *spatial)`` of a segmentation.

    Args:
        output: A tensor, or a tuple, list, mapping or dataclass that holds some, at most one container deep: named
            ``logits`` or ``out``; else the only one; else, where it is known, the one with as many columns as there are
            classes; else the first of a tuple, if it is one. A one-logit head may leave its last dimension out.
        samples: The number of samples ``n``.
        classes: The number of classes, if it is known.

    Returns:
        The path to the tensor; ``None`` where there is none, or several under names of their own or behind another.
    """
    found = list(_tensors(output, samples))
    rows = [path for path, tensor in found if tensor.ndim == 2] or [path for path, tensor in found if tensor.ndim > 2]
    named = sorted((path for path, _ in found if _is_named(path)), key=lambda path: (path[-1] != "logits", len(path)))
    if named:
        return named[0]
    if len(rows) > 1 and classes is not None:
        rows = [path for path, tensor in found if path in rows and tensor.shape[1] == classes] or rows
    by_name = any(isinstance(step, str) for path in rows for step in path)
    if len(rows) > 1 and (by_name or rows[0][:1] != found[0][0][:1]):
        return None
    return rows[0] if rows else None


def _is_named(path: Path) -> bool:
    name = path[-1] if path and isinstance(path[-1], str) else ""
    return name in ("logits", "out")


def _tensors(output: Any, samples: int, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """The tensors in an output that may be logits, flattened."""
    if isinstance(output, Tensor):
        tensor = flat(output, samples)
        if tensor.ndim in (2, 4, 5) and len(tensor) == samples and tensor.shape[1] and tensor.is_floating_point():
            yield path, tensor
        return
    items = items_of(output)
    logits = getattr(output, "logits", None)
    if items is None or (isinstance(logits, Tensor) and "logits" not in dict(items)):
        items = [] if logits is None else [("logits", logits)]
    for key, item in items if len(path) < 2 else ():
        yield from _tensors(item, samples, (*path, key))


def flat(found: Tensor, samples: int) -> Tensor:
    """Logits whose last or first dimension is missing, or that lie on a single pixel, as ``(n, classes)``."""
    if found.ndim < 2 and found.numel() and (samples == 1 or found.numel() == samples):
        return found.reshape(samples, -1)
    return found.flatten(1) if found.ndim in (4, 5) and found.shape[2:].numel() == 1 else found


def activation_of(found: Tensor) -> str:
    """The operation that has made probabilities of logits, told by the autograd graph, never by the values.

    Returns:
        :data:`SOFTMAX` or :data:`SIGMOID`; :data:`LOG_ODDS` where the probabilities have since been put in another
        order or some were left out, so that only their log-odds are left; empty where they are no probabilities.
    """
    made = "" if found.grad_fn is None else _maker_of(found.grad_fn)
    mixed = made == LOG_ODDS and bool(((found < -_ROUNDING) | (found > 1 + _ROUNDING)).any())
    return "" if mixed else made


def _maker_of(node: Node) -> str:
    """See :func:`activation_of`; of a node that mixes several what has made all of them."""
    kind = _kind(node)
    if kind in _MAKERS:
        return _MAKERS[kind]
    before = [one for one, _ in node.next_functions if one is not None]
    if kind == "Exp" and before and _kind(before[0]) == "LogSoftmax":
        return LOG_ODDS
    if kind not in _SAME_ORDER | _REORDERED | _MIXED or not before:
        return ""
    made = {_maker_of(one) for one in before}
    if "" in made:
        return ""
    return made.pop() if kind in _SAME_ORDER else LOG_ODDS


def _kind(node: Node) -> str:
    """The name of an operation; a slice of everything, which older releases of torch note for each ``:``, is a view."""
    kind = re.sub(r"Backward\d+$", "", node.name())
    return "Alias" if kind == "Slice" and _takes_all(node) else kind


def _takes_all(node: Any) -> bool:
    size = node._saved_self_sym_sizes[node._saved_dim]
    return node._saved_start == 0 and node._saved_step == 1 and node._saved_end >= size


class _Recorder(TorchFunctionMode):
    """Notes what went into softmax and sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FUNCTIONS:
            return func(*args, **kwargs)
        went_in = args[0] if args else kwargs["input"]
        # One that is changed in place is kept as it was.
        kept = went_in.clone() if func is Tensor.sigmoid_ else went_in
        result = func(*args, **kwargs)
        self.made.append((result, kept))
        return result


@contextmanager
def recording_activations() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note of every softmax and sigmoid what it made, and of what."""
    with _Recorder() as recorder:
        yield recorder.made


def before_activation(found: Tensor, activation: str, made: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Probabilities back to logits: what went into the operation that made them, or their log-odds where it is lost."""
    if not activation:
        return found
    node = found.grad_fn
    while activation != LOG_ODDS and node is not None:
        logits = next((before for after, before in made if after.grad_fn is node), None)
        if logits is not None and logits.numel() == found.numel():
            return logits.reshape(found.shape)
        if _kind(node) not in _SAME_ORDER:
            break
        node = node.next_functions[0][0]
    for after, before in made if activation != LOG_ODDS and found.grad_fn is None else ():
        if after.data_ptr() == found.data_ptr() and after.numel() == found.numel():
            return before.reshape(found.shape)
    if activation == SOFTMAX:
        return found.float().clamp_min(1e-38).log()
    return found.float().logit(1e-7)
