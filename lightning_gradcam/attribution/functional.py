"""Grad-CAM of a batch: the engine of the callback, and the same as a plain function without a Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_gradcam.attribution.axes import with_axes
from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.capture import capture
from lightning_gradcam.attribution.choice import locate_layers
from lightning_gradcam.attribution.grids import layouts_of, recording_shapes
from lightning_gradcam.attribution.layers import Layer, check_layers, find_layer
from lightning_gradcam.attribution.layout import Grid, Layout, as_layout, to_map
from lightning_gradcam.attribution.methods import Method, as_method, cam, check_cam, positions
from lightning_gradcam.attribution.prediction import Prediction, Words
from lightning_gradcam.attribution.question import Answer, Question
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import Target, as_target


@dataclass(frozen=True)
class Attribution:
    """What a layer's maps of a batch are, on the CPU.

    There is a row for each of the ``k`` scores of each of the ``n`` samples, those of a sample one after another:
    ``N = n k`` rows.

    Attributes:
        layouts: How the output of each layer lies on a grid, by its name.
        grids: The cells of each layer's own grid, before maps were summed down.
        maps: The signed map of each layer by its name, ``(N, *grid)`` float32, before the ReLU.
        alpha: The mean gradient over positions of each layer's channels, ``(N, c)`` float32.
        scores: ``(n,)`` or ``(n, k)`` float32, the target's.
        classes: ``(N,)``, the class that each score is of; ``None`` where the target does not tell.
        prediction: What the model predicts, of ``N`` rows; ``None`` where it is no classifier.
        words: What it says instead, of ``N`` rows; ``None`` where the target does not tell.
    """

    layouts: dict[str, Layout]
    grids: dict[str, Grid]
    maps: dict[str, Tensor]
    alpha: dict[str, Tensor]
    scores: Tensor
    classes: Tensor | None
    prediction: Prediction | None
    words: Words | None

    @property
    def k(self) -> int:
        """How many scores a sample has."""
        return self.scores[0].numel()


def attribute(
    model: nn.Module,
    batch: Batch,
    layouts: Mapping[str, Layout | None],
    forward: Callable[[Batch], Any],
    question: Question,
    method: Method,
    at_once: int | None = None,
    finest: int | None = None,
) -> Attribution:
    """Capture layers on a batch and turn each into a signed map.

    Args:
        model: A stand-in, see :class:`~lightning_gradcam.attribution.stand_in.StandIn`.
        batch: The samples, for the target.
        layouts: The layers by their full dotted names, and how the output of each lies on a grid; ``None``: the
            forward tells.
        forward: Runs the model on the batch.
        question: What is asked.
        method: ``(activations, gradients) -> map (n, *grid)``.
        at_once: How many samples to run at a time, to save memory; ``None``: all.
        finest: How many cells a side a map may have: of a finer grid they are summed; ``None``: any number.

    Raises:
        ValueError: See :func:`~lightning_gradcam.attribution.capture.capture`; also if a layer gives no spatial map.
    """
    parts = batch.parts(at_once)
    if len(parts) > 1:
        first = attribute(model, parts[0], layouts, forward, question, method, finest=finest)
        others = (attribute(model, part, first.layouts, forward, question, method, finest=finest) for part in parts[1:])
        return joined_parts([first, *others])
    # What was made in inference mode could take no part in a graph.
    batch = batch.apply(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
    n = len(batch.images)
    layers = dict(find_layer(model, name) for name in layouts)
    answer = question.to_answer(forward)
    with recording_shapes() if method is cam or None in layouts.values() else nullcontext([]) as calls:

        def run() -> Answer:
            calls.clear()  # of a forward whose graph had ended too early
            return answer(batch)

        seen = capture(layers, run, lambda found: question(found, batch))
    decided = question.with_activation_of(seen.output)
    if decided != question:
        return attribute(model, batch, layouts, forward, decided, method, finest=finest)
    known = {name: layout for name, layout in layouts.items() if layout}
    if len(known) < len(layouts):
        known = layouts_of(model, layers, calls, batch, forward)
    k, said = seen.scores[0].numel(), seen.output
    grids, maps, alpha = {}, {}, {}
    for name, layout in known.items():
        activations = to_map(name, seen.activations[name], layout, n, len(batch.size)).float()
        if method is cam:
            check_cam(name, model, layers[name], [module for module, _ in calls], activations, said.logits)
        gradients = [layout(one).float() for one in seen.gradients[name].reshape(k, *seen.activations[name].shape)]
        grids[name] = tuple(activations.shape[2:])
        maps[name] = summed_down(_signed_maps(activations, gradients, method), finest)
        alpha[name] = torch.stack([one.mean(positions(one)) for one in gradients], 1).flatten(0, 1)
    classes, words = question.classes(said, batch, seen.scores.shape), question.words(said, batch)
    classes = None if classes is None else classes.flatten()
    found = maps, alpha, seen.scores.float(), classes, question.predict(said, batch)
    maps, alpha, given, classes, (logits, labels) = _to_host(found)
    prediction = None if logits is None else Prediction.of(logits, labels, question.has_sigmoid).repeated(k)
    words = None if words is None else words.repeated(k)
    return Attribution(known, grids, maps, alpha, given, classes, prediction, words)


def _signed_maps(activations: Tensor, gradients: Sequence[Tensor], method: Method) -> Tensor:
    """The map of each of ``k`` scores of each sample, ``(n k, *grid)``."""
    signed = [method(activations, one) for one in gradients]
    expected, got = (len(activations), *activations.shape[2:]), tuple(signed[0].shape)
    if got != expected:
        raise ValueError(f"`method` must give one map a sample, shape {expected}, got {got}")
    return torch.stack(signed, 1).flatten(0, 1)


def summed_down(maps: Tensor, finest: int | None) -> Tensor:
    """Maps of at most so many cells a side, whose sums stay: a cell that lies in several is shared out by area.

    Args:
        maps: ``(n, *grid)``.
        finest: Cells a side; ``None``: as they are.

    Returns:
        ``(n, *grid)``, no side longer than ``finest``.
    """
    for axis in range(1, maps.ndim):
        side = maps.shape[axis]
        if finest is not None and side > finest:
            # In units of 1 / finest of a cell, old cells end at multiples of `finest` and new ones at those of `side`.
            old = torch.arange(side, device=maps.device) * finest
            new = torch.arange(finest, device=maps.device)[:, None] * side
            overlap = torch.minimum(old + finest, new + side) - torch.maximum(old, new)
            shares = overlap.clamp_min(0).to(maps.dtype) / finest  # (finest, side)
            maps = (maps.movedim(axis, -1) @ shares.T).movedim(-1, axis)
    return maps


def _to_host(found: Any) -> Any:
    """The tensors of a collection on the CPU, by one copy."""
    tensors: list[Tensor] = []
    apply_to_collection(found, Tensor, tensors.append)
    tensors = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if not tensors:
        return found
    copies = iter(copied_at_once(tensors))
    return apply_to_collection(found, Tensor, lambda one: one if one.device.type == "cpu" else next(copies))


def copied_at_once(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors on the CPU; from another device all come in one transfer."""
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())  # so that each is aligned
    # As a column, whose rows lie one after another also where there is a single one, of any stride.
    whole = torch.cat([tensors[i].contiguous().flatten()[:, None].view(torch.uint8).flatten() for i in order]).cpu()
    parts = whole.split([tensors[i].nbytes for i in order])
    copies = list(tensors)
    for i, part in zip(order, parts, strict=True):
        copies[i] = part.view(tensors[i].dtype).reshape(tensors[i].shape)
    return copies


def joined_parts(parts: Sequence[Any]) -> Any:
    """What the parts of a batch gave as of one: tensors, and dicts and dataclasses of them; ``None`` where one is."""
    first = parts[0]
    if any(part is None for part in parts):
        return None
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if callable(first) or isinstance(first, tuple):  # a layout, a grid
        return first
    if isinstance(first, dict):
        return {key: joined_parts([part[key] for part in parts]) for key in first}
    if isinstance(first, list):
        return [one for part in parts for one in part]
    return type(first)(*(joined_parts([getattr(part, field.name) for part in parts]) for field in fields(first)))


def rows_of(seen: Attribution, rows: slice) -> Attribution:
    """What was seen of some rows, all of those of some samples."""
    samples = slice(*(None if end is None else end // seen.k for end in (rows.start, rows.stop)))
    return Attribution(
        seen.layouts,
        seen.grids,
        {name: maps[rows] for name, maps in seen.maps.items()},
        {name: alpha[rows] for name, alpha in seen.alpha.items()},
        seen.scores[samples],
        None if seen.classes is None else seen.classes[rows],
        seen.prediction and seen.prediction.part(rows),
        seen.words and seen.words.part(rows),
    )


def default_forward(model: nn.Module, batch: Batch) -> Any:
    """Call the model on the images alone."""
    return model(batch.images)


def gradcam(
    model: nn.Module,
    images: Tensor,
    target_layer: Layer | None = None,
    target: Target | str | int | Sequence[int] = "predicted",
    method: str | Method = "gradcam",
    grid: Grid | Layout | None = None,
    labels: Tensor | None = None,
    time_axis: int | None = None,
) -> Tensor:
    """Grad-CAM of some images, with no Trainer.

    The model is not touched: what runs is a stand-in in eval mode, see
    :class:`~lightning_gradcam.attribution.stand_in.StandIn`. Random states are restored.

    Args:
        model: Takes ``images`` and returns logits ``(n, classes)``, or something that has them as ``.logits``,
            ``["logits"]`` or its first item.
        images: ``(n, c, H, W)``, as the model expects them, on its device; or volumes ``(n, c, D, H, W)``, clips or
            signals ``(n, c, length)``, see :class:`~lightning_gradcam.Batch`.
        target_layer: A dotted name or a module; ``None`` chooses one, see :class:`~lightning_gradcam.GradCAMCallback`.
        target: ``"predicted"``, ``"label"``, a class index, several of these, or a function ``(output, batch) ->
            scores``, ``(n,)`` or ``(n, k)``, such as a :class:`~lightning_gradcam.TopTarget`. To choose a layer it is
            asked about the first samples only, so it must read ``batch.labels``.
        method: ``"gradcam"``, ``"cam"``, ``"hirescam"``, ``"gradcam++"``, ``"layercam"``, ``"xgradcam"``, or a
            function ``(activations, gradients) -> map (n, h, w)``.
        grid: How the layer's output lies on the image, see :class:`~lightning_gradcam.GradCAMCallback`.
        labels: For ``target="label"``, see :class:`~lightning_gradcam.Batch`.
        time_axis: Which axis of clips is time, where the model's first convolution does not tell, see
            :class:`~lightning_gradcam.Batch`.

    Returns:
        Signed maps ``(n, h, w)``, of volumes ``(n, d, h, w)``, of clips ``(n, t, h, w)``, of signals ``(n, length)``,
        float32 on the CPU, at the layer's own resolution; of several scores a sample ``(n, k, h, w)``. ``map.relu()``
        is what the paper shows, ``(-map).relu()`` its counterfactual explanation.

    Raises:
        ValueError: If an argument is not one of these, or the layer gives no map. The message says what to do.
        TypeError: If an argument is of another type.

    Cost: one forward and the backward of what follows the layer. To choose a layer takes forwards of two images more,
    and to tell whether tokens are cells one of five, of volumes and clips nine.
    """
    seen, name = _attribute_layer(model, images, target_layer, target, method, grid, labels, time_axis)
    return seen.maps[name].unflatten(0, seen.scores.shape)


def neuron_importance(
    model: nn.Module,
    images: Tensor,
    target_layer: Layer | None = None,
    target: Target | str | int | Sequence[int] = "predicted",
    grid: Grid | Layout | None = None,
    labels: Tensor | None = None,
    time_axis: int | None = None,
) -> Tensor:
    """How much each channel of a layer matters for the score: Grad-CAM's weights ``alpha_k``.

    The mean over positions of the gradient, in the score's unit per unit of the channel's activation. A positive one
    is evidence for the target wherever the channel fires, a negative one against it. :func:`~lightning_gradcam.explain`
    puts them in words.

    Source: Selvaraju et al., ICCV 2017, arXiv 1610.02391, equation 1.

    Args:
        model: See :func:`gradcam`, as all the others.
        images: ``(n, c, H, W)``.
        target_layer: The layer.
        target: What to ask for.
        grid: How the layer's output lies on the image.
        labels: For ``target="label"``.
        time_axis: Of clips.

    Returns:
        ``(n, channels)``, float32 on the CPU; of several scores a sample ``(n, k, channels)``.

    Raises:
        ValueError: See :func:`gradcam`.
        TypeError: See :func:`gradcam`.
    """
    seen, name = _attribute_layer(model, images, target_layer, target, "gradcam", grid, labels, time_axis)
    return seen.alpha[name].unflatten(0, seen.scores.shape)


def _attribute_layer(
    model: nn.Module,
    images: Tensor,
    target_layer: Layer | None,
    target: Target | str | int | Sequence[int],
    method: str | Method,
    grid: Grid | Layout | None,
    labels: Tensor | None,
    time_axis: int | None,
) -> tuple[Attribution, str]:
    """Observe one layer; also the layer's name."""
    ask, compute = as_target(target), as_method(method)
    given = Batch(images, labels, time_axis=time_axis)
    layers = check_layers(None if target_layer is None else [target_layer], grid)
    layout = None if grid is None else as_layout(grid)
    stand_in = StandIn(model)
    notes: list[str] = []

    def look(model: nn.Module) -> tuple[Attribution, str]:
        def forward(batch: Batch) -> Any:
            return model(batch.images.clone())

        batch, _ = with_axes(model, given, forward)
        question, own = Question(stand_in.of(ask)), stand_in.of(compute)
        if not layers:
            question = question.tried_on(forward, batch)
        answer = question.to_answer(forward)
        found = locate_layers(model, list(map(stand_in.of, layers)), layout, batch, answer, question)
        notes.extend(found.notes)
        return attribute(model, batch, found.layouts, forward, question, own), next(iter(found.layouts))

    seen = stand_in.look(look)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return seen
