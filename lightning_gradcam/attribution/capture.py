"""One forward, one ``autograd.grad``: what a layer saw and what its output meant for the score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradcam.attribution.layers import split_call
from lightning_gradcam.attribution.layout import NoMapError, first_tensor


@dataclass(frozen=True)
class Capture:
    """What one forward of a model gave.

    Attributes:
        output: Whatever the model returned. It may hold on to the autograd graph above the first layer.
        scores: ``(n,)``, the score of each sample, or ``(n, k)``, several of each; detached.
        activations: The output of each layer by its name, ``(n, ...)``, detached; of a tuple its first item.
        gradients: The gradient of each sample's score with respect to that output, of the same shape; of several
            scores ``(k, n, ...)``.
    """

    output: Any
    scores: Tensor
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


def capture(
    layers: Mapping[str, nn.Module],
    forward: Callable[[], Any],
    score: Callable[[Any], Tensor],
) -> Capture:
    """Read the activations of ``layers`` and the gradients of the score.

    The forward runs without gradients up to the first of the layers. A hook cuts there: it replaces the layer's
    output by a leaf and turns gradients on for the rest. One ``autograd.grad`` from the summed scores to the
    leaf then gives the gradient of every sample at once, since in eval mode samples do not mix; of ``k`` scores a
    sample there are ``k`` such. All that lies below the first layer takes no part.

    Args:
        layers: Modules to read, by the name that errors shall use, behind which ``#2`` asks for the second call: parts
            of a stand-in, whose parameters ask for no gradient, see
            :class:`~lightning_gradcam.attribution.stand_in.StandIn`.
        forward: Runs the model on the batch once.
        score: Turns the model's output into scores ``(n,)`` or ``(n, k)``.

    Returns:
        The capture, on the model's device and in the layers' own dtype.

    Raises:
        ValueError: If a layer, or the call that was asked for, is not reached exactly once, or its output cannot carry
            a gradient. The message names the layer and what to do.
        NoMapError: If the score does not depend on a layer.
    """
    with _taps(layers) as taps:
        with torch.no_grad():
            output = forward()
            gradients = _gradients(score, output, taps)
        if gradients is None:
            # A `no_grad` block in the model ended the graph, or a re-entrant checkpoint refuses `autograd.grad`.
            # Since no parameter asks for one, nothing but the layers collects a gradient from `backward`.
            for tap in taps.values():
                tap.calls, tap.tensors = 0, []
            with torch.enable_grad():
                output = forward()
                gradients = _gradients_by_backward(score, output, taps)
    scores, by_layer = gradients
    return Capture(
        output=output,
        scores=_plain(scores),
        activations={name: _plain(tap.tensors[0]) for name, tap in taps.items()},
        gradients={name: _plain(gradient) for name, gradient in by_layer.items()},
    )


def _plain(tensor: Tensor) -> Tensor:
    """Without the graph, and without the class that the user's images may have given it."""
    return tensor.detach().as_subclass(Tensor)


@dataclass(eq=False)
class _Tap:
    """What a layer has handed out in one forward.

    Attributes:
        call: Which call is meant, counted from 1; ``None``: the only one.
        calls: How often the layer has been called.
        tensors: What it handed out, one tensor a call that is meant.
    """

    call: int | None
    calls: int = 0
    tensors: list[Tensor] = field(default_factory=list)


@contextmanager
def _taps(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, _Tap]]:
    """Hook the layers; the taps fill as these are called."""
    taps = {name: _Tap(split_call(name)[1]) for name in layers}

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            tap = taps[name]
            tap.calls += 1
            if tap.call not in (None, tap.calls):
                return output
            tensor = first_tensor(output)
            _check_output(name, module, tensor)
            kept = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            tap.tensors.append(kept)
            torch.set_grad_enabled(True)
            handed = kept.clone()  # an in-place operation after the layer must not reach what was kept
            return handed if tensor is output else (handed, *output[1:])

        return hook

    handles = []
    try:
        for name, module in layers.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise ValueError(
                    f"`target_layer` {name!r} is a scripted module, which runs no hooks; train the plain model, "
                    "or name a layer outside the scripted part"
                )
            # Before the hooks of a library that notes what a layer hands out: it shall note what the score is made of.
            handles.append(module.register_forward_hook(hook_of(name), prepend=True))
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _check_output(name: str, module: nn.Module, output: Any) -> None:
    problem = None
    if not isinstance(output, Tensor):
        problem = f"returns a {type(output).__name__}, not a tensor; name a module inside it that returns one"
    elif output.is_inference():
        problem = "runs in inference mode; replace `torch.inference_mode()` in the model's forward by `torch.no_grad()`"
    elif not output.is_floating_point():
        problem = f"returns {output.dtype}, which carries no gradient; name a layer with a real floating-point output"
    if problem:
        raise ValueError(f"`target_layer` {name!r} ({type(module).__name__}) {problem}")


def _check_calls(taps: Mapping[str, _Tap]) -> None:
    for name, tap in taps.items():
        if not tap.calls:
            raise ValueError(
                f"`target_layer` {name!r} was not reached by the forward pass; name a layer that the forward calls, "
                "or pass a `forward_fn` that calls it"
            )
        if not tap.tensors:
            raise ValueError(
                f"`target_layer` {name!r} asks for call {tap.call}, and one forward pass calls that layer "
                f"{tap.calls} time{'s' * (tap.calls > 1)}; name a call from 1 to {tap.calls}"
            )
        if len(tap.tensors) > 1:
            raise ValueError(
                f"`target_layer` {name!r} was called {tap.calls} times in one forward pass, so its output is not one "
                f"map; write `{name}#{tap.calls}` for the last of these calls, or name its parent"
            )


def _gradients(
    score: Callable[[Any], Tensor], output: Any, taps: Mapping[str, _Tap]
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Scores and gradients by ``autograd.grad``; ``None`` where the graph does not reach every layer."""
    _check_calls(taps)
    leaves = [tap.tensors[0] for tap in taps.values()]
    with torch.enable_grad():
        scores = score(output)
        if not scores.requires_grad:
            return None
        try:
            gradients = [_gradient(column, leaves, more) for column, more in summed_scores(scores)]
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            return None
    if any(gradient is None for column in gradients for gradient in column):
        return None
    return scores, {
        name: _stack_scores(scores, one) for name, one in zip(taps, zip(*gradients, strict=True), strict=True)
    }


def _gradient(score: Tensor, leaves: Sequence[Tensor], more: bool) -> Sequence[Tensor | None]:
    """The gradient of a score; where it is float16, by that of a multiple, which loses no digits.

    The mean over many cells makes gradients small: 1 / 224^2 is where float16 begins to lose digits, and volumes have
    more cells. So GradScaler does with losses.
    """
    if all(leaf.dtype != torch.float16 for leaf in leaves):
        return torch.autograd.grad(score, leaves, allow_unused=True, retain_graph=more)
    scale = 2.0**15  # the largest power that float16 holds
    while True:
        found = torch.autograd.grad(score.float() * scale, leaves, allow_unused=True, retain_graph=True)
        if scale <= 1 or all(one is None or bool(one.isfinite().all()) for one in found):
            return [None if one is None else one.float() / scale for one in found]
        scale /= 16


def summed_scores(scores: Tensor) -> list[tuple[Tensor, bool]]:
    """Of scores ``(n,)`` or ``(n, k)`` the sum over samples of each, and whether another one follows."""
    sums = scores.reshape(len(scores), -1).sum(0)
    return [(column, i < len(sums) - 1) for i, column in enumerate(sums)]


def _stack_scores(scores: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    return gradients[0] if scores.ndim == 1 else torch.stack(list(gradients))


def _gradients_by_backward(
    score: Callable[[Any], Tensor], output: Any, taps: Mapping[str, _Tap]
) -> tuple[Tensor, dict[str, Tensor]]:
    _check_calls(taps)
    leaves = {name: tap.tensors[0] for name, tap in taps.items()}
    for leaf in leaves.values():
        leaf.retain_grad()
    scores = score(output)
    gradients: dict[str, list[Tensor]] = {name: [] for name in taps}
    for column, more in summed_scores(scores):
        if column.requires_grad:
            column.backward(retain_graph=more)
        for name, leaf in leaves.items():
            if leaf.grad is None:
                raise NoMapError(
                    f"the score does not depend on `target_layer` {name!r}: something after it, such as `.detach()`, "
                    "or a re-entrant checkpoint around it, ends the gradient, or its output is not used; name a layer "
                    "after that place"
                )
            gradients[name].append(leaf.grad)
            leaf.grad = None
    return scores, {name: _stack_scores(scores, one) for name, one in gradients.items()}
