"""The probe: what all observations of a run share, made at the first look and thrown away whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.choice import locate_layers
from lightning_gradcam.attribution.isolation import torch_defaults
from lightning_gradcam.attribution.layout import Layout
from lightning_gradcam.attribution.regions import region_masks
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.picture.datasets import find_class_names, find_normalization
from lightning_gradcam.picture.display import photos
from lightning_gradcam.picture.text import load_font, missing_letters
from lightning_gradcam.record.compare import sample_mismatch
from lightning_gradcam.record.record import Record
from lightning_gradcam.run.failures import on_first_process
from lightning_gradcam.run.reference import ReferenceRun
from lightning_gradcam.run.samples import Fingerprint, fixed_batch
from lightning_gradcam.run.settings import Settings
from lightning_gradcam.run.sources import choose_source
from lightning_gradcam.run.trainer import LightningModule, Trainer


@dataclass(frozen=True)
class Probe:
    """What every observation of a run has in common.

    Maps, numbers and pictures have a row for each score of each sample, see
    :class:`~lightning_gradcam.attribution.functional.Attribution`; so have ``rows``, ``regions`` and ``photos``.

    Attributes:
        settings: What the user said.
        batch: The fixed batch, on the CPU.
        rows: The same, a row a score.
        fingerprint: Of the batch.
        layers: The name of each layer by the prefix of its keys.
        layouts: By the name of a layer, how its output lies on the image, once that is known.
        regions: Masks ``(n, H, W)`` by name.
        photos: Grey, ``(n, H, W)`` in [0, 1].
        class_names: The name of each class, where they are known.
        reference_run: What another run saw last, where the settings name one.
        k: How many scores the target gives a sample, once that is known.
    """

    settings: Settings
    batch: Batch
    rows: Batch
    fingerprint: Fingerprint
    layers: dict[str, str]
    layouts: dict[str, Layout | None]
    regions: dict[str, Tensor]
    photos: Tensor
    class_names: Sequence[str] | None
    reference_run: ReferenceRun | None
    k: int | None = None

    def with_first_look(self, k: int, layouts: Mapping[str, Layout]) -> Probe:
        """The same with ``k`` rows a sample, and with the layouts."""
        if self.k not in (None, k):
            raise ValueError(
                f"`target` gave {self.k} scores a sample before and {k} now; let it give as many each time"
            )
        if self.k == k:
            return self
        return replace(
            self,
            rows=self.batch.repeated(k),
            regions={name: region.repeat_interleave(k, 0) for name, region in self.regions.items()},
            photos=self.photos.repeat_interleave(k, 0),
            k=k,
            layouts=dict(layouts),
        )


def prepare(
    trainer: Trainer,
    pl_module: LightningModule,
    settings: Settings,
    stand_in: StandIn,
    forward: Callable[[nn.Module, Batch], Any],
    first_batch: Any = None,
) -> Probe:
    """Load the fixed batch and find the layers, the photos' scale, the class names and the reference run.

    Raises:
        ValueError: If these settings do not suit this model and these data; the message says what to do.
        FileNotFoundError: If there is no reference run.
    """
    record, folder = None, settings.drift.reference_run
    if folder is not None:
        record = on_first_process(trainer, lambda: Record.open(folder).last(), "read the reference run")
    source, samples = choose_source(trainer, settings.samples, first_batch)
    batch, fingerprint = fixed_batch(trainer, pl_module, source, samples, settings.batch_fn)
    if settings.localization is not None and settings.localization not in batch.regions:
        raise ValueError(
            f"`localization` names the region {settings.localization!r}, the batch has {sorted(batch.regions)}; return "
            "it from `batch_fn`"
        )
    on_device = batch.apply(lambda tensor: tensor.to(pl_module.device))

    def locate(model: nn.Module) -> tuple[dict[str, Layout | None], str]:
        layers, target = list(map(stand_in.of, settings.target_layer)), stand_in.of(settings.target)
        return locate_layers(model, layers, settings.grid, on_device, partial(forward, model), target)

    layouts, reason = stand_in.look(locate)
    if reason:
        rank_zero_info(
            f"GradCAMCallback looks at `{next(iter(layouts))}`: {reason}. Give `target_layer` to look at another layer."
        )
    layers = layer_prefixes(settings.prefix, list(layouts))
    reference_run = None
    if record is not None:
        reference_run = _reference_run(record, settings, list(layers), describe_samples(batch, fingerprint))
    told_by = getattr(source.loader, "dataset", None), getattr(trainer, "datamodule", None)
    if isinstance(settings.samples, Dataset):
        told_by = settings.samples, None
    with torch_defaults():
        regions = {name: region_masks(region, batch.size) for name, region in batch.regions.items()}
    class_names, grey = _class_names(settings, *told_by), _photos(settings, batch, *told_by)
    return Probe(settings, batch, batch, fingerprint, layers, layouts, regions, grey, class_names, reference_run)


def _class_names(settings: Settings, dataset: Any, datamodule: Any) -> Sequence[str] | None:
    class_names = settings.display.class_names or find_class_names(dataset, datamodule)
    missing = missing_letters(class_names or (), load_font(settings.display.font, 13))
    if missing:
        rank_zero_warn(
            f"the font has no glyph for {missing!r} in the class names; give `Display(font=...)` one that has"
        )
    return class_names


def _photos(settings: Settings, batch: Batch, dataset: Any, datamodule: Any) -> Tensor:
    mean, std = settings.display.mean, settings.display.std
    if mean is None:
        mean, std = find_normalization(dataset, batch.pictures.shape[1], datamodule)
    with torch_defaults():
        grey, note = photos(batch.pictures, mean, std)
    if note:
        tell = rank_zero_info if mean is None else rank_zero_warn
        tell(f"GradCAMCallback: {note}.")
    return grey


def _reference_run(record: Record, settings: Settings, prefixes: list[str], samples: dict[str, Any]) -> ReferenceRun:
    """What the reference run saw last, refused where it is of other samples or has no such layers."""
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


def describe_samples(batch: Batch, fingerprint: Fingerprint) -> dict[str, Any]:
    """Which samples these are, as a record tells it."""
    return {
        "fingerprint": asdict(fingerprint),
        "ids": [one if isinstance(one, int) else str(one) for one in batch.ids],
        "labels": None if batch.labels is None else batch.labels.tolist(),
    }


def layer_prefixes(prefix: str, names: Sequence[str]) -> dict[str, str]:
    """Each layer's name by the prefix of its keys: the plain one for one layer, else with what tells names apart."""
    if len(names) == 1:
        return {prefix: names[0]}
    parts = [name.split(".") for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*(path[:-1] for path in parts), strict=False))
    common = len(list(shared))
    # A key becomes a tag and a file name, and a `ModuleDict` takes any text as a name.
    suffixes = [re.sub(r"[^\w.-]", "_", ".".join(path[common:]), flags=re.ASCII) for path in parts]
    suffixes = [f"{own}_{i}" if suffixes.count(own) > 1 else own for i, own in enumerate(suffixes)]
    return {f"{prefix}_{own}": name for own, name in zip(suffixes, names, strict=True)}
