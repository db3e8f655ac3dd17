"""Every block of code on a page runs as it stands there, or says above it why it does not.

``<!-- not run: the reason -->`` above a fence is seen neither on a code host nor on the site. A fence of ``text`` is no
code, and one in braces is a directive. Python runs page by page, in one namespace; a command of ours in a folder of
records, a file of LightningCLI by it. Scripts of examples/ and benchmarks/ are run by `pytest -m slow`.
"""

import ast
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger
from records import BOTH, LEFT, RIGHT, write
from tiny import ROOT, Trains, trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_gradcam import Batch, GradCAMCallback, Record
from lightning_gradcam.record.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* cells of .* tell little about places:UserWarning"),  # small images
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller:UserWarning"),  # short epochs
]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
# Pages with a test for each of their sections, which runs its code and looks at what comes out.
ELSEWHERE = {"docs/paper.md": "test_paper.py", "docs/recipes.md": "test_recipes_page.py"}
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.M | re.S)
MARK = re.compile(r"^ *<!-- not run: \S.* -->\n\Z", re.M)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language, marked=False):
    """The code of a page in a language; that which is not run, or all other."""
    text = text_of(page)
    found = [(bool(MARK.search(text[: fence.start()])), fence[2], fence[3]) for fence in FENCE.finditer(text)]
    return [code for is_marked, of, code in found if of == language and is_marked == marked]


def pages_with(language):
    return [page for page in PAGES if page not in ELSEWHERE and blocks(page, language)]


# What pages take for granted


class Model(nn.Module):
    """A classifier whose last layer on a grid has a quarter of the image's pixels a side, with a ResNet's name."""

    def __init__(self, classes):
        super().__init__()
        block = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.layer1, self.layer4 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Sequential(block)
        self.head = nn.Linear(8, classes)

    def forward(self, images=None, pixel_values=None, input_ids=None):
        seen = self.layer4(self.layer1(images if pixel_values is None else pixel_values)).mean((2, 3))
        return self.head(seen if input_ids is None else seen + input_ids.float().mean(1, keepdim=True))


class Module(Trains):
    def __init__(self, model=None):
        super().__init__()
        self.model = Model(2) if model is None else model

    def forward(self, images):
        return self.model(images)


IMAGES = torch.rand(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 2


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(list(zip(IMAGES, LABELS, strict=True)), 4)

    val_dataloader = train_dataloader


@pytest.fixture
def runs():
    """The records that pages name, in the folder of the test."""
    for seed, end in enumerate(["", "_0", "_1", "_2"]):
        write(f"runs/weak{end}", [[LEFT, BOTH], [LEFT, LEFT]], name=f"weak{end}", right=[[1, seed % 2]] * 2)
        write(f"runs/strong{end}", [[BOTH, BOTH], [RIGHT, RIGHT]], name=f"strong{end}")


def run_page(page):
    """Run the Python of a page; all that it has named, and what its expressions gave."""
    known = {
        "torch": torch,
        "Batch": Batch,
        "CSVLogger": CSVLogger,
        "GradCAMCallback": GradCAMCallback,
        "Trainer": pl.Trainer,
        "images": IMAGES,
        "model": Model(4).eval(),
        "MEAN": [0.5] * 3,
        "STD": [0.2] * 3,
    }
    values = []
    for code in blocks(page, "python"):
        for statement in ast.parse(code).body:
            if isinstance(statement, ast.Expr):
                values.append(eval(compile(ast.Expression(statement.value), page, "eval"), known))
            else:
                exec(compile(ast.Module([statement], []), page, "exec"), known)
    return known, values


# The pages


def test_every_fence_says_what_it_is():
    known = {"python", "yaml", "bash", "text"}
    for page in PAGES:
        languages = {fence[2] for fence in FENCE.finditer(text_of(page))}
        assert {one for one in languages if not one.startswith("{")} <= known, page
        assert text_of(page).count("```") == 2 * len(FENCE.findall(text_of(page))), page
        marks = re.findall(r"^ *<!-- not run", text_of(page), re.M)
        assert len(marks) == sum(len(blocks(page, of, marked=True)) for of in known), page


@pytest.mark.parametrize("page", ELSEWHERE)
def test_every_section_with_code_has_a_test_of_its_name(page):
    tests = re.findall(r"^def test_(\w+)", text_of(f"tests/examples/{ELSEWHERE[page]}"), re.M)
    sections = re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", text_of(page), re.M)
    titles = [re.sub(r"\W", "", title).lower() for title, text in sections if "```" in text]
    assert titles
    assert set(titles) <= {test.replace("_", "") for test in tests}
    assert not any(blocks(page, language, marked=True) for language in ("python", "yaml", "bash"))


# Python


class Backbone(nn.Module):
    """Where torchvision's segmentation and detection models have their ResNet."""

    def __init__(self, classes, body=False):
        super().__init__()
        self.backbone, self.head = nn.Module(), nn.Conv2d(8, classes, 1)
        home = self.backbone
        if body:
            home.body = home = nn.Module()
        home.layer4 = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.features = home.layer4


class Segmenter(Backbone):
    def forward(self, images):
        return {"out": F.interpolate(self.head(self.backbone.layer4(images)), images.shape[2:], mode="bilinear")}


class Detector(Backbone):
    """Gives each image a box of class 1, at its left edge."""

    def forward(self, images):
        scores = self.head(self.backbone.body.layer4(torch.stack(images))).mean((2, 3)).sigmoid()
        box, label = torch.tensor([[0.0, 0, 8, 16]]), torch.tensor([1])
        return [{"boxes": box, "labels": label, "scores": score[1:2]} for score in scores]


def together(items):
    return tuple(zip(*items, strict=True))


def check_readme(known, values, printed):
    """The quick start: it gets everything right, and looks at the tag in the upper left corner."""
    record = Record.open("lightning_logs/version_0")
    assert record.samples["right"][-1].tolist() == [1] * 16
    assert record.numbers[-1]["gradcam/positional_bias"] == 1
    h, w = record.maps["gradcam"].shape[2:]
    rows, columns = np.unravel_index(record.maps["gradcam"][-1].reshape(16, -1).argmax(1), (h, w))
    assert rows.max() < h / 4
    assert columns.max() < w / 4


def check_guide(known, values, printed):
    """Each callback is one that runs with a model, and batches, such as the text above it has in mind."""
    everything, inputs, segmentation, detection = (value for value in values if isinstance(value, GradCAMCallback))
    box = torch.tensor([[0, 0, 14, 28]]).expand(8, 4)
    rows = [{"x": image, "y": label, "box": place} for image, label, place in zip(IMAGES, LABELS, box, strict=True)]
    fit(everything, Module(), rows, 6)
    words = torch.arange(24).reshape(8, 3)
    rows = zip(IMAGES, LABELS, words, strict=True)
    fit(inputs, Module(), [dict(zip(("pixel_values", "labels", "input_ids"), row, strict=True)) for row in rows])
    masks = torch.full((8, 28, 28), 15)
    masks[:, 14:] = 0
    fit(segmentation, Module(Segmenter(21)), list(zip(IMAGES, masks, strict=True)))
    targets = [{"boxes": place[None].float(), "labels": torch.tensor([1])} for place in box]
    fit(detection, Module(Detector(2, body=True)), list(zip(IMAGES, targets, strict=True)), collate_fn=together)
    assert known["maps"].shape == (8, 7, 7)
    assert any(isinstance(value, Image.Image) for value in values)


def fit(callback, module, items, max_epochs=1, **options):
    batches = DataLoader(items, 4, **options)
    run = trainer(callback, max_epochs=max_epochs)
    run.fit(module, batches, batches)
    assert f"{callback.prefix}/seconds" in run.callback_metrics
    assert f"{callback.prefix}/failures" not in run.callback_metrics


def check_dashboards(known, values, printed):
    """What ends a cell is a page or a picture, and a logger of one's own gets pictures."""
    assert [type(value).__name__ for value in values] == ["Record", "Comparison", "Image"]
    assert all("<iframe" in value._repr_html_() for value in values[:2])
    callback = GradCAMCallback()
    trainer(callback, max_epochs=1, logger=known["MyLogger"]("logs")).fit(Module(), Data())
    assert {path.name for path in Path("logs").rglob("*.png")} >= {"gradcam-grid-0.png", "gradcam-grid-1.png"}


def check_compare(known, values, printed):
    assert known["record"].maps["gradcam"].shape == (2, 2, 2, 2)
    assert "strong" in printed


CHECKS = {
    "README.md": check_readme,
    "docs/guide.md": check_guide,
    "docs/dashboards.md": check_dashboards,
    "docs/compare.md": check_compare,
}


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page, runs, capsys):
    known, values = run_page(page)
    CHECKS.get(page, lambda *_: None)(known, values, capsys.readouterr().out)


# Commands and files


def commands(page):
    """The commands of a page, without their comments."""
    lines = [shlex.split(line, comments=True) for code in blocks(page, "bash") for line in code.splitlines()]
    parts = [" ".join(line).split(" && ") for line in lines]
    return [command.split() for line in parts for command in line if command]


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_run(page, runs, capsys):
    for command, *arguments in commands(page):
        if command == "python":
            check_script(*arguments)
        else:
            assert command == "lightning-gradcam"
            assert main(arguments) == 0, capsys.readouterr().err
            if "-o" in arguments:
                assert "<html" in Path(arguments[arguments.index("-o") + 1]).read_text(encoding="utf-8")


def check_script(script, *arguments):
    """A script that `pytest -m slow` runs, with options that it has."""
    folder, _, name = script.partition("/")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / folder).glob("test_*.py"))
    assert f'"{name.removesuffix(".py")}"' in tests or '(ROOT / "benchmarks").glob("*.py")' in tests
    options = {argument for argument in arguments if argument.startswith("--")}
    assert {option for option in options if f'"{option}"' not in text_of(script)} == set()


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_files_run(page, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning uses an older interface of it
    for code in blocks(page, "yaml"):
        options = "logger: false", "max_epochs: 1", "accelerator: cpu", "enable_progress_bar: false"
        Path("config.yaml").write_text("\n  ".join([code.rstrip(), *options]) + "\nseed_everything: 0\n")
        monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "config.yaml"])
        cli = LightningCLI(Module, Data, save_config_callback=None)
        assert "gradcam/strength" in cli.trainer.callback_metrics
