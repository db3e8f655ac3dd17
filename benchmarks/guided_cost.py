"""What Guided Backpropagation takes beside a forward without gradients and a capture of Grad-CAM, in turns.

python benchmarks/guided_cost.py   # two minutes on two cores
"""

import argparse
from statistics import median
from time import perf_counter

import torch
import torchvision

from lightning_gradcam import Batch
from lightning_gradcam.attribution.functional import attribute
from lightning_gradcam.attribution.guided import guided_gradients
from lightning_gradcam.attribution.layout import channels_first
from lightning_gradcam.attribution.methods import gradcam
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    samples, pixels, repeats = (2, 64, 1) if parser.parse_args().quick else (16, 224, 7)
    print(f"{samples} images of {pixels} px, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| model | forward, ms | Grad-CAM | Guided Backpropagation |\n| --- | ---: | ---: | ---: |")
    for name, layer in (("resnet18", "layer4"), ("resnet50", "layer4"), ("mobilenet_v2", "features")):
        model = getattr(torchvision.models, name)(weights=None).eval()
        batch = Batch(torch.rand(samples, 3, pixels, pixels), torch.arange(samples))

        stand_in = StandIn(model, kept=True)

        def plain(model: torch.nn.Module = model, batch: Batch = batch) -> None:
            with torch.no_grad():
                model(batch.images)

        def capture(model: torch.nn.Module, batch: Batch = batch, layer: str = layer) -> None:
            attribute(
                model, batch, {layer: channels_first}, lambda batch: model(batch.images), Question(label), gradcam
            )

        def guide(model: torch.nn.Module, batch: Batch = batch) -> None:
            guided_gradients(model, batch, lambda batch: model(batch.images), label)

        ways = (
            plain,
            lambda: stand_in.look(capture),  # noqa: B023
            lambda: stand_in.look(guide),  # noqa: B023
        )
        times = []
        for _ in range(1 + repeats):  # the first is to warm up
            row = []
            for way in ways:
                started = perf_counter()
                way()
                row.append(perf_counter() - started)
            times.append(row)
        ratios = [[row[i] / row[0] for row in times[1:]] for i in (1, 2)]
        cells = [f"{median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in ratios]
        print(f"| {name} | {1000 * median(row[0] for row in times[1:]):.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
