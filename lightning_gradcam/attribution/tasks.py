"""Ready targets for what is no classification: segmentation, detection, regression and embeddings."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.labels import labelled
from lightning_gradcam.attribution.outputs import find_logits, flat
from lightning_gradcam.attribution.prediction import Words
from lightning_gradcam.attribution.reading import item, structure
from lightning_gradcam.attribution.regions import region_masks
from lightning_gradcam.attribution.spatial import Size, along_cells, cell_axes
from lightning_gradcam.attribution.targets import is_class, two_class_logits

# Of these models of transformers the last column of the logits is of no object, and the columns exclude each other; the
# others have a probability for each class of its own.
_WITH_NO_OBJECT = ("DetrObjectDetectionOutput", "DetrSegmentationOutput", "YolosObjectDetectionOutput")


def _shortly(self: Any) -> str:
    """A target as one would write it, without what is left as it is."""
    given = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
    return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


@dataclass(frozen=True)
class SegmentationTarget:
    """The mean logit of one class over a part of each image, ``(n,)``: for semantic segmentation.

    The model's output is ``(n, classes, *spatial)``, at any resolution, or has this as ``["out"]``, ``.logits`` or
    ``["logits"]``. With a single output channel its logit is that of class 1, and its negative of class 0. Of
    probabilities what went into the softmax or sigmoid is taken.

    Attributes:
        index: The class, counted from 0. ``None``: each sample's label.
        region: The region of the batch to take the mean over, in every epoch the same. ``None``: the pixels that the
            model itself gives to the class. Where there are none the score is 0 and the map empty.

    Source: Vinogradova et al. 2020, arXiv 2002.11434, equation 2, divided by the number of pixels.
    """

    index: int | None = None
    region: str | None = None

    __repr__ = _shortly

    def __post_init__(self) -> None:
        _check_index(self.index)

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Score an output; raise a ``ValueError`` where it holds no such logits or the batch no such region."""
        pixels, classes = self._pixels(output, batch)
        predicted = (pixels.argmax(1) == along_cells(classes, pixels[:, 0])).to(pixels.dtype)
        mask = predicted
        if self.region is not None:
            mask = region_masks(_region(batch, self.region), batch.size)
            mask = F.interpolate(mask[:, None].to(pixels), pixels.shape[2:], mode="area")[:, 0]
        if self.index is None and batch.labels is not None:  # a sample without a label has no such region
            mask = torch.where(along_cells(labelled(batch.labels).to(mask.device), mask), mask, predicted)
        chosen = pixels[torch.arange(len(pixels), device=pixels.device), classes]
        return (chosen * mask).sum(cell_axes(mask)) / mask.sum(cell_axes(mask)).clamp_min(1e-6)

    def classes(self, output: Any, batch: Batch) -> Tensor:
        """The class of each sample, ``(n,)``."""
        return self._pixels(output, batch)[1]

    def words(self, output: Any, batch: Batch) -> Words:
        """The share of each image that the model gives to the class, beside that of the region."""
        pixels, classes = self._pixels(output, batch)
        given = (pixels.argmax(1) == along_cells(classes, pixels[:, 0])).float()
        shares = given.mean(cell_axes(given)).tolist()
        truth = [""] * len(shares)
        if self.region is not None:
            masks = region_masks(_region(batch, self.region), batch.size)
            truth = [f"{share:.0%}" for share in masks.mean(cell_axes(masks)).tolist()]
        return Words(truth, [f"{share:.0%}" for share in shares])

    def _pixels(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits of each pixel ``(n, classes, H', W')``, and the class of each sample ``(n,)``."""
        samples = len(batch.images)
        path = find_logits(output, samples)
        pixels = None if path is None else item(output, path)
        if not isinstance(pixels, Tensor) or pixels.ndim not in (4, 5):
            raise ValueError(f"no logits (n, classes, H, W) in the model's output, got {structure(output)}")
        pixels = two_class_logits(pixels.float())  # a sum over pixels is too large for half precision
        classes = _classes_asked(self.index, batch, pixels.device, pixels[:, 1:].flatten(2).amax(2).argmax(1) + 1)
        if bool((classes >= pixels.shape[1]).any()):
            raise ValueError(f"`index` {int(classes.max())} is outside the model's {pixels.shape[1]} classes")
        return pixels, classes


@dataclass(frozen=True)
class DetectionTarget:
    """The summed scores of the boxes of one class, ``(n,)``: for object detection.

    The model's output is that of torchvision's detectors in eval mode: for every image a mapping with ``"boxes"``
    ``(k, 4)``, ``"labels"`` and ``"scores"``, both ``(k,)``. Or it is that of a detector of Hugging Face, with
    ``.pred_boxes`` ``(n, queries, 4)`` as centre, width and height in fractions and ``.logits``: then every query
    counts, by the probability that it gives to the class.

    Attributes:
        index: The class, as in ``"labels"``. ``None``: each sample's label.
        region: The region of the batch, given as boxes, that a box must overlap by half (intersection over union).
            ``None``: all boxes of the class count. Where there are none the score is 0 and the map empty.
    """

    index: int | None = None
    region: str | None = None

    __repr__ = _shortly

    def __post_init__(self) -> None:
        _check_index(self.index)

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Score an output; raise a ``ValueError`` where it holds no boxes or the batch no such region."""
        from torchvision.ops import box_iou

        places = None if self.region is None else _region(batch, self.region)
        if places is not None and places.ndim != 2:
            raise ValueError(f"`region` {self.region!r} must be boxes (n, 4), got {tuple(places.shape)}")
        scores = []
        for i, (boxes, found, _) in enumerate(self._boxes(output, batch)):
            if places is not None:
                found = found * (box_iou(boxes, places[i : i + 1].to(boxes))[:, 0] >= 0.5)
            scores.append(found.sum())
        return torch.stack(scores)

    def classes(self, output: Any, batch: Batch) -> Tensor:
        """The class of each sample, ``(n,)``; -1 where all boxes count."""
        return _classes_asked(self.index, batch, batch.images.device, -1)

    def words(self, output: Any, batch: Batch) -> Words:
        """How many boxes the model gives to the class."""
        counts = [number for _, _, number in self._boxes(output, batch)]
        return Words([""] * len(counts), [f"{number} box{'es' * (number != 1)}" for number in counts])

    def _boxes(self, output: Any, batch: Batch) -> list[tuple[Tensor, Tensor, int]]:
        """Of each sample its boxes in pixels, what each counts, and how many are of the class."""
        classes = self.classes(output, batch).tolist()
        if is_queries(output):
            return _of_queries(output, classes, batch.size)
        if not are_detections(output, len(batch.images)):
            raise ValueError(f"no boxes, labels and scores of each image in the model's output, {structure(output)}")
        found = []
        for image, index in zip(output, classes, strict=True):
            chosen = (image["labels"] == index) | (index < 0)
            found.append((image["boxes"], image["scores"] * chosen, int(chosen.sum())))
        return found


def are_detections(output: Any, samples: int) -> bool:
    """Whether these are the boxes, labels and scores of each image, as torchvision's detectors give them."""
    fields = {"boxes", "labels", "scores"}
    listed = isinstance(output, (list, tuple)) and len(output) == samples > 0
    return listed and all(isinstance(image, Mapping) and fields <= image.keys() for image in output)


def is_queries(output: Any) -> bool:
    """Whether these are the boxes and logits of queries, as detectors of Hugging Face give them."""
    return all(isinstance(getattr(output, name, None), Tensor) for name in ("pred_boxes", "logits"))


def _of_queries(output: Any, classes: Sequence[int], size: Size) -> list[tuple[Tensor, Tensor, int]]:
    height, width = size
    centre, half = output.pred_boxes[..., :2], output.pred_boxes[..., 2:] / 2
    boxes = torch.cat([centre - half, centre + half], -1) * centre.new_tensor([width, height, width, height])
    if type(output).__name__ in _WITH_NO_OBJECT:
        probabilities = output.logits.float().softmax(-1)
        best = probabilities.argmax(-1)
        probabilities = probabilities[..., :-1]
    else:
        probabilities = output.logits.float().sigmoid()
        best = torch.where(probabilities.amax(-1) > 0.5, probabilities.argmax(-1), probabilities.shape[-1])
    found = []
    for i, index in enumerate(classes):
        if index >= probabilities.shape[-1]:
            raise ValueError(f"`index` {index} is outside the model's {probabilities.shape[-1]} classes")
        of_class = probabilities[i].amax(-1) if index < 0 else probabilities[i, :, index]
        number = (best[i] < probabilities.shape[-1]) if index < 0 else (best[i] == index)
        found.append((boxes[i], of_class, int(number.sum())))
    return found


@dataclass(frozen=True)
class RegressionTarget:
    """One column of the model's output as it is, ``(n,)``, signed, in its own unit: for regression.

    The output is ``(n, columns)`` or ``(n,)``, or holds it as the logits of a classifier are held.

    Attributes:
        column: Which one, counted from 0; of labels ``(n, columns)`` it is compared with the same.
    """

    column: int = 0

    __repr__ = _shortly

    def __post_init__(self) -> None:
        if not is_class(self.column):
            raise ValueError(f"`column` must be a whole number, 0 or above, got {self.column!r}")

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Score an output; raise a ``ValueError`` where it holds no such column."""
        found = _vectors(output, len(batch.images))
        if self.column >= found.shape[1]:
            raise ValueError(f"`column` {self.column} is outside the model's {found.shape[1]} outputs")
        return found[:, self.column]

    def words(self, output: Any, batch: Batch) -> Words:
        """The predicted value; the true one is the label."""
        values = self(output, batch).tolist()
        return Words([""] * len(values), [f"pred {value:.4g}" for value in values])


@dataclass(frozen=True)
class EmbeddingTarget:
    """A number that an embedding ``(n, d)`` has, ``(n,)``: for self-supervised and metric learning.

    Attributes:
        similar_to: ``None``: the embedding's Euclidean norm. A vector ``(d,)``: the cosine similarity to it, in
            [-1, 1]. ``"view"``: that of the first of two embeddings that the model returns, each ``(n, d)``, to the
            second, which counts as given.
    """

    similar_to: Sequence[float] | Tensor | str | None = None

    def __post_init__(self) -> None:
        given = self.similar_to
        if given is None or (isinstance(given, str) and given == "view"):
            return
        vector = None if isinstance(given, str) else torch.as_tensor(given).detach()
        if vector is None or vector.ndim != 1 or not len(vector) or not vector.isfinite().all():
            raise ValueError(f'`similar_to` must be a finite vector (d,), "view" or None, got {type(given).__name__}')
        object.__setattr__(self, "similar_to", tuple(vector.float().tolist()))

    def __repr__(self) -> str:
        given = self.similar_to
        if isinstance(given, tuple):
            given = f"{len(given)} numbers, {zlib.crc32(repr(given).encode()):08x}"
        return f"EmbeddingTarget({'' if given is None else f'similar_to={given}'})"

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Score an output; raise a ``ValueError`` where it holds no embeddings."""
        samples = len(batch.images)
        if self.similar_to == "view":
            pair = output if isinstance(output, (tuple, list)) and len(output) == 2 else ()
            if not pair or not all(isinstance(one, Tensor) and len(one) == samples for one in pair):
                raise ValueError(f'`similar_to="view"` needs two embeddings (n, d), got {structure(output)}')
            first, second = (one.reshape(samples, -1) for one in pair)
            return F.cosine_similarity(first, second.detach())
        found = _vectors(output, samples)
        if self.similar_to is None:
            return found.norm(dim=1)
        vector = torch.tensor(self.similar_to).to(found)
        if len(vector) != found.shape[1]:
            raise ValueError(f"`similar_to` has {len(vector)} numbers, the embedding {found.shape[1]}")
        return F.cosine_similarity(found, vector[None])

    def words(self, output: Any, batch: Batch) -> Words:
        """The number itself."""
        values = self(output, batch).tolist()
        what = "norm" if self.similar_to is None else "similarity"
        return Words([""] * len(values), [f"{what} {value:.3g}" for value in values])


def _vectors(output: Any, samples: int) -> Tensor:
    path = find_logits(output, samples)
    found = None if path is None else flat(item(output, path), samples)
    if found is None or found.ndim != 2:
        raise ValueError(f"no vectors ({samples}, d) in the model's output, got {structure(output)}")
    return found


def _classes_asked(index: int | None, batch: Batch, device: torch.device, otherwise: Any) -> Tensor:
    """The class that each sample is asked for, ``(n,)``."""
    if index is not None:
        return torch.full((len(batch.images),), index, device=device)
    labels = batch.labels
    if labels is None or labels.numel() != len(labels):
        raise ValueError("`index=None` asks for each sample's label and the batch has none; give `index`")
    labels = labels.flatten().long().to(device)
    return torch.where(labelled(labels) & (labels >= 0), labels, otherwise)


def _check_index(index: int | None) -> None:
    if index is not None and not is_class(index):
        raise ValueError(f"`index` must be a class, 0 or above, got {index!r}")


def _region(batch: Batch, name: str) -> Tensor:
    if name not in batch.regions:
        raise ValueError(f"`region` {name!r} is not one of the batch's regions, {sorted(batch.regions)}")
    return batch.regions[name]
