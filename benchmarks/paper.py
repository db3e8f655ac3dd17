"""The figures of docs/paper.md: the protocols of the Grad-CAM paper on the digits that are held out.

It trains the two networks of `examples/digits_on_photos.py` and measures them on 400 held-out pictures of 48 px,
without the tag; the map of the chosen layer has 12 x 12 cells. Then it trains the models of `captioning.py` and
`vqa.py`. Groups have an example of their own, `bias.py`, which prints its figures.

    python benchmarks/paper.py   # six minutes on two cores
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import captioning
import digits_on_photos as example
import scenes
import vqa

from lightning_gradcam import Batch, TopTarget, gradcam, guided_backprop, guided_gradcam
from lightning_gradcam.attribution.regions import box_masks
from lightning_gradcam.metrics.faithfulness import deletion, insertion, occlusion_correlation
from lightning_gradcam.metrics.localization import mass
from lightning_gradcam.metrics.protocols import (
    class_average,
    localization_errors,
    max_box_acc_v2,
    pointing_game,
    pointing_game_with_rejection,
    pxap,
)
from lightning_gradcam.metrics.randomization import randomization

SIZE = (example.SIZE, example.SIZE)


def train(run: str, epochs: int) -> example.Classifier:
    example.seed_everything(0)
    model = example.Classifier()
    with tempfile.TemporaryDirectory() as folder:
        logger = example.TensorBoardLogger(folder, name="", version=run)
        example.fit(model, run, logger, epochs)
    return model.eval().requires_grad_(False)


def show(what: str, *values: float | Tensor) -> None:
    print(f"{what:64}" + "".join(f"{float(value):10.3g}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    epochs, epochs_of_captions, epochs_of_answers = 15, 22, 16
    if parser.parse_args().quick:
        epochs = epochs_of_captions = epochs_of_answers = 1
        example.DigitsOnPhotos.__len__ = lambda self: 20  # the scenes inherit it
    torch.set_num_threads(1)
    strong = train("strong", epochs)
    images, labels, boxes, _ = next(iter(DataLoader(example.DigitsOnPhotos("no"), batch_size=400))).values()
    batch, masks = Batch(images, labels), box_masks(boxes, SIZE)
    maps = gradcam(strong, images, target="label", labels=labels)
    print(f"\n{len(images)} held-out pictures, maps of {tuple(maps.shape[1:])} cells, a digit's box of", end=" ")
    print(f"{masks.mean():.3f} of the picture\n")

    cam = gradcam(strong, images, target="label", method="cam", labels=labels)
    logits = strong(images).gather(1, labels[:, None])[:, 0]
    show("CAM and Grad-CAM times Z, largest relative difference", (cam - 144 * maps).abs().max() / cam.abs().max())
    show(
        "sum of the map and bias against the logit, largest difference",
        (maps.sum((1, 2)) + strong.head.bias[labels] - logits).abs().max(),
    )

    top = gradcam(strong, images, target=TopTarget(5))
    classes = strong(images).topk(5).indices
    for key, value in localization_errors(top, classes, labels, boxes, SIZE).items():
        show(key + ", %", 100 * value)
    variants = {
        "absolute gradients": gradcam(strong, images, target=TopTarget(1), method=absolute),
        "largest gradients": gradcam(strong, images, target=TopTarget(1), method=largest),
        "without ReLU, from the least value on": top[:, :1] - top[:, :1].amin((2, 3), keepdim=True),
    }
    for name, one in variants.items():
        error = localization_errors(one, classes[:, :1], labels, boxes, SIZE)["localization_error_top1"]
        show(f"localization_error_top1, {name}, %", 100 * error)
    show("MaxBoxAccV2, PxAP, of a uniform map", max_box_acc_v2(maps, boxes, SIZE), pxap(maps, masks), masks.mean())
    for tolerance in (0, 3):
        hits = class_average(pointing_game(maps, masks, tolerance), labels)
        show(f"pointing game, tolerance {tolerance} px, %", 100 * hits)
    present = classes == labels[:, None]
    shown = torch.where(present[..., None, None], masks[:, None], 0)
    peaks = top.flatten(2).amax(2)
    half = len(images) // 2
    candidates = peaks[:half].flatten().quantile(torch.linspace(0, 1, 41))
    scores = [pointing_game_with_rejection(top[:half], shown[:half], one, 0).mean() for one in candidates.tolist()]
    threshold = float(candidates[torch.stack(scores).argmax()])
    hits = pointing_game_with_rejection(top[half:], shown[half:], threshold, 0)
    show("pointing game with rejection, threshold of the first half, %", 100 * hits.mean())
    hits = pointing_game_with_rejection(top[half:], shown[half:], -torch.inf, 0)
    show("the same without a threshold, %", 100 * hits.mean())

    ways = {
        "Grad-CAM": maps,
        "Guided Grad-CAM": guided_gradcam(strong, images, target="label", labels=labels).abs().sum(1),
        "Guided Backpropagation": guided_backprop(strong, images, target="label", labels=labels).abs().sum(1),
    }
    blurred = lambda images: F.avg_pool2d(F.pad(images, (7, 7, 7, 7), mode="replicate"), 15, 1)  # noqa: E731
    for name, one in ways.items():
        correlation = occlusion_correlation(strong, batch, one, patch=6).nanmean()
        areas = deletion(strong, batch, one).nanmean(), insertion(strong, batch, one, baseline=blurred).nanmean()
        show(f"{name}: occlusion correlation, deletion, insertion", correlation, *areas)
    steps = randomization(strong, Batch(images[:100], labels[:100]))
    show(f"randomised weights: rank correlation after {', '.join(steps)}", *(one.nanmean() for one in steps.values()))

    two = gradcam(strong, images, target=TopTarget(2))
    against = mass(-two[:, 1], masks).nanmean()
    show("counterfactual map of the second class: share on the digit", against)

    wrong = (labels + 5) % 10
    changed = images.clone()
    for _ in range(20):
        changed.requires_grad_()
        loss = F.cross_entropy(strong(changed), wrong)
        changed = (changed - 0.003 * torch.autograd.grad(loss, changed)[0].sign()).detach()
    fooled = strong(changed).softmax(1).gather(1, wrong[:, None])[:, 0]
    after = gradcam(strong, changed, target="label", labels=labels)
    show("adversarial: confidence in the wrong digit, largest change", fooled.median(), (changed - images).abs().max())
    show(
        "share of the label's map on the digit, before and after",
        mass(maps, masks).nanmean(),
        mass(after, masks).nanmean(),
    )
    show(
        "pointing of the label's map, before and after, %",
        *(100 * pointing_game(one, masks, 0).nanmean() for one in (maps, after)),
    )

    tagged, labels, boxes, tag = next(iter(DataLoader(example.DigitsOnPhotos("right"), batch_size=400))).values()
    weak = train("weak", epochs)
    both = (weak(tagged).argmax(1) == labels) & (strong(tagged).argmax(1) == labels)
    for name, model in (("weak", weak), ("strong", strong)):
        found = gradcam(model, tagged, target="label", labels=labels)[both]
        inside = mass(found, box_masks(boxes, SIZE)[both]).nanmean(), mass(found, box_masks(tag, SIZE)[both]).nanmean()
        show(f"both right ({int(both.sum())}): {name}, share of the map on digit and tag", *inside)

    language(epochs, epochs_of_captions, epochs_of_answers)


def absolute(activations: Tensor, gradients: Tensor) -> Tensor:
    return (gradients.abs().mean((2, 3), keepdim=True) * activations).sum(1)


def largest(activations: Tensor, gradients: Tensor) -> Tensor:
    return (gradients.amax((2, 3), keepdim=True) * activations).sum(1)


def language(epochs: int, epochs_of_captions: int, epochs_of_answers: int) -> None:
    """Captions and questions, on 100 held-out scenes of two digits."""
    example.seed_everything(0)
    captioner = captioning.Captioner(scenes.trained_features(epochs))
    answerer = vqa.Answerer(scenes.trained_features(epochs))
    for model, epochs in ((captioner, epochs_of_captions), (answerer, epochs_of_answers)):
        scenes.fit(model, scenes.Scenes(train=True), scenes.Scenes(), False, epochs, [])
        model.eval().requires_grad_(False)
    held_out = {name: values[:100] for name, values in scenes.held_out().items()}
    size = (scenes.SIDE, scenes.SIDE)

    words, whole = captioning.read_words(held_out), captioning.read_captions(held_out)
    digit = box_masks(words.regions["digit"], size)
    ask = scenes.Asked(captioner, words, captioning.say_word)
    maps = gradcam(ask, words.images, target="label", labels=words.labels)
    print()
    show("a word: activation inside by that outside its digit", inside_by_outside(maps, digit))
    show(
        "a word: pointing of the maps, of a uniform map, %",
        100 * pointing_game(maps, digit, 0).nanmean(),
        100 * digit.mean(),
    )

    def caption_score(output: Tensor, batch: Batch) -> Tensor:
        return output.gather(2, whole.inputs[: len(output), :, None]).sum((1, 2))

    ask = scenes.Asked(captioner, whole, captioning.say_caption)
    maps = gradcam(ask, whole.images, target=caption_score)
    show("a caption: activation inside by that outside the digits", inside_by_outside(maps, whole.regions["digits"]))

    rows = vqa.read_batch(held_out)
    ask = scenes.Asked(answerer, rows, vqa.answer)
    maps = gradcam(ask, rows.images, target="label", labels=rows.labels)
    fine = guided_backprop(ask, rows.images, target="label", labels=rows.labels).abs().sum(1)
    for name, one in (("Grad-CAM", maps), ("Guided Backpropagation", fine)):
        found = occlusion_correlation(answerer, rows, one, patch=8, forward_fn=vqa.answer).nanmean()
        show(f"an answer: {name}, correlation with occlusion", found)


def inside_by_outside(maps: Tensor, masks: Tensor) -> Tensor:
    """The mean activation inside a region by that outside, over the samples."""
    share, area = mass(maps, masks), masks.mean((1, 2))
    return ((share / area) / ((1 - share) / (1 - area)).clamp_min(1e-6)).nanmedian()


if __name__ == "__main__":
    main()
