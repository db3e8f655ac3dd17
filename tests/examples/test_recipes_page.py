"""docs/recipes.md: the code of every recipe runs as it stands there, and what comes out is what the page says."""

import copy
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LightningCLI
from tiny import ROOT, TinyModule, Trains, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_gradcam import EmbeddingTarget, GradCAMCallback, Record, RegressionTarget
from lightning_gradcam.picture import grid as drawing

pytestmark = pytest.mark.filterwarnings("ignore:.* cells of .* tell little about places:UserWarning")  # small images
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
IMPORTS = re.findall(r"```python\n(.*?)```", PAGE.partition("\n## ")[0], re.S)[0]
SECTIONS: dict[str, str] = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", PAGE, re.M))
CODE = {title: re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.S) for title, text in SECTIONS.items()}

IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS, NAMES = torch.arange(8) % 3, ("ant", "bee", "crab")
VALUES = 30.5 + 6 * torch.arange(8)  # 54.5 of sample 4


class Items(Dataset):
    def __init__(self, items, classes=NAMES):
        self.items = list(items)
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def data(items, collate=None, **options):
    return DataLoader(Items(items, **options), 4, collate_fn=collate)


def net(outputs, channels=3):
    body = nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


class UNet(nn.Module):
    """A stage down and up again with a skip, as all that are called so."""

    def __init__(self, channels, classes):
        super().__init__()
        self.first, self.down = nn.Conv2d(channels, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, classes, 1)

    def forward(self, images):
        first = self.first(images).relu()
        return self.head(torch.cat([first, self.up(self.down(first).relu()).relu()], 1))


@pytest.fixture
def captions(monkeypatch):
    """The captions of the last grid, as four texts each."""
    found, make = [], drawing.captions

    def keep(*args, **kwargs):
        made = make(*args, **kwargs)
        found[:] = [(*one.sample, *one.prediction) for one in made]
        return made

    monkeypatch.setattr("lightning_gradcam.run.pictures.captions", keep)
    return found


@pytest.fixture
def packages(monkeypatch):
    """Put something in the place of packages that are too large to test with: what is imported, by module."""

    def put(**modules):
        for name, contents in modules.items():
            module = ModuleType(name.replace("__", "."))
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


def run(title, folder="gradcam", **names):
    """Run a recipe; all that it has named, and the record that it leaves."""
    known = {}
    exec(IMPORTS, known)
    known["Module"] = type("Module", (Trains, known["Module"]), {})
    known["Trainer"] = lambda callbacks: trainer(*callbacks, max_epochs=1)
    known |= names
    exec(CODE[title][0], known)
    return known, Record.open(folder)


def scores(record):
    return record.samples[-1]["score"]


def close(found, expected):
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def outputs_of(module, *inputs):
    with torch.no_grad():
        return copy.deepcopy(module).eval()(*inputs)


def question(record):
    return record.about["settings"]["question"]


# The page


def test_every_row_of_the_table_has_a_recipe_of_at_most_twelve_lines_and_every_recipe_a_row():
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", PAGE, re.M)
    titles = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-"): title for title in SECTIONS}
    assert [anchor for _, anchor in rows] == list(titles)
    assert set(re.findall(r"\]\(#(.+?)\)", PAGE)) == set(titles)
    for title, blocks in CODE.items():
        assert len(blocks) == 1
        assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 12, title


# Classifiers


def check_classifier(record, captions, logits, labels):
    rows = torch.arange(len(logits))
    close(scores(record), logits[rows, labels])
    assert question(record) == "target label · gradcam"
    assert "gradcam/prediction_flips" in record.numbers[-1]
    probabilities = logits.softmax(1)
    said = int(logits[4].argmax())
    sample, of_label, prediction, confidence = captions[4]
    assert (sample, of_label) == ("#4 bee", f"{probabilities[4, 1]:.2f}")
    assert prediction == f"{'' if said == 1 else 'x '}pred {record.about['class_names'][said]}"
    assert confidence.split()[0] == f"{probabilities[4, said]:.2f}"


def test_timm(captions, monkeypatch):
    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, num_classes: create("test_resnet", num_classes=num_classes)
    )
    batches = data(zip(IMAGES, LABELS, strict=True))
    known, record = run("timm", train=batches, val=batches)
    check_classifier(record, captions, outputs_of(known["module"], IMAGES), LABELS)


def test_hugging_face_classification(captions, monkeypatch):
    import transformers

    def from_pretrained(name, num_labels):
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(
                image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=32, num_labels=num_labels,
            )
        )  # fmt: skip

    monkeypatch.setattr(transformers.AutoModelForImageClassification, "from_pretrained", from_pretrained)
    batches = data({"pixel_values": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True))
    known, record = run("Hugging Face classification", train=batches, val=batches)
    check_classifier(record, captions, outputs_of(known["model"], IMAGES).logits, LABELS)


# torchgeo, by the form of its batches: a dict with `image` and `label`, `mask` or `bbox_xyxy`


class Task(Trains):
    """Takes what torchgeo's tasks take, and hands all that comes to the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


def datamodule(items, collate, classes):
    """A datamodule that divides the images by 255 once the batch is where the model is, as torchgeo's do."""

    class DataModule(pl.LightningDataModule):
        def __init__(self, root):
            super().__init__()

        def train_dataloader(self):
            return data(items, collate, classes=classes)

        val_dataloader = train_dataloader

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch | {"image": batch["image"] / 255}

    return DataModule


def torchgeo(packages, task, model, data_name, items, collate=None, classes=NAMES):
    packages(
        torchgeo={},
        torchgeo__trainers={task: lambda **options: Task(model(options))},
        torchgeo__datamodules={data_name: datamodule(items, collate, classes)},
    )


def test_torchgeo_classification(captions, packages):
    images = 255 * torch.rand(8, 13, 32, 32, generator=torch.Generator().manual_seed(1))
    items = [{"image": image, "label": label} for image, label in zip(images, LABELS, strict=True)]
    torchgeo(
        packages,
        "ClassificationTask",
        lambda options: net(options["num_classes"], options["in_channels"]),
        "EuroSATDataModule",
        items,
        classes=(*NAMES, *"defghij"),
    )
    known, record = run("torchgeo classification")
    check_classifier(record, captions, outputs_of(known["task"], images / 255), LABELS)
    expected = (images / 255).mean(1) * 255
    assert np.abs(record.photos.astype(float) - expected.numpy()).max() <= 0.51  # the mean of all bands


def masks():
    """A quarter of each image is of its label, a row is not labelled; the fourth shows nothing but background."""
    found = torch.zeros(8, 32, 32, dtype=torch.long)
    for i, label in enumerate(LABELS):
        found[i, :16, :16] = max(label, 1)
    found[3], found[:, -1] = 0, 255
    return found


def check_segmentation(record, captions, pixels, classes):
    """Of every sample but the fourth the mean logit over the upper left quarter."""
    rows = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    close(scores(record)[rows], pixels[rows, classes[rows], :16, :16].mean((1, 2)))
    assert question(record) == "target SegmentationTarget(region='object') · gradcam"
    assert record.about["labels"] == [-100 if i == 3 else int(one) for i, one in enumerate(classes)]
    share = (pixels.argmax(1) == classes[:, None, None]).float().mean((1, 2))[4]
    assert captions[4][:2] == ("#4 bee", "25%")
    assert captions[4][2] == f"bee {share:.0%}"
    assert captions[3][0] == "#3 no label"
    check_object(record, torch.arange(8) != 3, 0.25, lambda maps: maps[:, : maps.shape[1] // 2, : maps.shape[2] // 2])


def check_object(record, known, area, inside):
    """The share that each map has inside the object, a share ``area`` of the image: the mean of the samples known."""
    maps = torch.tensor(record.maps["gradcam"][-1]).relu()
    total = maps.sum((1, 2))
    rows = (total > 0) & known
    share = (inside(maps).sum((1, 2)) / total)[rows].mean()
    assert record.numbers[-1]["gradcam/mass_object"] == pytest.approx(share.item(), abs=1e-4)
    assert record.numbers[-1]["gradcam/lift_object"] == pytest.approx(share.item() / area, rel=1e-4)


def test_torchgeo_semantic_segmentation(captions, packages):
    items = [{"image": 255 * image, "mask": mask} for image, mask in zip(IMAGES, masks(), strict=True)]
    torchgeo(
        packages,
        "SemanticSegmentationTask",
        lambda options: UNet(options["in_channels"], options["num_classes"]),
        "LandCoverAIDataModule",
        items,
    )
    known, record = run("torchgeo semantic segmentation")
    check_segmentation(record, captions, outputs_of(known["task"], IMAGES), LABELS.clamp_min(1))


def test_torchgeo_regression(captions, packages):
    items = [{"image": 255 * image, "label": value} for image, value in zip(IMAGES, VALUES, strict=True)]
    torchgeo(
        packages, "RegressionTask", lambda options: net(options["num_outputs"]), "TropicalCycloneDataModule", items
    )
    known, record = run("torchgeo regression")
    check_values(record, captions, "gradcam", outputs_of(known["task"], IMAGES)[:, 0], VALUES, 0)


def check_values(record, captions, prefix, values, labels, column):
    close(scores(record), values)
    assert question(record) == f"target {RegressionTarget(column)} · gradcam"
    assert captions[4][:3] == (f"#4 {labels[4]:g}", "", f"pred {values[4]:.4g}")
    assert f"{prefix}/strength" in record.numbers[-1]


# Detection

BOXES = torch.tensor([[0.0, 0, 16, 16], [0, 0, 16, 32], [4, 4, 6, 6]])
MOST = torch.arange(8) % 2 + 1  # in torchvision 0 is the background
CLASSES = torch.stack([MOST, MOST, 3 - MOST], 1)


def small_detector(detector):
    """The one of torchvision, with few boxes, of every class since nothing has been learnt."""
    model = copy.deepcopy(detector).train()
    model.rpn._post_nms_top_n = {"training": 16, "testing": 16}
    model.roi_heads.detections_per_img = 12
    return model


def check_boxes(record, captions, found):
    """The sum of the scores of a class's boxes."""
    expected = [one["scores"][one["labels"] == label].sum() for one, label in zip(found, MOST, strict=True)]
    close(scores(record), torch.stack(expected))
    assert question(record) == "target DetectionTarget() · gradcam"
    number = int((found[4]["labels"] == 1).sum())
    assert number > 0
    assert captions[4][0] == "#4 bee"
    assert captions[4][2] == f"bee {number} box{'es' * (number != 1)}"
    check_object(record, torch.ones(8).bool(), 0.5, lambda maps: maps[:, :, : maps.shape[2] // 2])


def test_torchvision_detection(captions, detector, monkeypatch):
    monkeypatch.setattr(
        "torchvision.models.detection.fasterrcnn_resnet50_fpn", lambda num_classes: small_detector(detector)
    )
    targets = [{"boxes": BOXES, "labels": classes} for classes in CLASSES]
    batches = data(zip(IMAGES, targets, strict=True), lambda items: tuple(zip(*items, strict=True)))
    known, record = run("torchvision detection", train=batches, val=batches)
    check_boxes(record, captions, outputs_of(known["module"], list(IMAGES)))


def test_torchgeo_detection(captions, packages, detector):
    def collate(items):
        batch = {name: [item[name] for item in items] for name in items[0]}
        return batch | {"image": torch.stack(batch["image"])}

    items = [
        {"image": 255 * image, "bbox_xyxy": BOXES, "label": classes}
        for image, classes in zip(IMAGES, CLASSES, strict=True)
    ]
    model = small_detector(detector)
    torchgeo(packages, "ObjectDetectionTask", lambda options: model, "VHR10DataModule", items, collate)
    known, record = run("torchgeo detection")
    check_boxes(record, captions, outputs_of(known["task"], IMAGES))


def test_hugging_face_detection(captions, monkeypatch):
    import transformers

    def from_pretrained(name, num_labels):
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        )
        return transformers.DetrForObjectDetection(
            transformers.DetrConfig(
                backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6, num_labels=num_labels,
            )
        )  # fmt: skip

    monkeypatch.setattr(transformers.AutoModelForObjectDetection, "from_pretrained", from_pretrained)
    centres = torch.cat([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], 1) / 32

    def collate(items):
        images, classes = zip(*items, strict=True)
        labels = [{"boxes": centres, "class_labels": one} for one in classes]
        pixels = torch.stack(images)
        return {"pixel_values": pixels, "pixel_mask": torch.ones(pixels[:, 0].shape).long(), "labels": labels}

    batches = data(zip(IMAGES, CLASSES, strict=True), collate)
    known, record = run("Hugging Face detection", train=batches, val=batches)
    logits = outputs_of(known["module"].model, IMAGES).logits
    probabilities = logits.softmax(2)
    close(scores(record), probabilities[torch.arange(8), :, MOST].sum(1))
    assert question(record) == "target DetectionTarget() · gradcam"
    number = int((logits[4].argmax(1) == 1).sum())
    assert captions[4][0] == "#4 bee"
    assert captions[4][2] == f"bee {number} box{'es' * (number != 1)}"
    check_object(record, torch.ones(8).bool(), 0.5, lambda maps: maps[:, :, : maps.shape[2] // 2])


# Masks of other packages


class MetaTensor(torch.Tensor):
    """A tensor of a class of its own, as MONAI's transforms give them."""


def test_monai(captions, packages):
    def unet(spatial_dims, in_channels, out_channels, channels, strides):
        return UNet(in_channels, out_channels)

    packages(monai={}, monai__networks={}, monai__networks__nets={"UNet": unet})
    images, labels = IMAGES[:, :1], masks()[:, None].float()
    batches = data(
        {"image": image.as_subclass(MetaTensor), "label": label.as_subclass(MetaTensor)}
        for image, label in zip(images, labels, strict=True)
    )
    known, record = run("MONAI", train=batches, val=batches)
    check_segmentation(record, captions, outputs_of(known["net"], images), LABELS.clamp_min(1))


@pytest.mark.parametrize("white", [1, 255])
def test_segmentation_models_pytorch(captions, packages, white):
    packages(segmentation_models_pytorch={"Unet": lambda name, in_channels, classes: UNet(in_channels, classes)})
    labels = white * (masks() % 255).clamp_max(1)[:, None].float()
    items = [{"image": image, "mask": label} for image, label in zip(IMAGES, labels, strict=True)]
    batches = data(items, classes=("background", "bee"))
    known, record = run("segmentation-models-pytorch", train=batches, val=batches)
    logits = outputs_of(known["module"], IMAGES)
    check_segmentation(record, captions, torch.cat([-logits, logits], 1), torch.ones(8).long())


# Other questions


class Classifier(Trains):
    def __init__(self, outputs):
        super().__init__()
        self.model = net(outputs)

    def forward(self, images):
        return self.model(images)


def test_self_supervised_learning(captions):
    views = [((image, image.flip(2)), label) for image, label in zip(IMAGES, LABELS, strict=True)]
    batches, module = data(views, classes=()), Classifier(4)
    _, record = run("Self-supervised learning", train=batches, val=batches, module=module)
    one, other = outputs_of(module, IMAGES), outputs_of(module, IMAGES.flip(3))
    similarity = F.cosine_similarity(one, other)
    close(scores(record), similarity)
    assert question(record) == "target EmbeddingTarget(similar_to=view) · gradcam"
    assert captions[4][:3] == ("#4", "", f"similarity {similarity[4]:.3g}")
    assert "gradcam/prediction_flips" not in record.numbers[-1]
    assert record.numbers[-1]["gradcam/drift_floor"] is not None


def test_a_single_embedding_is_asked_for_its_norm_without_more():
    batches, module = data(zip(IMAGES, LABELS, strict=True)), Classifier(4)
    trainer(GradCAMCallback(target=EmbeddingTarget())).fit(module, batches, batches)
    close(scores(Record.open("gradcam")), outputs_of(module, IMAGES).norm(dim=1))


def test_multi_label(captions):
    rows = F.one_hot(LABELS, 3)
    rows[4], rows[5] = torch.tensor([1, 1, 0]), 0
    batches, module = data(zip(IMAGES, rows, strict=True)), Classifier(3)
    _, record = run("Multi-label", train=batches, val=batches, module=module)
    logits = outputs_of(module, IMAGES)
    expected = (logits * rows).sum(1)
    expected[5] = logits[5].max()
    close(scores(record), expected)
    said = int(logits[4].argmax())
    assert captions[4][0] == "#4 ant+bee"
    assert captions[4][2] == f"{'x ' * (said == 2)}pred {NAMES[said]}"
    assert captions[4][3].split()[0] == f"{logits[4, said].sigmoid():.2f}"
    assert captions[5][0] == "#5 no label"
    assert record.samples[-1]["right"][5] == -1
    maps = torch.tensor(record.maps["gradcam"][-1])
    strength = maps.sum((1, 2))[torch.arange(8) != 5].median().item()
    assert record.numbers[-1]["gradcam/strength"] == pytest.approx(strength, rel=1e-4)


def test_regression(captions):
    values = torch.stack([VALUES / 2, VALUES], 1)
    batches, module = data(zip(IMAGES, values, strict=True)), Classifier(2)
    known, record = run("Regression", "x", train=batches, val=batches, module=module)
    found = outputs_of(module, IMAGES)
    assert (known["x"].prefix, known["y"].prefix) == ("x", "y")
    close(scores(record), found[:, 0])
    check_values(Record.open("y"), captions, "y", found[:, 1], VALUES, 1)


def test_a_regression_with_one_output_needs_no_target(captions):
    batches, module = data(zip(IMAGES, VALUES, strict=True)), Classifier(1)
    trainer(GradCAMCallback()).fit(module, batches, batches)
    check_values(Record.open("gradcam"), captions, "gradcam", outputs_of(module, IMAGES)[:, 0], VALUES, 0)


# Files


@pytest.mark.parametrize("lines", [2, None])
def test_a_hydra_template(lines):
    hydra = pytest.importorskip("hydra")
    folder = Path("configs/callbacks")
    folder.mkdir(parents=True)
    short = "\n".join(CODE["A Hydra template"][0].splitlines()[:lines])
    function = "\n  batch_fn: {_target_: hydra.utils.get_method, path: tiny.boxed}"
    target = "\n  target: {_target_: lightning_gradcam.TopTarget, k: 2}"
    (folder / "gradcam.yaml").write_text(short + (function + target) * (lines is None))
    (folder / "default.yaml").write_text("defaults:\n  - gradcam\n  - _self_\n")
    Path("configs/train.yaml").write_text("defaults:\n  - _self_\n  - callbacks: default.yaml\n")
    with hydra.initialize_config_dir(str(Path("configs").resolve()), version_base="1.3"):
        config = hydra.compose("train.yaml")
    (callback,) = [hydra.utils.instantiate(one) for one in config.callbacks.values() if "_target_" in one]
    trainer(callback).fit(TinyModule(), loader(), loader())
    check_file(lines is None)


@pytest.mark.parametrize("lines", [3, None])
def test_lightning_cli(lines, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning uses an older interface of it
    text = "\n".join(CODE["LightningCLI"][0].splitlines()[:lines])
    if lines is None:
        text += "\n        batch_fn: tiny.boxed"
        text += "\n        target: {class_path: lightning_gradcam.TopTarget, init_args: {k: 2}}"
    options = "logger: false", "max_epochs: 1", "accelerator: cpu", "enable_progress_bar: false"
    Path("config.yaml").write_text("\n  ".join([text, *options]) + "\nseed_everything: 0\n")

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader()

        val_dataloader = train_dataloader

    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "config.yaml"])
    LightningCLI(TinyModule, Data, save_config_callback=None)
    check_file(lines is None)


def check_file(whole):
    """With a function and a target of one's own the region of the one, and two maps a sample of the other."""
    record = Record.open("gradcam")
    assert len(record.about["ids"]) == (32 if whole else 16)
    assert record.about["class_names"] == list(NAMES)
    assert ("gradcam/mass_object" in record.numbers[-1]) == whole
    assert question(record) == f"target {'TopTarget(k=2)' if whole else 'label'} · gradcam"
