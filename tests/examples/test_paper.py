"""docs/paper.md: every result has at most five lines of code, which run and give what the text says."""

import copy
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from tiny import ROOT, Recorder, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import lightning_gradcam
from lightning_gradcam import Batch, GradCAMCallback
from lightning_gradcam.attribution.regions import box_masks

PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
IMPORTS = re.findall(r"```python\n(.*?)```", PAGE.partition("\n## ")[0], re.S)[0]
SECTIONS: dict[str, str] = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", PAGE, re.M))
CODE = {title: "\n".join(re.findall(r"```python\n(.*?)```", text, re.S)) for title, text in SECTIONS.items()}
CLASSES, SIZE = 6, 48


class Net(pl.LightningModule):
    """A classifier that can be asked a question, and that can caption."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.questions, self.head, self.words = nn.Embedding(2, 8), nn.Linear(8, CLASSES), nn.Linear(8, 4)

    def forward(self, images, question=None):
        seen = self.features(images).mean((2, 3))
        return self.head(seen if question is None else seen * self.questions(question))

    def caption(self, images, words):
        return self.words(self.features(images).mean((2, 3)))[:, None].expand(-1, words.shape[1], -1)

    def training_step(self, batch, batch_idx):
        images, labels = batch.values() if isinstance(batch, dict) else batch[:2]
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture
def names(net):
    """What the page calls things by."""
    images = torch.rand(CLASSES, 3, SIZE, SIZE)
    boxes = torch.tensor([[8, 8, 40, 32]] * CLASSES)
    known = {}
    exec(IMPORTS, known)
    masks = box_masks(boxes, (SIZE, SIZE))
    labels = net(images).argmax(1)
    labels[0] = (labels[0] + 1) % CLASSES  # one is classified wrongly
    top = net(images).topk(5).indices
    return known | {
        "model": net,
        "images": images,
        "labels": labels,
        "boxes": boxes,
        "masks": masks,
        "shown": masks[:, None] * (top == labels[:, None])[..., None, None],
        "names": [f"concept {i}" for i in range(8)],
        "read_batch": lambda batch: Batch(*batch, {"object": boxes[: len(batch[0])]}),
        "read_captions": lambda batch: Batch(batch[0], inputs=batch[1][:, None] % 2 + torch.tensor([0, 1, 2])),
        "run_captioner": lambda module, batch: module.caption(batch.images, batch.inputs),
    }


def logged(callback, names, collate=default_collate):
    """Fit with the callback and return what was logged at the end."""
    data = TensorDataset(names["images"], names["labels"])
    recorder = Recorder()
    run = trainer(callback, max_epochs=1, logger=recorder, num_sanity_val_steps=0)
    run.fit(copy.deepcopy(names["model"]).train(), DataLoader(data, 3), DataLoader(data, 3, collate_fn=collate))
    return recorder.scalars[-1][1]


def run(title, names):
    exec(CODE[title], names)
    return names


def test_every_row_has_a_section_with_at_most_five_lines_and_every_section_a_row():
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", PAGE, re.M)
    assert [title for title, _ in rows] == list(SECTIONS)
    assert [anchor for _, anchor in rows] == [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in SECTIONS]
    assert {line.count(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line} == {3}
    assert all(f"`{name}`" in PAGE for name in ("shown", "names", "read_batch", "read_captions", "run_captioner"))
    for title, code in CODE.items():
        assert 1 <= len([line for line in code.splitlines() if line.strip()]) <= 5, title


def test_gradcam_generalizes_cam(names, net):
    found = run("Grad-CAM generalizes CAM", names)
    logits = net(names["images"]).gather(1, names["labels"][:, None])[:, 0]
    torch.testing.assert_close(found["strength"] + net.head.bias[names["labels"]], logits)
    torch.testing.assert_close(found["cam"], found["signed"] * found["signed"][0].numel())


def test_guided_gradcam(names, drawn):
    found = run("Guided Grad-CAM", names)
    maps = lightning_gradcam.gradcam(names["model"], names["images"], target="label", labels=names["labels"]).relu()
    expected = F.interpolate(maps[:, None], (SIZE, SIZE), mode="bilinear") * found["fine"]
    torch.testing.assert_close(found["both"], expected)
    logged(found["callback"], names)
    assert {"gradcam/guided_backprop", "gradcam/guided_gradcam"} <= {key for key, *_ in drawn}


def test_counterfactual_explanations(names):
    found = run("Counterfactual explanations", names)
    signed = lightning_gradcam.gradcam(names["model"], names["images"], target=3)
    torch.testing.assert_close(found["against"] - signed.relu(), -signed)
    assert "gradcam/drift_floor" in logged(found["callback"], names)


def test_weakly_supervised_localization(names):
    found = run("Weakly supervised localization", names)
    assert found["errors"]["classification_error_top1"] == pytest.approx(1 / 6)
    keys = logged(found["callback"], names)
    assert {f"gradcam/{key}" for key in found["errors"]} <= set(keys)


def test_weakly_supervised_segmentation(names):
    found = run("Weakly supervised segmentation", names)
    assert 0 < found["precision"] <= 1
    assert 0 <= found["accuracy"] <= 1


def test_pointing_game(names):
    found = run("Pointing game", names)
    assert found["hits"].shape == (CLASSES,)
    assert 0 <= found["accuracy"] <= 1
    assert 0 < found["with_rejection"] <= 1


def test_trust(names):
    for name in ("weak", "strong"):
        logged(GradCAMCallback(record=f"runs/{name}", batch_fn=names["read_batch"]), names)
    found = run("Trust", names)
    assert "strong/agreement" in found["rows"][0]
    assert "weak" in Path("page.html").read_text()


def test_faithfulness(names):
    found = run("Faithfulness", names)
    assert found["correlation"].shape == (CLASSES,)
    assert len(found["areas"]) == 2
    assert next(iter(found["steps"])) == "head"
    assert {"features.2", "features.0"} <= set(found["steps"])


def test_failure_modes(names):
    found = run("Failure modes", names)
    assert len(found["of_label"]) == len(found["of_prediction"]) == 1
    assert not torch.equal(found["of_label"], found["of_prediction"])


def test_adversarial_noise(names, net):
    found = run("Adversarial noise", names)
    assert (found["noisy"] - names["images"]).abs().max() <= 0.0201
    before, after = (F.cross_entropy(net(one), names["labels"]) for one in (names["images"], found["noisy"]))
    assert after > before
    assert found["still"].shape == (CLASSES,)


def test_bias(names):
    keys = logged(run("Bias", names)["callback"], names)
    assert {"gradcam/drift_floor/old", "gradcam/drift_floor/new"} & set(keys)


def test_textual_explanations(names, capsys):
    found = run("Textual explanations", names)
    assert len(found["reasons"]) == CLASSES
    assert str(found["reasons"][0]).count("concept") == 8
    assert "strongest: concept" in capsys.readouterr().out


def test_image_captioning(names, net):
    found = run("Image captioning", names)
    assert "gradcam/drift_floor" in logged(found["callback"], names)
    words = torch.tensor([[0, 3]])
    probabilities = net.caption(names["images"][:1], words).softmax(2)[0]
    expected = (probabilities[0, 0] * probabilities[1, 3]).log()
    score = found["caption_score"](net.caption(names["images"][:1], words), Batch(names["images"][:1], inputs=words))
    torch.testing.assert_close(score, expected[None])


def test_visual_question_answering(names):
    def collate(items):
        images, labels = default_collate(items)
        return {"image": images, "answer": labels, "question": labels % 2}

    callback = run("Visual question answering", names)["callback"]
    assert "gradcam/drift_floor" in logged(callback, names, collate)


def test_which_layer_which_weights(names):
    found = run("Which layer, which weights", names)
    keys = logged(found["callback"], names)
    assert {"gradcam_0/drift_floor", "gradcam_2/drift_floor"} <= set(keys)
    assert (found["variant"] >= 0).all()
