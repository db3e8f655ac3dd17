"""What one Grad-CAM capture costs in time and memory, as a multiple of one plain forward without gradients.

Compared are this package, captum, torchcam and pytorch-grad-cam, each used as its documentation shows, on the same
layer, batch and labels. What is timed is capture and map, not the building of the model. Before any timing the four
maps of each model are checked to be the same.

Time: each repeat runs the forward and all four libraries one after the other, in an order drawn anew, and gives the
ratio of each to the forward of that repeat. Shown is the median ratio, with the smallest and the largest.

Memory: each pair of a model and a library runs in processes of its own, of which the median counts. Each imports the
same packages, builds the same model and batch, then captures (or only runs the forward) twice. Its peak is the
``VmHWM`` of Linux, read once the batch stands and, reset there, once more at the end. ``ru_maxrss`` is the same
figure, but in a child process it starts from the parent's.

    python benchmarks/capture_cost.py
    python benchmarks/capture_cost.py --models ResNet-18 --repeats 3 --skip-memory
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
import torch.nn.functional as F
from captum._utils.gradient import compute_layer_gradients_and_eval
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchcam.methods import GradCAM as TorchcamGradCAM
from torchvision import models

from lightning_gradcam import Batch
from lightning_gradcam.attribution.functional import attribute
from lightning_gradcam.attribution.layers import find_layer
from lightning_gradcam.attribution.layout import Layout, Tokens, channels_first
from lightning_gradcam.attribution.methods import gradcam
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import label

PIXELS = 224


@dataclass(frozen=True)
class Task:
    """A model, the layer to look at, how its output lies on the image, and a batch to look at it with."""

    model: nn.Module
    name: str
    layer: nn.Module
    layout: Layout
    images: Tensor
    labels: Tensor
    stand_in: StandIn


def vit_b_16(**options: Any) -> nn.Module:
    """torchvision starts its last layer at zero, which gives no gradient and so no map."""
    model = models.vit_b_16(**options)
    nn.init.normal_(model.get_parameter("heads.head.weight"), std=0.02)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], str, Layout]] = {
    "ResNet-18": (models.resnet18, "layer4", channels_first),
    "ResNet-50": (models.resnet50, "layer4", channels_first),
    "MobileNetV3-L": (models.mobilenet_v3_large, "features", channels_first),
    "ViT-B/16": (vit_b_16, "encoder.layers[-1].ln_1", Tokens((14, 14))),
}


def build(name: str, samples: int) -> Task:
    torch.manual_seed(0)
    make, layer, layout = MODELS[name]
    model = make().eval()
    images = torch.randn(samples, 3, PIXELS, PIXELS)
    return Task(
        model, *find_layer(model, layer), layout, images, torch.randint(1000, (samples,)), StandIn(model, kept=True)
    )


@torch.no_grad()
def forward(task: Task) -> Tensor:
    return task.model(task.images)


def ours(task: Task) -> Tensor:
    """As the callback does it, which clones the batch and keeps the stand-in."""

    def look(model: nn.Module) -> Tensor:
        def run(batch: Batch) -> Tensor:
            return model(batch.images.clone())

        batch = Batch(task.images, task.labels)
        return attribute(model, batch, {task.name: task.layout}, run, Question(label), gradcam).maps[task.name]

    return task.stand_in.look(look)


def captum(task: Task) -> Tensor:
    """Tokens take the call inside ``LayerGradCam``, which itself can only average over all but the second axis."""
    if task.layout is channels_first:
        maps = LayerGradCam(task.model, task.layer).attribute(task.images, task.labels)
        return cast(Tensor, maps)[:, 0].detach()  # a tuple only for layers that hand out several
    (gradients,), (activations,) = compute_layer_gradients_and_eval(task.model, task.layer, task.images, task.labels)
    return gradcam(task.layout(activations), task.layout(gradients)).detach()


def torchcam(task: Task) -> Tensor:
    with TorchcamGradCAM(task.model, task.layer, reshape_transform=task.layout) as extractor:
        scores = task.model(task.images)
        return extractor(task.labels.tolist(), scores, normalized=False)[0]


def grad_cam(task: Task) -> Tensor:
    targets: list[Any] = [ClassifierOutputTarget(index) for index in task.labels.tolist()]
    with GradCAM(task.model, [task.layer], reshape_transform=task.layout) as extractor:
        return torch.from_numpy(extractor(task.images, targets))


LIBRARIES: dict[str, Callable[[Task], Tensor]] = {
    "ours": ours,
    "captum": captum,
    "torchcam": torchcam,
    "grad-cam": grad_cam,
}
RUNS = {"forward": forward, **LIBRARIES}


def check_same_maps(task: Task) -> None:
    """Refuse to compare libraries that compute different things, once all maps have grad-cam's size and scale."""
    expected = None
    for name, run in LIBRARIES.items():
        resized = F.interpolate(unit(run(task).relu())[:, None], (PIXELS, PIXELS), mode="bilinear")
        picture = unit(resized[:, 0])
        expected = picture if expected is None else expected
        assert expected.any(), "every map is empty, which compares nothing"
        torch.testing.assert_close(picture, expected, atol=1e-3, rtol=0, msg=f"{name} gives other maps")


def unit(maps: Tensor) -> Tensor:
    """Each map ``(n, h, w)`` from 0 to 1."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)


def measure_time(name: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each run in each repeat."""
    task = build(name, options.samples)
    check_same_maps(task)
    seconds: dict[str, list[float]] = {run: [] for run in RUNS}
    shuffle = random.Random(0).shuffle  # a fixed order would give each run always the same predecessor
    for _ in range(options.warmup + options.repeats):
        order = list(RUNS)
        shuffle(order)
        for run in order:
            gc.collect()
            started = perf_counter()
            RUNS[run](task)
            seconds[run].append(perf_counter() - started)
            task.model.zero_grad()  # grad-cam fills the parameters' gradients
    return {run: values[options.warmup :] for run, values in seconds.items()}


def peak() -> int:
    """The largest resident memory of this process since its start or the last :func:`reset_peak`, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024  # from kB


def reset_peak() -> None:
    """Let the peak start again from what is resident now: ``proc(5)``, ``clear_refs``."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_of_this_process(name: str, run: str, samples: int, times: int) -> dict[str, int]:
    """Peak memory in MiB: of the whole process, and of it what came on top of the model and its batch."""
    task = build(name, samples)
    gc.collect()
    before = peak()
    reset_peak()
    built = peak()
    for _ in range(times):
        RUNS[run](task)
    after = peak()
    return {"process": max(before, after), "capture": after - built}


def measure_memory(name: str, runs: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The result of :func:`memory_of_this_process` of each run, each in fresh processes of which the median counts."""
    result = {}
    for run in runs:
        settings = ["--samples", options.samples, "--captures", options.captures, "--threads", options.threads]
        command = [sys.executable, __file__, "--child", name, run, *map(str, settings)]
        seen = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(options.processes)
        ]
        result[run] = {part: median(one[part] for one in seen) for part in seen[0]}
    return result


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [["model", *header], ["---"] + ["---:"] * len(header), *rows]
    return "\n".join([f"\n**{title}**\n", *("| " + " | ".join(line) + " |" for line in lines)])


def time_row(name: str, seconds: dict[str, list[float]]) -> list[str]:
    row = [name, f"{median(seconds['forward']) * 1000:.0f}"]
    for library in LIBRARIES:
        ratios = [ours / plain for ours, plain in zip(seconds[library], seconds["forward"], strict=True)]
        row.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return row


def memory_row(name: str, memory: dict[str, dict[str, float]], part: str) -> list[str]:
    plain, *others = (of_run[part] for of_run in memory.values())
    return [name, f"{plain:.0f}", *(f"{other / plain:.2f}" for other in others)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--samples", type=int, default=16, help="images in the batch")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of everything")
    parser.add_argument("--warmup", type=int, default=1, help="runs of everything before these")
    parser.add_argument("--processes", type=int, default=3, help="processes of each model and library, for the memory")
    parser.add_argument("--captures", type=int, default=2, help="captures in each of them")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--skip-time", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        least = {"samples": 1, "repeats": 1, "warmup": 0, "processes": 1, "captures": 1, "threads": 1}
        vars(options).update(models=["ResNet-18", "ViT-B/16"], **least)
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # values that random weights let shrink to nothing, and that trained ones do not
    if options.child:
        name, run = options.child
        print(json.dumps(memory_of_this_process(name, run, options.samples, options.captures)))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, {options.samples} images of {PIXELS} px")
    if not options.skip_time:
        seconds = {name: measure_time(name, options) for name in options.models}
        title = f"Time of a capture, in forwards: median of {options.repeats} (smallest to largest)"
        print(table(title, ["forward, ms", *LIBRARIES], [time_row(name, runs) for name, runs in seconds.items()]))
    if not options.skip_memory:
        names, runs = options.models, list(RUNS)
        if options.quick:  # a process takes seconds to import everything
            names, runs = names[:1], runs[:1]
        memory = {name: measure_memory(name, runs, options) for name in names}
        header = ["forward, MiB", *runs[1:]]
        title = "Peak memory of the process that captures, in that of the process that only runs the forward"
        print(table(title, header, [memory_row(name, of_runs, "process") for name, of_runs in memory.items()]))
        title = "The same, above what the process held once the model and its batch were built"
        print(table(title, header, [memory_row(name, of_runs, "capture") for name, of_runs in memory.items()]))


if __name__ == "__main__":
    main()
