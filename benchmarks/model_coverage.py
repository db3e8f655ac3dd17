"""Which layer is chosen where none is named, on every classifier of torchvision, timm and transformers.

All classifiers of torchvision, the smallest model of every module of timm, and every image classifier of transformers
from its default config, with random weights. Two random images go through each; a head that starts at zero is drawn
anew, since it would hide everything. Shown are the layer and its grid; whether the gradient there is finite, not zero
and the map not empty for both images; what choosing cost, in forwards of the two images without gradients; and, where
``community_layers.csv`` names a layer that people use, whether the map there is the same.

    python benchmarks/model_coverage.py --markdown docs/model_coverage.md    # half an hour on one core
    python benchmarks/model_coverage.py --only timm --match vit
"""

from __future__ import annotations

import argparse
import csv
import gc
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lightning_gradcam import Batch, gradcam
from lightning_gradcam.attribution.capture import Capture, capture
from lightning_gradcam.attribution.choice import locate_layers
from lightning_gradcam.attribution.layers import find_layer
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import predicted

HERE = Path(__file__).parent
# Image classifiers of transformers that are not tried: by kind or class.
LEFT_OUT = {
    "dinat": "needs the package natten, of which PyPI has no wheel for CPUs",
    "imagegpt": "takes colour clusters, not images",
    "shieldgemma2": "is a language model",
    "siglip2": "takes patches that are cut outside the model",
    "timm_wrapper": "is a model of timm",
    "PerceiverForImageClassificationFourier": "does not build from its default config",
    "PerceiverForImageClassificationConvProcessing": "does not build from its default config",
}

# Why another layer is chosen than the source of a row in community_layers.csv has.
DIFFERENT = {
    "alexnet": "the source looks before the last max pooling; those for VGG look behind it",
    "densenet201": "the last block lacks the norm that follows it, which sources take for the smaller DenseNets",
    "shufflenet_v2_x1_0": "the source takes the convolution before its norm and activation",
    "efficientnet_b4": "the source takes the convolution before its norm and activation",
    "resmlp_24_224": "the source looks before the last norm, whose patches the head averages",
    "swin_t": "the source takes a norm inside the last block, around which a skip connection goes",
    "swin_tiny_patch4_window7_224": "as swin_t; for the Swin of transformers the same author takes the last norm",
    "swin_base_patch4_window7_224": "as swin_t; for the Swin of transformers the same author takes the last norm",
    "CLIPForImageClassification": "the source's model reads the class token, this classifier averages the patches",
    "CvtForImageClassification": "the source takes the block before the last, not the norm that reads it",
    "ViTForImageClassification": "the source takes the block before the last, not the norm that reads it",
    "Dinov2ForImageClassification": "the source looks before the last norm, whose patches the head averages",
}

Model = tuple[str, Callable[[], tuple[nn.Module, int]]]  # a name, and what builds it and knows its images' side


def torchvision_models() -> Iterator[Model]:
    def build(name: str) -> tuple[nn.Module, int]:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        side = 299 if name == "inception_v3" else 224
        return torchvision.models.get_model(name, weights=None, **options), side

    for name in torchvision.models.list_models(module=torchvision.models):
        yield name, partial(build, name)


def timm_models(more: set[str]) -> Iterator[Model]:
    """The smallest model of every module, and those in ``more``."""
    import timm

    def parameters(name: str) -> int:
        with torch.device("meta"):
            try:
                return sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            except (RuntimeError, NotImplementedError):  # a constructor that computes with values
                return 10**12

    def build(name: str) -> tuple[nn.Module, int]:
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        side = config.input_size[-1]
        if side > 256:
            with suppress(TypeError):  # most transformers take any side, to save time
                return timm.create_model(name, img_size=224), 224
        return timm.create_model(name), side

    for module in timm.list_modules():
        names = timm.list_models(module=module)
        for name in sorted({min(names, key=parameters)} | (more & set(names))):
            yield name, partial(build, name)


def transformers_models() -> Iterator[Model]:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    def build(name: str) -> tuple[nn.Module, int]:
        model_class = getattr(transformers, name)
        config = model_class.config_class()
        side = getattr(config, "image_size", None) or 224
        return model_class(config), side if isinstance(side, int) else side[0]

    for kind, names in CLASSES.items():
        for name in (names,) if isinstance(names, str) else names:
            if kind not in LEFT_OUT and name not in LEFT_OUT:
                yield name, partial(build, name)


@torch.no_grad()
def wake(model: nn.Module) -> None:
    """Draw heads anew that start at zero, and let norms and scales do something, so that layers around them differ."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    for parameter in model.parameters():
        if parameter.numel() == max(parameter.shape, default=1):  # one value a channel
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn_like(buffer))


@torch.no_grad()
def seconds_of_forward(model: nn.Module, images: Tensor) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        model(images)
        times.append(time.perf_counter() - started)
    return min(times)


def score(output: Any, batch: Batch) -> Tensor:
    """The logit of the predicted class; PP-LCNet of transformers hands out its logits under another name."""
    return predicted(getattr(output, "last_hidden_state", output) if not hasattr(output, "logits") else output, batch)


def close(maps: Tensor, others: Tensor) -> bool:
    """Whether two layers hand out the same tensor: equal up to rounding, since it may lie in memory in another way."""
    atol = 1e-5 * maps.abs().max().item()
    return maps.shape == others.shape and torch.allclose(maps, others, rtol=1e-4, atol=atol)


def look(build: Callable[[], tuple[nn.Module, int]], named: list[str]) -> dict[str, Any]:
    torch.manual_seed(0)
    model, side = build()
    wake(model.eval())
    images = torch.randn(2, 3, side, side)
    batch = Batch(images)

    stand_in = StandIn(model)

    def choose(model: nn.Module) -> tuple[str, Any]:
        found = locate_layers(model, (), None, batch, lambda batch: model(batch.images), score)
        return next(iter(found.layouts.items()))

    cost = seconds_of_forward(model, images)
    started = time.perf_counter()
    name, layout = stand_in.look(choose)
    cost = (time.perf_counter() - started) / cost

    def read(model: nn.Module) -> Capture:
        return capture(dict([find_layer(model, name)]), lambda: model(images), lambda output: score(output, batch))

    seen = stand_in.look(read)
    gradient = seen.gradients[name].flatten(1)
    h, w = layout(seen.gradients[name]).shape[2:]
    maps = gradcam(model, images, name, score)
    row = {
        "layer": name,
        "grid": f"{h} x {w}",
        "finite": bool(gradient.isfinite().all()),
        "alive": bool((gradient != 0).any(1).all()),
        "not empty": bool((maps != 0).flatten(1).any(1).all()),
        "cost": cost,
    }
    if named:
        same = [layer for layer in named if close(gradcam(model, images, layer, score), maps)]
        row["named"] = named[0]
        row["same"] = "yes" if named[0] in same else "as others" if same else "no"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["torchvision", "timm", "transformers"])
    parser.add_argument("--match", default="", help="only models with this in their name")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--markdown", type=Path, help="where to write the table")
    where.add_argument("--quick", action="store_true", help="one model of each library, to see that it still runs")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    with open(HERE / "community_layers.csv", newline="") as file:
        community = {
            (row["library"], row["model"]): [row["layer"], *filter(None, row["also"].split(";"))]
            for row in csv.DictReader(file)
        }
    models = {
        "torchvision": torchvision_models,
        "timm": lambda: timm_models({name for library, name in community if library == "timm"}),
        "transformers": transformers_models,
    }
    rows = []
    for library, find in models.items():
        found = find() if args.only in (None, library) else ()
        matching = (model for model in found if args.match in model[0])
        for name, build in islice(matching, 1 if args.quick else None):
            try:
                row = look(build, community.get((library, name), []))
            except Exception as error:
                if args.quick:
                    raise
                row = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            rows.append({"library": library, "model": name, **row})
            print(*rows[-1].values(), flush=True)
            gc.collect()
    text = summary(rows)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)


def summary(rows: list[dict[str, Any]]) -> str:
    """Counts, the rows that differ from what people use, and all rows, in markdown."""
    checks = ("finite", "alive", "not empty")
    lines = [
        "# Which layer is chosen where none is named",
        "",
        "Made by `benchmarks/model_coverage.py`, with random weights and two random images a model. Finite and alive",
        "is the gradient of the predicted class at the layer; a map is empty where all its cells are zero, as for",
        "networks whose activations vanish with random weights. What people use, with sources, stands in",
        "[community_layers.csv](../benchmarks/community_layers.csv), which is older than the rule.",
        "",
    ]
    lines += [
        "| library | models | run | finite | alive | not empty | choosing, in forwards (median) |",
        "|---" * 7 + "|",
    ]
    for library in dict.fromkeys(row["library"] for row in rows):
        tried = [row for row in rows if row["library"] == library]
        run = [row for row in tried if "error" not in row]
        counts = [sum(row[check] for row in run) for check in checks]
        cost = median(row["cost"] for row in run) if run else float("nan")
        lines.append("| " + " | ".join(map(str, [library, len(tried), len(run), *counts, f"{cost:.1f}"])) + " |")
    compared = [row for row in rows if "same" in row]
    if compared:
        same = sum(row["same"] == "yes" for row in compared)
        others = sum(row["same"] == "as others" for row in compared)
        lines += [
            "",
            f"Of {len(compared)} models for which somebody names a layer, it is the same tensor for {same}, and for "
            f"{others} more that of other sources. The rest, and why:",
        ]
        lines += ["", "| model | people use | chosen | why |", "|---" * 4 + "|"]
        for row in compared:
            if row["same"] != "yes":
                why = DIFFERENT.get(row["model"], "")
                lines.append(f"| {row['model']} | `{row['named']}` | `{row['layer']}` | {why} |")
    lines += ["", "| library | model | layer | grid | " + " | ".join(checks) + " | people use |", "|---" * 8 + "|"]
    for row in rows:
        if "error" in row:
            cells = [row["library"], row["model"], row["error"], *[""] * 5]
        else:
            marks = ["yes" if row[check] else "**no**" for check in checks]
            used = {"yes": "this", "as others": "this, or another", "no": "another"}.get(row.get("same", ""), "")
            cells = [row["library"], row["model"], f"`{row['layer']}`", row["grid"], *marks, used]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
