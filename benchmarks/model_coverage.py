"""Which layer is chosen where none is named: classifiers of torchvision, timm and transformers, of clips and volumes.

All classifiers of torchvision, the smallest model of every module of timm, and every image classifier of transformers
from its default config, with random weights. Two random images go through each; a head that starts at zero is drawn
anew, since it would hide everything. Shown are the layer and its grid; whether the gradient there is finite, not zero
and the map not empty for both images; what choosing cost, in forwards of the two images without gradients; and, where
``community_layers.csv`` names a layer that people use, whether the map there is the same.

Networks for clips, volumes and signals are those of torchvision, transformers, MONAI and vit-pytorch, the latter three
small. Of them it is shown too whether the map at the chosen layer is that of captum, or where captum cannot read the
layer, what the formula gives; which model does not tell the order of the axes; and which grid is called coarse.

    python benchmarks/model_coverage.py --markdown docs/model_coverage.md    # three quarters of an hour on one core
    python benchmarks/model_coverage.py --only axes                          # clips, volumes and signals: ten minutes
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
from lightning_gradcam.attribution.axes import with_axes
from lightning_gradcam.attribution.capture import Capture, capture
from lightning_gradcam.attribution.choice import Located, locate_layers
from lightning_gradcam.attribution.layers import find_layer
from lightning_gradcam.attribution.layout import Layout, channels_first, first_tensor
from lightning_gradcam.attribution.reading import AskError
from lightning_gradcam.attribution.spatial import in_words
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

Shape = tuple[int, ...]  # of an image
Model = tuple[str, Callable[[], tuple[nn.Module, Shape]]]  # a name, and what builds it and knows its images' shape


def torchvision_models() -> Iterator[Model]:
    def build(name: str) -> tuple[nn.Module, Shape]:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        side = 299 if name == "inception_v3" else 224
        return torchvision.models.get_model(name, weights=None, **options), (3, side, side)

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

    def build(name: str) -> tuple[nn.Module, Shape]:
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        side = config.input_size[-1]
        if side > 256:
            with suppress(TypeError):  # most transformers take any side, to save time
                return timm.create_model(name, img_size=224), (3, 224, 224)
        return timm.create_model(name), (3, side, side)

    for module in timm.list_modules():
        names = timm.list_models(module=module)
        for name in sorted({min(names, key=parameters)} | (more & set(names))):
            yield name, partial(build, name)


def transformers_models() -> Iterator[Model]:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    def build(name: str) -> tuple[nn.Module, Shape]:
        model_class = getattr(transformers, name)
        config = model_class.config_class()
        side = getattr(config, "image_size", None) or 224
        side = side if isinstance(side, int) else side[0]
        return model_class(config), (3, side, side)

    for kind, names in CLASSES.items():
        for name in (names,) if isinstance(names, str) else names:
            if kind not in LEFT_OUT and name not in LEFT_OUT:
                yield name, partial(build, name)


def models_with_other_axes() -> Iterator[Model]:
    """Networks for clips, volumes and signals, each as ``library: name``."""

    def build_of_torchvision(name: str) -> tuple[nn.Module, Shape]:
        small = (3, 8, 112, 112)
        whole = name in ("s3d", "mvit_v1_b", "mvit_v2_s")  # these take no other size
        return torchvision.models.get_model(name, weights=None), (3, 16, 224, 224) if whole else small

    for name in torchvision.models.list_models(module=torchvision.models.video):
        yield f"torchvision: {name}", partial(build_of_torchvision, name)
    yield from _of_transformers()
    yield from _of_monai()
    yield from _of_vit_pytorch()


def _of_transformers() -> Iterator[Model]:
    import transformers

    clip = (8, 3, 64, 64)  # frames before channels
    small = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 16}
    sized = {"image_size": 64, "num_frames": 8, "intermediate_size": 192}
    predictor = {f"pred_{key}": value for key, value in small.items() if key != "patch_size"}
    options: dict[str, dict[str, Any]] = {
        "Timesformer": sized,
        "VideoMAE": sized,
        "Vivit": sized | {"tubelet_size": [2, 16, 16]},
        "VJEPA2": {"crop_size": 64, "frames_per_clip": 8, "mlp_ratio": 2, "num_pooler_layers": 2, **predictor},
    }
    for name, more in options.items():
        model_class = getattr(transformers, f"{name}ForVideoClassification")
        yield (
            f"transformers: {model_class.__name__}",
            lambda of=model_class, more=more: (of(of.config_class(**small, **more)), clip),
        )


def _of_monai() -> Iterator[Model]:
    from monai.networks import nets  # pyright: ignore[reportMissingImports]

    for axes, shape in ((3, (1, 64, 64, 64)), (1, (1, 1024))):
        plain: dict[str, Any] = {"spatial_dims": axes, "in_channels": 1}
        shallow: dict[str, Any] = {"in_shape": shape, "channels": (8, 16, 32), "strides": (2, 2, 2)}
        resnet = {"spatial_dims": axes, "n_input_channels": 1, "num_classes": 5}
        found: dict[str, Callable[[], nn.Module]] = {
            "DenseNet121": partial(nets.DenseNet121, **plain, out_channels=5),
            "SEResNet50": partial(nets.SEResNet50, **plain, num_classes=5),
            "EfficientNetBN": partial(nets.EfficientNetBN, "efficientnet-b0", pretrained=False, num_classes=5, **plain),
            "resnet18": partial(nets.resnet18, **resnet),
            "resnet50": partial(nets.resnet50, **resnet),
            "Classifier": partial(nets.Classifier, classes=5, **shallow),
            "Regressor": partial(nets.Regressor, out_shape=1, **shallow),
        }
        if axes == 3:
            sizes: dict[str, Any] = {"img_size": shape[1:], "patch_size": (16, 16, 16), "hidden_size": 96}
            sizes |= {"mlp_dim": 192, "num_layers": 4, "num_heads": 4, "classification": True, "num_classes": 5}
            found["ViT"] = partial(nets.ViT, in_channels=1, **sizes)
        for name, make in found.items():
            yield f"MONAI: {name}", lambda make=make, shape=shape: (make(), shape)


def _of_vit_pytorch() -> Iterator[Model]:
    from vit_pytorch import cct_3d, simple_vit_1d, simple_vit_3d, vit_1d, vit_3d, vivit  # pyright: ignore[reportMissingImports]

    small = {"num_classes": 5, "dim": 96, "heads": 4, "mlp_dim": 192}
    in_1d = {"seq_len": 256, "patch_size": 16, "depth": 4, **small}
    in_3d = {"image_size": 64, "image_patch_size": 16, "frames": 8, "frame_patch_size": 2, **small}
    convolutions = {"n_conv_layers": 2, "kernel_size": 3, "stride": 2, "padding": 1, "num_layers": 4, "num_heads": 4}
    found: dict[str, Callable[[], nn.Module]] = {
        "vit_1d": partial(vit_1d.ViT, **in_1d),
        "simple_vit_1d": partial(simple_vit_1d.SimpleViT, **in_1d),
        "vit_3d": partial(vit_3d.ViT, depth=4, **in_3d),
        "simple_vit_3d": partial(simple_vit_3d.SimpleViT, depth=4, **in_3d),
        "vivit": partial(vivit.ViViT, spatial_depth=2, temporal_depth=2, **in_3d),
        "cct_3d": partial(cct_3d.CCT, img_size=64, num_frames=8, embedding_dim=96, num_classes=5, **convolutions),
    }
    for name, make in found.items():
        yield (
            f"vit-pytorch: {name}",
            lambda make=make, name=name: (make(), (3, 256) if "1d" in name else (3, 8, 64, 64)),
        )


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


def by_captum(model: nn.Module, name: str, images: Tensor, batch: Batch) -> Tensor:
    from captum.attr import LayerGradCam

    explained = LayerGradCam(lambda images: score(model(images), batch), model.get_submodule(name))
    maps: Any = explained.attribute(images)
    return maps[:, 0].detach()


def by_formula(model: nn.Module, name: str, layout: Layout, images: Tensor, batch: Batch) -> Tensor:
    """The mean over cells of the gradient times the activation, of which both are read by a hook."""
    path, _, call = name.partition("#")
    found: list[Any] = []
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: found.append(output))
    scores = score(model(images), batch)
    handle.remove()
    activation = first_tensor(found[int(call or len(found)) - 1])
    (gradient,) = torch.autograd.grad(scores.sum(), activation)
    alpha = layout(gradient).flatten(2).mean(2)
    return torch.einsum("nk,nk...->n...", alpha, layout(activation)).detach()


def order_of_axes(model: nn.Module, images: Tensor) -> tuple[Batch, bool]:
    """The images as the model reads them, and whether it does not tell; then they are ``(n, c, t, H, W)``."""
    try:
        return with_axes(model, Batch(images), lambda batch: model(batch.images))[0], False
    except AskError:
        return Batch(images, time_axis=2), True


def look(build: Callable[[], tuple[nn.Module, Shape]], named: list[str]) -> dict[str, Any]:
    torch.manual_seed(0)
    model, shape = build()
    wake(model.eval())
    images = torch.randn(2, *shape)
    stand_in = StandIn(model)
    batch, asks = stand_in.look(lambda model: order_of_axes(model, images))

    def choose(model: nn.Module) -> Located:
        return locate_layers(model, (), None, batch, lambda batch: model(batch.images), score)

    cost = seconds_of_forward(model, images)
    started = time.perf_counter()
    chosen = stand_in.look(choose)
    cost = (time.perf_counter() - started) / cost
    name, layout = next(iter(chosen.layouts.items()))
    assert layout is not None

    def read(model: nn.Module) -> Capture:
        return capture(dict([find_layer(model, name)]), lambda: model(images), lambda output: score(output, batch))

    seen = stand_in.look(read)
    gradient = seen.gradients[name].flatten(1)
    maps = gradcam(model, images, name, score, time_axis=batch.time_axis)
    row = {
        "layer": name,
        "grid": in_words(maps.shape[1:]),
        "finite": bool(gradient.isfinite().all()),
        "alive": bool((gradient != 0).any(1).all()),
        "not empty": bool((maps != 0).flatten(1).any(1).all()),
        "cost": cost,
    }
    if len(shape) != 3:
        captum = layout is channels_first and "#" not in name
        other = by_captum(model, name, images, batch) if captum else by_formula(model, name, layout, images, batch)
        row["equal"] = close(maps, other)
        row |= {"images": in_words(shape), "to": "captum" if captum else "formula", "asks": asks, "notes": chosen.notes}
    if named:
        same = [layer for layer in named if close(gradcam(model, images, layer, score), maps)]
        row["named"] = named[0]
        row["same"] = "yes" if named[0] in same else "as others" if same else "no"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["torchvision", "timm", "transformers", "axes"])
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
        "axes": models_with_other_axes,
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
    flat = [row for row in rows if row["library"] != "axes"]
    others = [row for row in rows if row["library"] == "axes"]
    text = "\n".join([*([summary(flat)] if flat else []), *([summary_of_other_axes(others)] if others else [])])
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


def summary_of_other_axes(rows: list[dict[str, Any]]) -> str:
    """Of the models for clips, volumes and signals: all rows, in markdown."""
    lines = [
        "## Clips, volumes and signals",
        "",
        "With random weights and two random samples a model. The map at the chosen layer is compared with captum's, or",
        "where captum cannot read the layer, with the formula. `time_axis` is asked for where no convolution tells it.",
        "",
        "| model | images | layer | grid | alive | not empty | equal to "
        "| `time_axis` | choosing, in forwards | few cells |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        if "error" in row:
            cells = [row["model"], row["error"], *[""] * 8]
        else:
            alive, full = ("yes" if row[check] else "**no**" for check in ("alive", "not empty"))
            same = row["to"] if row["equal"] else f"**not** {row['to']}"
            order = "asked for" if row["asks"] else ""
            finer = "; ".join(note.partition("; ")[2].partition(", give")[0] or "yes" for note in row["notes"])
            cost = f"{row['cost']:.1f}"
            cells = [
                row["model"],
                row["images"],
                f"`{row['layer']}`",
                row["grid"],
                alive,
                full,
                same,
                order,
                cost,
                finer,
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
