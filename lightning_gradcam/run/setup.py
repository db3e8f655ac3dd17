"""All that a run must know before its first look, found out at once: batch, forward, question, layers, photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_gradcam.attribution.axes import with_axes
from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.calling import find_call
from lightning_gradcam.attribution.choice import NoMapError, locate_layers
from lightning_gradcam.attribution.decision import Asked, Classes, decide
from lightning_gradcam.attribution.functional import default_forward
from lightning_gradcam.attribution.isolation import torch_defaults
from lightning_gradcam.attribution.labels import name_one_class
from lightning_gradcam.attribution.layers import find_layer
from lightning_gradcam.attribution.layout import Layout
from lightning_gradcam.attribution.question import first_look
from lightning_gradcam.attribution.reading import AskError, ReadBatch, default_batch, to_paste
from lightning_gradcam.attribution.regions import region_masks
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import label, predicted
from lightning_gradcam.attribution.tasks import RegressionTarget
from lightning_gradcam.picture.datasets import find_class_names, find_normalization
from lightning_gradcam.picture.display import photos, value_limits
from lightning_gradcam.picture.text import load_font, missing_letters
from lightning_gradcam.picture.view import Axes
from lightning_gradcam.record.compare import sample_mismatch
from lightning_gradcam.record.record import Record
from lightning_gradcam.run.dataset_labels import number_of_classes, some_labels
from lightning_gradcam.run.failures import on_first_process
from lightning_gradcam.run.probe import Probe, describe_samples, layer_prefixes
from lightning_gradcam.run.reference import ReferenceRun
from lightning_gradcam.run.samples import Loaded, choose, fixed_batch, samples_at_once
from lightning_gradcam.run.settings import Settings, in_words
from lightning_gradcam.run.sources import choose_source
from lightning_gradcam.run.trainer import LightningModule, Source, Trainer

_T = TypeVar("_T")
Run = Callable[[Callable[[Any, Batch], Any], nn.Module, Batch], Any]
_LABELS_TO_READ = 256  # of which one that names two classes tells that labels may do so
_LOSSES_OF_SEVERAL = ("BCE", "MultiLabel", "Multilabel")  # the beginnings of losses' and metrics' names


@dataclass(frozen=True)
class _Found:
    """What a look at the model has told.

    Attributes:
        forward_fn: Runs the model.
        asked: The question, and the batch as it reads it.
        layouts: See :func:`~lightning_gradcam.attribution.choice.locate_layers`.
        notes: What was taken for what.
        warnings: What may well be meant otherwise.
    """

    forward_fn: Callable[[Any, Batch], Any]
    asked: Asked
    layouts: dict[str, Layout | None]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def prepare(
    trainer: Trainer,
    pl_module: LightningModule,
    settings: Settings,
    stand_in: StandIn,
    run: Run,
    restored: Mapping[str, Any] | None = None,
    first_batch: Any = None,
) -> Probe:
    """Load the fixed batch, and find out how it is read, how the model is run, what is asked and where to look.

    Args:
        trainer: The trainer.
        pl_module: Its module.
        settings: What the user said.
        stand_in: Of the module.
        run: Runs a forward function on a stand-in and a batch.
        restored: How the run that is resumed has read the model's output.
        first_batch: What Lightning has handed over, where it has to serve as the fixed batch.

    Raises:
        AskError: If something cannot be known; the message names all that is missing, and ends with what to paste.
        ValueError: If these settings do not suit this model and these data; the message says what to do.
        FileNotFoundError: If there is no reference run.
    """
    source, samples = choose_source(trainer, settings.samples, first_batch)
    told_by = getattr(source.loader, "dataset", None), getattr(trainer, "datamodule", None)
    if isinstance(settings.samples, Dataset):
        told_by = settings.samples, None
    class_names, record = _class_names(settings, *told_by), _reference_record(trainer, settings)

    def load() -> Loaded:
        loaded = fixed_batch(trainer, pl_module, source, samples, settings.batch_fn)
        _check_localization(settings, loaded.read.batch)
        choose(settings.pictures, len(loaded.read.batch.images), "pictures", "fixed batch")
        return _with_multilabel(loaded, settings, source, told_by[0], pl_module)

    def look(model: nn.Module, loaded: Loaded) -> _Found:
        batch = loaded.read.batch.apply(lambda tensor: tensor.to(pl_module.device))
        read = replace(loaded.read, batch=batch)
        classes = Classes(class_names, None if class_names else number_of_classes(told_by[0]), read.views)
        return _look(model, read, loaded.raw, settings, stand_in, run, classes, restored or {})

    loaded, found = _find_out(settings, pl_module, load, lambda loaded: stand_in.look(partial(look, loaded=loaded)))
    asked, settings = found.asked, _settled(settings, found)
    for note in found.notes:
        rank_zero_info(f"GradCAMCallback {note}.")
    for warning in found.warnings:
        rank_zero_warn(f"GradCAMCallback: {warning}.")
    batch, fingerprint = asked.batch.apply(lambda tensor: tensor.detach().cpu()), loaded.fingerprint
    layers = layer_prefixes(settings.prefix, list(found.layouts))
    reference_run = _reference_run(record, settings, list(layers), describe_samples(batch, fingerprint))
    with torch_defaults():
        regions = {name: region_masks(region, batch.size) for name, region in batch.regions.items()}
    grey, of_values = _photos(settings, batch, *told_by), isinstance(asked.question.target, RegressionTarget)
    n = len(batch.images)
    return Probe(
        settings=settings,
        batch=batch,
        rows=batch,
        fingerprint=fingerprint,
        layers=layers,
        layouts=found.layouts,
        regions=regions,
        photos=grey,
        axes=_axes(batch, settings),
        class_names=None if of_values else class_names,
        reference_run=reference_run,
        question=asked.question,
        notes=(*found.notes, *found.warnings),
        pictured=choose(settings.pictures, n, "pictures", "fixed batch"),
        at_once=samples_at_once(source.loader, n, settings.drift.noise_floor),
    )


def _find_out(
    settings: Settings,
    pl_module: LightningModule,
    load: Callable[[], Loaded],
    look: Callable[[Loaded], _Found],
) -> tuple[Loaded, _Found]:
    """Try all, and raise all that is missing at once."""
    problems: list[Exception] = []

    def attempt(step: Callable[[], _T]) -> _T | None:
        try:
            return step()
        except Exception as error:
            problems.append(error)
            return None

    for layer in settings.target_layer:
        attempt(partial(find_layer, pl_module, layer))
    has_forward = attempt(partial(_check_forward, settings, pl_module))
    loaded = attempt(load)
    found = attempt(partial(look, loaded)) if loaded and has_forward else None
    if problems or loaded is None or found is None:
        raise _all_of(problems)
    return loaded, found


def _look(
    model: nn.Module,
    read: ReadBatch,
    raw: Any,
    settings: Settings,
    stand_in: StandIn,
    run: Run,
    classes: Classes,
    restored: Mapping[str, Any],
) -> _Found:
    """Find out by a stand-in how to run the model, what its output is and which layers to look at."""
    notes, batch, forward_fn = [*read.notes], read.batch, stand_in.of(settings.forward_fn)
    if settings.forward_fn is default_forward:
        forward_fn, batch = find_call(model, read, raw, lambda call, few: run(call, model, few))
        notes += [f"calls `{forward_fn.name}`"] if forward_fn.images is not None else []
    forward = partial(run, forward_fn, model)
    batch, axes = _with_axes(model, replace(read, batch=batch), raw, forward, settings)
    notes += [axes] if axes else []
    output, few = first_look(forward, batch)
    try:
        asked = decide(stand_in.of(settings.target), output, few, batch, read.main_classes, classes, restored)
    except ValueError as error:
        if isinstance(error, AskError) or not read.notes:
            raise
        raise ValueError(f"{error} (the callback {read.notes[0]})") from error
    question, layers = asked.question, list(map(stand_in.of, settings.target_layer))
    located = locate_layers(model, layers, settings.grid, asked.batch, question.to_answer(forward), question)
    notes += asked.notes
    if located.reason:
        where = f"looks at `{next(iter(located.layouts))}`: {located.reason}"
        rank_zero_info(f"GradCAMCallback {where}. Give `target_layer` to look at another layer.")
    warnings = ([asked.warning] if asked.warning else []) + [*located.notes]
    return _Found(forward_fn, asked, dict(located.layouts), tuple(notes), tuple(warnings))


def _with_axes(
    model: nn.Module, read: ReadBatch, raw: Any, forward: Callable[[Batch], Any], settings: Settings
) -> tuple[Batch, str]:
    """See :func:`~lightning_gradcam.attribution.axes.with_axes`; what has to be said is asked with a line to paste."""
    name = read.images[-1] if read.images and isinstance(read.images[-1], str) else ""
    try:
        return with_axes(model, read.batch, forward, name)
    except AskError as error:
        if error.arguments or settings.batch_fn is not default_batch:
            raise
        paste = to_paste(raw, read.images, read.labels, ", time_axis=2")
        raise AskError(str(error), batch_fn=paste) from error


def _check_localization(settings: Settings, batch: Batch) -> None:
    region = settings.localization and settings.localization.region
    if region is not None and region not in batch.regions:
        raise ValueError(
            f"`localization` names the region {region!r}, the batch has {sorted(batch.regions)}; return it from "
            "`batch_fn`"
        )


def _with_multilabel(loaded: Loaded, settings: Settings, source: Source, dataset: Any, modules: nn.Module) -> Loaded:
    """The fixed batch, which knows whether a row of its labels may name several classes."""
    batch, labels = loaded.read.batch, loaded.read.batch.labels
    rows = labels is not None and labels.ndim == 2 and labels.shape[1] > 1
    if batch.multilabel is not None or labels is None or not rows or not name_one_class(labels):
        return loaded
    # Rows with one positive each are one-hot labels, or happen to be so in these samples.
    several = any(type(module).__name__.startswith(_LOSSES_OF_SEVERAL) for module in modules.modules())
    others = None if several else some_labels(source.loader, dataset, _LABELS_TO_READ, settings.batch_fn)
    several = several or (others is not None and others.ndim == 2 and not name_one_class(others))
    how = "several classes" if several else "one class"
    notes = (*loaded.read.notes, f"reads a row of labels as {how}; `Batch(multilabel={not several})` says otherwise")
    return replace(loaded, read=replace(loaded.read, batch=replace(batch, multilabel=several), notes=notes))


def _check_forward(settings: Settings, pl_module: LightningModule) -> bool:
    """Refuse a module that cannot be called, unless the user has said how to run it."""
    inherited = type(pl_module).forward.__qualname__ == "LightningModule.forward"  # of either distribution
    if settings.forward_fn is default_forward and inherited:
        sizes = {name: sum(one.numel() for one in child.parameters()) for name, child in pl_module.named_children()}
        largest = max(sizes, key=lambda name: sizes[name], default="model")
        paste = f"lambda module, batch: module.{largest}(batch.images)"
        raise AskError(
            f"{type(pl_module).__name__} defines no `forward`, so `GradCAMCallback` cannot run it; "
            f"pass `forward_fn={paste}`",
            forward_fn=paste,
        )
    return True


def _settled(settings: Settings, found: _Found) -> Settings:
    """The settings with what was found where the user had left it open."""
    target = found.asked.question.target
    if settings.forward_fn is default_forward:
        settings = replace(settings, forward_fn=found.forward_fn)
    if settings.target is not label or target is label:
        return settings
    name = "predicted" if target is predicted else in_words(target)
    method = settings.question.removeprefix(settings.target_name)
    return replace(settings, target=target, target_name=f"target {name}", question=f"target {name}{method}")


def _all_of(problems: Sequence[Exception]) -> Exception:
    """One error for all that is missing, with what to paste."""
    different = {str(one): one for one in problems}.values()
    telling = [one for one in different if not isinstance(one, NoMapError)] or [*different]
    paste = {name: value for one in telling if isinstance(one, AskError) for name, value in one.arguments.items()}
    if not paste and len(telling) == 1:
        return telling[0]
    text = "\n".join(f"{i}. {one}" for i, one in enumerate(telling, 1)) if len(telling) > 1 else str(telling[0])
    if len(telling) > 1:
        text = f"GradCAMCallback must be told {len(telling)} things:\n{text}"
    if paste:
        call = ", ".join(f"{name}={value}" for name, value in paste.items())
        text += f"\nTo paste, beside your other arguments: GradCAMCallback({call})"
    error = AskError(text, **paste)
    vars(error).update({name: value for one in telling for name, value in vars(one).items() if name != "arguments"})
    error.__cause__ = telling[0]
    return error


def _class_names(settings: Settings, dataset: Any, datamodule: Any) -> Sequence[str] | None:
    class_names = settings.display.class_names or find_class_names(dataset, datamodule)
    missing = missing_letters(class_names or (), load_font(settings.display.font, 13))
    if missing:
        rank_zero_warn(
            f"the font has no glyph for {missing!r} in the class names; give `Display(font=...)` one that has"
        )
    return class_names


def _photos(settings: Settings, batch: Batch, dataset: Any, datamodule: Any) -> Tensor:
    mean, std, window = settings.display.mean, settings.display.std, settings.display.window
    if mean is None and window is None and len(batch.size) > 1:  # signals are drawn in the model's own values
        mean, std = find_normalization(dataset, batch.pictures.shape[1], datamodule)
    with torch_defaults():
        grey, note = photos(batch.pictures, mean, std, window, batch.time is not None)
    if note:
        tell = rank_zero_info if mean is None else rank_zero_warn
        tell(f"GradCAMCallback: {note}.")
    return grey


def _axes(batch: Batch, settings: Settings) -> Axes:
    display, limits = settings.display, None
    if len(batch.size) == 1:
        limits = value_limits(batch.pictures, display.mean, display.std, display.window)
    return Axes(batch.time, batch.spacing, limits)


def _reference_record(trainer: Trainer, settings: Settings) -> Record | None:
    folder = settings.drift.reference_run
    if folder is None:
        return None
    return on_first_process(trainer, lambda: Record.open(folder).last(), "read the reference run")


def _reference_run(
    record: Record | None, settings: Settings, prefixes: list[str], samples: dict[str, Any]
) -> ReferenceRun | None:
    """What the reference run saw last, refused where it is of other samples or has no such layers."""
    if record is None:
        return None
    mismatch = sample_mismatch(samples, record.about)
    if mismatch:
        raise ValueError(
            f"`Drift(reference_run={str(settings.drift.reference_run)!r})` has not looked at the same samples: "
            f"{mismatch}, here and there"
        )
    question = record.about["settings"].get("question")
    if question != settings.question:
        rank_zero_warn(f"GradCAMCallback asks for {settings.question!r}, {record.name} asked for {question!r}.")
    return ReferenceRun.of(record, prefixes)
