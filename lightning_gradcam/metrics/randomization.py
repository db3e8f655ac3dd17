"""Whether maps depend on what the model has learned: the cascading randomisation of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.choice import locate_layers
from lightning_gradcam.attribution.functional import attribute, default_forward
from lightning_gradcam.attribution.layers import Layer, check_layers, find_layer, split_call
from lightning_gradcam.attribution.layout import Grid, Layout, as_layout
from lightning_gradcam.attribution.methods import Method, as_method
from lightning_gradcam.attribution.question import Question, reading_logits
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import Target, as_target
from lightning_gradcam.metrics.faithfulness import Forward, check_batch, forward_on_copies, spearman
from lightning_gradcam.metrics.removal import check_single, fix_predicted_classes

__all__ = ["randomization"]

_LEFT = "#left"  # no name of a module


def randomization(
    model: nn.Module,
    batch: Batch,
    target_layer: Layer | None = None,
    target: Target | str | int = "label",
    method: str | Method = "gradcam",
    grid: Grid | Layout | None = None,
    forward_fn: Forward = default_forward,
    at_once: int | None = None,
    compare: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """How like itself a map stays while the weights are randomised, module after module, from the output on.

    A map that stays as it is does not depend on what the model has learned. This is the cascading randomisation of
    Adebayo et al. 2018, arXiv 1810.03292. The layer is found once, on the model as it is.

    Every parameter draws from the normal distribution of its own mean and standard deviation, whatever module it is
    in. ``reset_parameters`` is not asked: it does nothing to a weight that is made from others, as by weight norm, it
    resets running statistics, and its scale lets the signals of a deep network vanish. So a parameter of one value, or
    of equal values as in a fresh norm, stays, and so do buffers. Frozen parameters take part. A parametrised module
    draws what its weights are made from. A parameter that several modules share belongs to the one nearest the output.

    Args:
        model: The model. It is a stand-in of it that gets the random weights.
        batch: The samples, as the model expects them, on its device.
        target_layer: See :func:`~lightning_gradcam.gradcam`, as for ``target``, ``method`` and ``grid``.
        target: What the maps explain.
        method: How they are made.
        grid: How the layer's output lies on the image.
        forward_fn: ``(model, batch) -> output``; by default ``model(batch.images)``.
        at_once: How many samples to run at a time, to save memory; ``None``: all.
        compare: ``(maps, first maps) -> values (n,)``, of signed maps ``(n, *grid)``; ``None``: :func:`spearman`.
            :func:`~lightning_gradcam.metrics.drift.similarity` looks at the positive evidence alone.
        seed: Of the random weights; the same one gives the same values.

    Returns:
        ``(n,)`` for each module with parameters of its own, by its dotted name: the comparison of the map with the
        first one once this module and those before it in the dict are random. The module that is called last comes
        first; one that holds others comes after them, the model itself, as ``""``, at the end. A module that the
        forward does not call is left out, but where it calls the one that holds it, which may use its weights.
        For Spearman in [-1, 1], 1 for an order that has not changed; NaN where
        either map is constant or not finite.

    Raises:
        ValueError: See :func:`~lightning_gradcam.gradcam`.
        TypeError: If an argument is of another type.

    Cost: one forward of the batch, and a backward down to the layer, for each module and for the first map; two
    forwards of a sample or two to find the modules and the layer. Memory for the weights once more.
    """
    check_batch(batch, at_once)
    compute, layer = as_method(method), check_layers(None if target_layer is None else [target_layer], grid)
    layout, own = None if grid is None else as_layout(grid), as_target(target)
    stand_in = StandIn(model)

    def look(model: nn.Module) -> dict[str, Tensor]:
        ask, method, run = stand_in.of(own), stand_in.of(compute), forward_on_copies(model, stand_in.of(forward_fn))
        asked = batch.apply(Tensor.clone)  # labels made in inference mode could take no part in a graph
        run, _ = reading_logits(run, ask, asked)
        if target == "predicted":
            asked, ask = fix_predicted_classes(asked, run, at_once)
        layouts = locate_layers(model, list(map(stand_in.of, layer)), layout, asked, run, ask).layouts

        def maps() -> Tensor:
            seen = attribute(model, asked, layouts, run, Question(ask), method, at_once)
            check_single(seen.k)
            (signed,) = seen.maps.values()
            return signed

        first, found = maps(), {}
        with randomizing(seed) as randomize:
            calls = _calls(model, lambda: run(asked.part(slice(1))))
            for name, parameters in _from_output_to_input(model, calls).items():
                for parameter in parameters:
                    randomize(parameter)
                found[name] = (compare or spearman)(maps(), first)
        return found

    return stand_in.look(look)


def parameters_above(model: nn.Module, layer: str, run: Callable[[], object]) -> list[nn.Parameter]:
    """The parameters of the modules that a forward calls only once it has left a layer, from the output on.

    One that a module below shares, or the layer itself, is left out: it would change what the layer sees.

    Args:
        model: A stand-in.
        layer: The dotted name of a module, behind which ``#2`` means its second call.
        run: A forward.
    """
    calls = _calls(model, run, layer)
    owners, users = _owners_and_users(model, calls)
    before = set(calls[: calls.index(_LEFT)])
    kept = {parameter for owner in owners if users[owner] in before for parameter in owners[owner]}
    reached = [parameter for own in _from_output_to_input(model, calls).values() for parameter in own]
    return [parameter for parameter in reached if parameter not in kept]


def _from_output_to_input(model: nn.Module, calls: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """The parameters of each module that these calls reach, by its name, from the output towards the input."""
    last_call = {name: number for number, name in enumerate(calls)}
    owners, users = _owners_and_users(model, calls)
    found, seen = {}, set()
    for owner in sorted(owners, key=lambda owner: last_call[users[owner]])[::-1]:
        found[owner] = [parameter for parameter in owners[owner] if parameter not in seen]
        seen.update(found[owner])
    return {owner: parameters for owner, parameters in found.items() if parameters}


def _owners_and_users(model: nn.Module, calls: Sequence[str]) -> tuple[dict[str, list[nn.Parameter]], dict[str, str]]:
    """By the name of each module that these calls reach its parameters, and the name of the module that uses them."""
    owners, called = dict[str, list[nn.Parameter]](), set(calls)
    for name, module in model.named_modules():
        owner = _uncompiled_name(name).partition(".parametrizations.")[0]
        owners.setdefault(owner, []).extend(one for one in module._parameters.values() if one is not None)
    # A module may use the weights of a child without a call of it, as attention does with its output projection.
    users = {owner: owner if owner in called else owner.rpartition(".")[0] for owner in owners}
    return {owner: own for owner, own in owners.items() if users[owner] in called}, users


def _calls(model: nn.Module, run: Callable[[], object], layer: str | None = None) -> list[str]:
    """The names of the modules that a forward calls, in their order; ``_LEFT`` where it leaves the layer."""
    calls: list[str] = []
    handles, returns = [], count(1)
    try:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                note = partial(_append_name, calls, _uncompiled_name(name))
                handles.append(module.register_forward_pre_hook(note))
        if layer is not None:
            module, (_, call) = find_layer(model, layer)[1], split_call(layer)

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                if call in (None, next(returns)):
                    calls.append(_LEFT)

            handles.append(module.register_forward_hook(leave))
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _append_name(calls: list[str], name: str, module: nn.Module, args: Any) -> None:
    calls.append(name)


def _uncompiled_name(name: str) -> str:
    """A dotted name as if nothing were compiled."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


@contextmanager
def randomizing(seed: int) -> Iterator[Callable[[nn.Parameter], None]]:
    """Yield a function that gives a parameter random values; on exit all have their own again.

    Another tensor takes the place of the values meanwhile, so these stay as they are to the last bit, and a graph that
    the user holds does not take them for changed.
    """
    generator = torch.Generator().manual_seed(seed)
    originals: list[tuple[nn.Parameter, Tensor]] = []

    def randomize(parameter: nn.Parameter) -> None:
        own = parameter.data
        if own.numel() and (own.is_floating_point() or own.is_complex()):
            wide = own.to(torch.promote_types(own.dtype, torch.float32))
            noise = torch.randn(own.shape, generator=generator, dtype=wide.dtype, device="cpu").to(own.device)
            originals.append((parameter, own))
            parameter.data = torch.empty_like(own).copy_(wide.mean() + wide.std(correction=0) * noise)

    try:
        yield randomize
    finally:
        for parameter, own in originals:
            parameter.data = own
