"""What the scores of a stand-in do while pixels are taken away: what the checks share, in a run and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.question import predict
from lightning_gradcam.attribution.spatial import upsampled
from lightning_gradcam.attribution.targets import FixedClasses, Target, logits, score
from lightning_gradcam.metrics.replacement import Baseline, baseline_images

STEPS = 32  # in which pixels are removed


def scores_under_masks(
    run: Callable[[Batch], Any],
    ask: Target,
    batch: Batch,
    masks: Iterable[Tensor],
    baseline: Baseline = 0.0,
    at_once: int | None = None,
) -> Tensor:
    """The scores ``(k, n)`` of the images under each of ``k`` masks, by a forward of a stand-in.

    A mask is ``(n, *size)``, or one for all ``(1, *size)``: bool, where the baseline replaces the images, or float, the
    share of each pixel that it replaces.
    """
    blank = baseline_images(batch, baseline)
    spread = (mask.unsqueeze(batch.channel_axis) for mask in masks)
    changed = (replace(batch, images=_replaced(batch.images, blank, mask)) for mask in spread)
    with torch.no_grad():
        return torch.stack([_scores_of(one, ask, run, at_once).float() for one in changed]).cpu()


def _replaced(images: Tensor, blank: Tensor, mask: Tensor) -> Tensor:
    """Images with their pixels replaced where the mask is true, or to the share that it says, in the same type."""
    if mask.dtype == torch.bool:
        return torch.where(mask, blank, images)
    wide = torch.promote_types(images.dtype, torch.float32)
    return torch.lerp(images.to(wide), blank.to(wide).expand_as(images), mask.to(wide)).to(images.dtype)


def area_under_curve(
    scores: Callable[[Callable[[], Iterator[Tensor]]], Tensor],
    batch: Batch,
    maps: Tensor,
    inserting: bool,
    steps: int = STEPS,
) -> Tensor:
    """The area ``(n,)`` under the scores as pixels go, or with ``inserting`` come back, in the order of the maps.

    Args:
        scores: What gives the scores ``(steps + 1, n)`` under masks, see :func:`scores_under_masks`.
        batch: The samples.
        maps: Signed maps ``(n, *grid)`` of them.
        inserting: Whether pixels come back.
        steps: In how many equal steps.
    """
    pixels = signed_at_image(maps, batch)
    order = pixels.flatten(1).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(1).reshape(pixels.shape).to(batch.images.device)
    numbers = [round(step * pixels[0].numel() / steps) for step in range(steps + 1)]

    def masks() -> Iterator[Tensor]:
        yield from (place >= number if inserting else place < number for number in numbers)

    area = torch.trapezoid(scores(masks), torch.tensor(numbers, device="cpu") / numbers[-1], dim=0)
    has_order = varies(maps) & (maps > 0).flatten(1).any(1).cpu()
    return torch.where(has_order, area, torch.nan)


def _scores_of(batch: Batch, ask: Target, run: Callable[[Batch], Any], at_once: int | None) -> Tensor:
    """The score of each sample, ``(n,)``, where the model computes."""
    scores = torch.cat([score(ask, run(part), part) for part in batch.parts(at_once)])
    scores = scores.reshape(len(scores), -1)
    check_single(scores.shape[1])
    return scores[:, 0]


def fix_predicted_classes(batch: Batch, run: Callable[[Batch], Any], at_once: int | None) -> tuple[Batch, Target]:
    """The target ``"predicted"`` fixed to what is predicted now, and the batch to ask it about."""

    def classes_of(output: Any, part: Batch) -> Tensor:
        found = logits(output, len(part.images))
        return found.argmax(1) if found.shape[1] > 1 else (found[:, 0] > 0).long()

    with torch.no_grad():
        return fix_classes(batch, _scores_of(batch, classes_of, run, at_once)[:, None])


def fix_classes(batch: Batch, classes: Tensor) -> tuple[Batch, Target]:
    """A target that asks for these classes ``(n, k)``, and the batch to ask it about.

    By their place in the whole, the samples of any part find their classes; they keep their own labels.
    """
    return replace(batch, ids=range(len(batch.images))), FixedClasses(classes)


def probability(ask: Target, sigmoid: bool) -> Target:
    """A target that reads logits, asked about probabilities."""

    def likely(output: Any, part: Batch) -> Tensor:
        found = predict(output, part, sigmoid) or predict(output, replace(part, labels=None), sigmoid)
        return ask(found.probabilities if found else output, part)  # of an output without logits it says what is wrong

    return likely


def check_single(k: int) -> None:
    """Refuse a target with several scores a sample; raise a ``ValueError``."""
    if k != 1:
        raise ValueError(f"`target` must give one score a sample here, got {k}; ask for one class at a time")


def varies(maps: Tensor) -> Tensor:
    """Whether each map ``(n, *grid)`` is finite and not constant, ``(n,)`` bool."""
    cells = maps.detach().cpu().flatten(1)
    return cells.isfinite().all(1) & (cells != cells[:, :1]).any(1)


def signed_at_image(maps: Tensor, batch: Batch) -> Tensor:
    """Maps ``(n, *grid)`` at the size of the images, ``(n, *size)`` float32 on the CPU."""
    return upsampled(maps.detach().float().cpu(), batch.size)
