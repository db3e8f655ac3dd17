"""The tables of docs/reading.md: what the callback's numbers do in the runs of the example, with three seeds each.

It trains `weak`, `strong` and `recovered` of `examples/digits_on_photos.py`, observes all 400 held-out pictures after
each epoch and measures on the same pictures what each network knows with the tag and without.

    python benchmarks/reading.py                # twelve minutes on two busy cores
    python benchmarks/reading.py --runs FOLDER  # keep the runs there, and read those that are there
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import digits_on_photos as example

from lightning_gradcam import Display, GradCAMCallback, Record, compare, gradcam
from lightning_gradcam.metrics.drift import distribution
from lightning_gradcam.metrics.positional import positional_bias, positional_bias_chance

KINDS, SEEDS, TAGS = ("weak", "strong"), (0, 1, 2), ("right", "no")
HELD_OUT = 400  # pictures
SHOWN = (-1, 0, 1, 2, 4, 7, 14)  # epochs, -1 before training
PATIENCE = 3  # epochs without a better value, after which training is stopped
SUBSETS = (16, 32, 64, 128)
NUMBERS = (16, HELD_OUT)  # of samples


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the example.

    Attributes:
        record: What the callback kept of it.
        held_out: After each epoch, by tag, the accuracy and the loss on the held-out pictures.
        centred: Maps ``(n, h, w)`` at the end, of the held-out pictures without a tag, each digit in the middle.
    """

    record: Record
    held_out: list[dict[str, dict[str, float]]]
    centred: np.ndarray

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Of each observation and sample, ``(t, n)``, by the number's name."""
        run = compare(self.record, samples="all").runs[0]
        return {"drift": run.drift, **run.values}

    @property
    def maps(self) -> np.ndarray:
        """``(t, n, h, w)``"""
        return self.record.maps["gradcam"]

    def logged(self, key: str) -> list[float]:
        """A number, observation by observation."""
        return [numbers.get(f"gradcam/{key}", np.nan) for numbers in self.record.numbers]


class HeldOut(Callback):
    """Measures accuracy and loss on the held-out pictures under each tag, after every epoch."""

    def __init__(self) -> None:
        self.pictures = {tag: next(iter(DataLoader(example.DigitsOnPhotos(tag), HELD_OUT))) for tag in TAGS}
        self.found: list[dict[str, dict[str, float]]] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        row = {}
        for tag, pictures in self.pictures.items():
            logits, labels = pl_module(pictures["image"]), pictures["label"]
            loss = F.cross_entropy(logits, labels)
            row[tag] = {"accuracy": float(example.accuracy(logits, labels)), "loss": float(loss)}
        self.found.append(row)


def in_the_middle(pictures: dict[str, Tensor]) -> Tensor:
    """The pictures, each turned over its edges so far that its digit lies in the middle."""
    middle = (example.SIZE - example.DIGIT) // 2
    shifts = (middle - pictures["digit"][:, :2]).tolist()
    return torch.stack([image.roll((y, x), (1, 2)) for image, (x, y) in zip(pictures["image"], shifts, strict=True)])


def trained(folder: Path, kind: str, seed: int, epochs: int) -> Run:
    """This run, as it lies in the folder; else it is trained there, as the example does."""
    name = f"{kind}_{seed}"
    kept = folder / name / "held_out.json"
    if not kept.exists():
        held_out = HeldOut()  # before the seed, since a loader draws from it
        example.seed_everything(seed)
        model, pictures = example.Classifier(), example.DigitsOnPhotos(example.TRAINING_TAG[kind], train=True)
        logger = example.TensorBoardLogger(folder, name="", version=name)
        look = GradCAMCallback(batch_fn=example.read_batch, samples=HELD_OUT, display=Display(tile=32))
        callbacks = [look, held_out, *[example.RemoveTag(pictures)] * (kind == "recovered")]
        example.fit_on(model, pictures, example.DigitsOnPhotos("right"), logger, epochs, callbacks)
        untagged = held_out.pictures["no"]
        maps = gradcam(model.eval(), in_the_middle(untagged), target="label", labels=untagged["label"])
        np.save(kept.with_name("centred.npy"), maps.numpy())
        kept.write_text(json.dumps(held_out.found))
    return Run(Record.open(folder / name), json.loads(kept.read_text()), np.load(kept.with_name("centred.npy")))


Runs = dict[tuple[str, int], Run]


def in_epochs(title: str, runs: Runs, rows: Iterable[tuple[str, Sequence[Sequence[float]]]]) -> None:
    """A table with a column an epoch; a row has several runs' values ``(runs, t)``, of which mean and range stand."""
    epochs = next(iter(runs.values())).record.epochs.tolist()
    at = [i for i, epoch in enumerate(epochs) if epoch in SHOWN]
    heads = ["start" if epochs[i] < 0 else f"epoch {epochs[i]}" for i in at]
    table(title, heads, ((name, [with_range([one[i] for one in values]) for i in at]) for name, values in rows))


def table(title: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    print(f"\n### {title}\n\n| | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}")
    for name, cells in rows:
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def with_range(values: Sequence[float]) -> str:
    """The mean, and behind it the range where that shows."""
    if not np.isfinite(values).any():
        return ""
    rounded = (round(float(one(values)), 2) + 0.0 for one in (np.nanmean, np.nanmin, np.nanmax))  # no -0.00
    mean, low, high = (f"{value:.2f}" for value in rounded)
    return mean if low == high else f"{mean} ({low} to {high})"


def of_kind(runs: Runs, kind: str) -> list[Run]:
    return [run for (name, _), run in runs.items() if name == kind]


def logged_rows(runs: Runs, *keys: str) -> Iterable[tuple[str, list[list[float]]]]:
    for key, kind in product(keys, KINDS):
        yield f"{kind}: `{key}`", [run.logged(key) for run in of_kind(runs, kind)]


def corner_rows(runs: Runs) -> Iterable[tuple[str, list[list[float]]]]:
    """What lies in the four by four cells of the corner of the tag, which itself is not two cells wide."""
    for kind in KINDS:
        shares = [[distribution(maps)[:, -4:, :4].sum((1, 2)) for maps in run.maps] for run in of_kind(runs, kind)]
        yield f"{kind}: the 16 cells of the tag's corner", [[float(np.nanmean(one)) for one in run] for run in shares]


def agreements(pairs: Iterable[tuple[Run, Run]]) -> list[list[float]]:
    """How far the maps of two runs agree, for each pair the median over all samples, epoch by epoch."""
    compared = [compare(one.record, other.record, samples="all") for one, other in pairs]
    return [np.nanmedian(one.runs[1].agreement, 1).tolist() for one in compared]


def agreement_rows(runs: Runs) -> Iterable[tuple[str, list[list[float]]]]:
    weak, strong = (of_kind(runs, kind) for kind in KINDS)
    yield "weak and weak, two seeds", agreements(combinations(weak, 2))
    yield "strong and strong, two seeds", agreements(combinations(strong, 2))
    yield "weak and strong, same seed", agreements(zip(weak, strong, strict=True))
    others = [(weak[i], strong[j]) for i, j in product(range(len(weak)), range(len(strong))) if i != j]
    yield "weak and strong, two seeds", agreements(others)
    for kind in KINDS:
        within = [[1 - drift for drift in run.logged("drift_chance")] for run in of_kind(runs, kind)]
        yield f"two samples of one {kind} run", within


def monitored(run: Run) -> dict[str, np.ndarray]:
    """What could be monitored, by name, after each epoch; more is better."""
    after = run.record.epochs >= 0
    return {
        "`val/accuracy`, max": np.array([row["right"]["accuracy"] for row in run.held_out]),
        "validation loss, min": -np.array([row["right"]["loss"] for row in run.held_out]),
        "`gradcam/mass_digit`, max": np.array(run.logged("mass_digit"))[after],
        "`gradcam/mass_tag`, min": -np.array(run.logged("mass_tag"))[after],
        "`gradcam/concentration`, max": np.array(run.logged("concentration"))[after],
        "the last epoch": np.arange(len(run.held_out)),
    }


def until_stopped(values: np.ndarray) -> np.ndarray:
    """The values that are seen if training stops once :data:`PATIENCE` epochs were no better than the best before."""
    best, at = -np.inf, 0
    for epoch, value in enumerate(values):
        if value > best:
            best, at = value, epoch
        if epoch - at >= PATIENCE:
            return values[: epoch + 1]
    return values


def stopping_rows(runs: Runs) -> Iterable[tuple[str, list[str]]]:
    """The epoch that is best by each monitor, of all and of those before a stop, and accuracies there."""
    for kind, monitor in product(example.TRAINING_TAG, monitored(next(iter(runs.values())))):
        cells = []
        for seen in (np.asarray, until_stopped):
            chosen = [(run, int(np.nanargmax(seen(monitored(run)[monitor])))) for run in of_kind(runs, kind)]
            cells.append(", ".join(str(epoch) for _, epoch in chosen))
            for tag in TAGS:
                cells.append(with_range([run.held_out[epoch][tag]["accuracy"] for run, epoch in chosen]))
        yield f"{kind}: {monitor}", cells


def spread_rows(runs: Runs, draws: int) -> Iterable[tuple[str, list[str]]]:
    """Numbers of seed 0 from random samples: mean, standard deviation and 90 % range over the draws."""
    for kind in KINDS:
        run, rng = runs[kind, SEEDS[0]], np.random.default_rng(0)
        last = {name: values[-1] for name, values in run.values.items()}
        early = {name: values[:6][-1] for name, values in run.values.items()}  # epoch 4 where there is one
        of_some = {
            "`mass_digit`": (np.nanmean, last["mass_digit"]),
            "`mass_digit`, less that of epoch 4": (np.nanmean, last["mass_digit"] - early["mass_digit"]),
            "`mass_tag`": (np.nanmean, last["mass_tag"]),
            "`concentration`": (np.nanmedian, last["concentration"]),
            "`drift` of epoch 4": (np.nanmedian, early["drift"]),
            "`positional_bias`": (positional_bias, run.maps[-1]),
        }
        for name, (number, values) in of_some.items():
            cells = [f"{number(values):.2f}"]
            for size in SUBSETS:
                found = [number(values[rng.choice(len(values), size)]) for _ in range(draws)]
                low, high = np.quantile(found, (0.05, 0.95))
                cells.append(f"{np.mean(found):.2f} ± {np.std(found):.3f} ({low:.2f} to {high:.2f})")
            yield f"{kind}: {name}", cells


def positional_rows(runs: Runs) -> Iterable[tuple[str, list[list[float]]]]:
    """The number and its chance of some samples, evenly spaced, and of all."""
    for kind, number in product(KINDS, NUMBERS):
        some = [run.maps[:, :: HELD_OUT // number] for run in of_kind(runs, kind)]
        yield f"{kind}, {number} samples", [[positional_bias(maps) for maps in one] for one in some]
        yield "chance", [[positional_bias_chance(maps) for maps in one] for one in some]


def centred_rows(runs: Sequence[Run]) -> Iterable[tuple[str, list[str]]]:
    """The same at the end, where the digits lie anywhere and where they lie in the middle."""
    places = {"digits anywhere": [run.maps[-1] for run in runs], "in the middle": [run.centred for run in runs]}
    for name, maps in places.items():
        some = [[one[:: HELD_OUT // number] for one in maps] for number in NUMBERS]
        yield name, [with_range([positional_bias(one) for one in each]) for each in some]
        yield "chance", [with_range([positional_bias_chance(one) for one in each]) for each in some]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="keep the runs in this folder, and read those that are there")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the figures mean nothing")
    args = parser.parse_args()
    epochs, draws = (2, 5) if args.quick else (15, 2000)
    if args.quick:
        example.DigitsOnPhotos.__len__ = lambda self: 20
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            (kind, seed): trained(args.runs or Path(folder), kind, seed, epochs)
            for seed, kind in product(SEEDS, example.TRAINING_TAG)
        }

    in_epochs("Strength and concentration", runs, logged_rows(runs, "strength", "concentration"))
    in_epochs("Mass", runs, [*logged_rows(runs, "mass_digit", "mass_tag"), *corner_rows(runs)])
    in_epochs("Agreement", runs, agreement_rows(runs))
    measured = ["right with the tag", "right without"]
    table("Stopping", ["best of all epochs", *measured, "best before the stop", *measured], stopping_rows(runs))
    in_epochs("Drift", runs, logged_rows(runs, "drift", "drift_floor", "drift_chance"))
    table("Spread", [f"all {HELD_OUT}", *(f"{size} samples" for size in SUBSETS)], spread_rows(runs, draws))
    in_epochs("Positional bias", runs, positional_rows(runs))
    table("Digits in the middle", [f"{number} samples" for number in NUMBERS], centred_rows(of_kind(runs, "strong")))


if __name__ == "__main__":
    main()
