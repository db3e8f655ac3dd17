"""The single line on projects of every kind: what is asked, what is logged, what is said."""

from dataclasses import dataclass

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from tiny import events, pictures, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradcam import Batch, EmbeddingTarget, GradCAMCallback, Record, RegressionTarget, SegmentationTarget
from lightning_gradcam.picture import grid as drawing


def net(outputs):
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs)
    return nn.Sequential(*layers)


def zero(output, target):
    return output.square().mean()


class Lit(pl.LightningModule):
    """Trains a net on the first two parts of a batch."""

    def __init__(self, model, loss=zero):
        super().__init__()
        self.net, self.loss = model, loss

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = list(batch.values() if isinstance(batch, dict) else batch)[:2]
        return self.loss(self(images), labels)

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def data(labels, names=None, size=16, **options):
    generator = torch.Generator().manual_seed(0)
    dataset = TensorDataset(torch.rand(len(labels), 3, size, size, generator=generator), labels)
    if names:
        dataset.classes = names
    return DataLoader(dataset, 8, **options)


@pytest.fixture
def captions(monkeypatch):
    """The captions of the last grid."""
    found = []

    def keep(*args, **kwargs):
        found[:] = kept(*args, **kwargs)
        return list(found)

    kept = drawing.captions
    monkeypatch.setattr("lightning_gradcam.run.pictures.captions", keep)
    return found


def run(module, loader, **options):
    """Train with the single line and read the record."""
    settings = {"samples": 4} | options
    fitted = trainer(GradCAMCallback(record="record", **settings))
    fitted.fit(module, loader, loader)
    return Record.open("record")


LABELS = torch.arange(16) % 4


def test_one_output_and_labels_of_any_value_are_a_regression(captions):
    ages = torch.linspace(1, 90, 16)
    module = Lit(net(1), lambda output, target: F.l1_loss(output[:, 0], target))
    record = run(module, data(ages))
    with torch.no_grad():
        expected = module.eval()(data(ages).dataset.tensors[0][::4])[:, 0]
    np.testing.assert_allclose(record.samples[-1]["score"], expected, rtol=1e-5)
    assert set(record.samples[-1]["right"]) == set(record.samples[-1]["predicted"]) == {-1}
    assert record.about["settings"]["question"] == "target RegressionTarget() · gradcam"
    assert captions[1].sample == (f"#4 {ages[4]:g}", "")
    assert captions[1].prediction[0] == f"pred {expected[1]:.4g}"
    assert captions[1].right is None
    assert "gradcam/prediction_flips" not in record.numbers[-1]


def test_columns_beside_values_are_asked_about():
    boxes = torch.tensor([[4.0, 4.0, 12.0, 12.0]]).repeat(16, 1)
    paste = r"To paste, beside your other arguments: GradCAMCallback\(target=RegressionTarget\(column=0\)\)"
    with pytest.raises(ValueError, match=f"name no classes.*RegressionTarget.*\n{paste}"):
        run(Lit(net(4)), data(boxes))
    with pytest.raises(ValueError, match=f"may be classes or coordinates.*\n{paste}"):
        run(Lit(net(4)), data(torch.rand(16, 4)))
    record = run(Lit(net(4)), data(boxes), target=RegressionTarget(2))
    assert record.about["labels"] == [12.0] * 4


def test_a_target_of_the_users_own_beside_values_predicts_no_class(captions):
    record = run(Lit(net(4)), data(torch.rand(16, 4)), target=lambda output, batch: output[:, 0])
    assert set(record.samples[-1]["predicted"]) == {-1}
    assert captions[0].sample[0] == "#0"
    assert captions[0].prediction[0] == ""
    assert "gradcam/prediction_flips" not in record.numbers[-1]


def test_a_net_that_ends_in_a_sigmoid_says_what_it_says():
    model = nn.Sequential(net(1), nn.Sigmoid())
    nn.init.constant_(model[0][-1].bias, -3.0)
    record = run(Lit(model, lambda output, target: output.sum() * 0), data(torch.zeros(16).long()))
    last = record.samples[-1]
    assert set(last["predicted"]) == {0}
    assert set(last["right"]) == {1}
    with torch.no_grad():
        expected = 1 - model(data(LABELS).dataset.tensors[0][::4])[:, 0]
    np.testing.assert_allclose(last["confidence"], expected, rtol=1e-5)
    np.testing.assert_allclose(last["score"], (expected / (1 - expected)).log(), rtol=1e-4)


def test_one_hot_and_smoothed_labels_are_those_of_a_softmax():
    indices = run(Lit(net(4)), data(LABELS)).samples
    one_hot = F.one_hot(LABELS, 4)
    for number, rows in enumerate((one_hot, one_hot * 0.9 + 0.025)):
        torch.manual_seed(0)
        callback = GradCAMCallback(samples=4, record=f"rows{number}")
        trainer(callback).fit(Lit(net(4)), data(rows), data(rows))
        rows_of = Record.open(f"rows{number}").samples
        assert rows_of.shape == indices.shape
        assert rows_of[-1]["of_label"] == pytest.approx(rows_of[-1]["confidence"], abs=1)
        assert np.isfinite(rows_of["of_label"]).all()
        assert ((rows_of["predicted"] == 0) == (rows_of["right"] == 1)).all()  # the samples are all of class 0


def test_that_rows_may_name_several_classes_is_told_by_more_than_the_samples_that_are_looked_at():
    rows = torch.eye(4)[torch.arange(16) % 4]
    rows[1] = 1  # which is none of the four samples
    several = run(Lit(net(4)), data(rows)).samples[-1]
    assert np.isnan(several["of_label"]).all()
    rows[1] = rows[0]
    module = Lit(net(4))
    module.criterion = nn.BCEWithLogitsLoss()
    callback = GradCAMCallback(samples=4, record="loss")
    trainer(callback).fit(module, data(rows), data(rows))
    assert callback._session.probe.batch.multilabel
    callback = GradCAMCallback(samples=4, record="one")
    trainer(callback).fit(Lit(net(4)), data(rows), data(rows))
    assert callback._session.probe.batch.multilabel is False


def test_samples_without_a_label_are_shown_and_not_counted(captions):
    labels = LABELS.clone()
    labels[4] = -1
    module = Lit(net(4), lambda output, target: F.cross_entropy(output, target, ignore_index=-1))
    record = run(module, data(labels, list("abcd")))
    assert record.samples[-1]["right"][1] == -1
    assert (record.samples[-1]["right"][[0, 2, 3]] >= 0).all()
    assert captions[1].sample == ("#4 no label", "")
    assert captions[1].prediction[0].startswith("pred ")
    assert captions[1].right is None
    maps = torch.tensor(record.maps["gradcam"][-1])
    empty = (maps <= 0).flatten(1).all(1).float()
    assert record.numbers[-1]["gradcam/strength"] == pytest.approx(
        maps[[0, 2, 3]].sum((1, 2)).median().item(), rel=1e-5
    )
    assert record.numbers[-1]["gradcam/empty_fraction"] == pytest.approx(empty[[0, 2, 3]].mean().item())


@pytest.mark.parametrize("labels", [torch.full((16,), -100), torch.zeros(16, 4)])
def test_where_no_sample_has_a_label_what_is_predicted_is_asked(labels, captions, caplog):
    module = Lit(net(4))
    with caplog.at_level("INFO"):
        record = run(module, data(labels))
    assert record.about["settings"]["question"] == "target predicted · gradcam"
    assert set(record.samples[-1]["right"]) == {-1}
    assert captions[0].sample[0] == "#0 no label"
    assert caplog.text.count('asks for `target="predicted"`, since no sample has a label') == 1
    assert record.numbers[-1]["gradcam/strength"] is not None


def test_more_outputs_than_class_names_are_named_by_none_of_them(captions):
    with pytest.warns(UserWarning, match=r"64 outputs and the dataset 2 class names.*`target=EmbeddingTarget\(\)`"):
        record = run(Lit(net(64)), data(torch.arange(16) % 2, ["cat", "dog"]))
    assert set(record.samples[-1]["predicted"]) == {-1}
    assert captions[0].prediction[0] == ""
    callback = GradCAMCallback(samples=4, target=EmbeddingTarget(), record="norms")
    loader = data(torch.arange(16) % 2, ["cat", "dog"])
    trainer(callback).fit(Lit(net(64)), loader, loader)
    assert captions[0].prediction[0].startswith("norm ")
    assert captions[0].sample[0] == "#0 cat"


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = net(16), nn.Linear(16, 4)

    def forward(self, images):
        found = self.body(images)
        return found, self.head(found)


def test_of_several_outputs_the_one_with_a_column_a_class_is_the_logits(caplog):
    with caplog.at_level("INFO"):
        record = run(Lit(Two(), lambda output, target: F.cross_entropy(output[1], target)), data(LABELS, list("abcd")))
    assert record.samples[-1]["predicted"].max() < 4
    assert "GradCAMCallback reads the output's `[1]` as logits." in caplog.text


class Whole(Lit):
    def forward(self, batch):  # type: ignore[reportIncompatibleMethodOverride]
        return self.net(batch[0])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch), batch[1])


class Unpacked(Lit):
    def forward(self, **batch):  # type: ignore[reportIncompatibleMethodOverride]
        return self.net(batch["pixel_values"])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(**batch), batch["labels"])


class Named(Lit):
    def forward(self, scale, image, loss=None, label=None):  # type: ignore[reportIncompatibleMethodOverride]
        assert label is None  # which the batch has, and the forward needs not
        return self.net(image) * scale[:, None]

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["scale"], batch["image"]), batch["label"])


class WithLabels(Lit):
    def forward(self, x, y):  # type: ignore[reportIncompatibleMethodOverride]
        return self.net(x) + y[:, None]

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(*batch), batch[1])


def as_dict(*names, **more):
    def collate(items):
        images, labels = map(torch.stack, zip(*items, strict=True))
        return dict(zip(names, (images, labels), strict=True)) | {
            name: torch.full((len(items),), value) for name, value in more.items()
        }

    return collate


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (Whole, {}, "calls `forward(batch)`"),
        (Unpacked, {"collate_fn": as_dict("pixel_values", "labels")}, "calls `forward(**batch)`"),
        (Named, {"collate_fn": as_dict("image", "label", scale=2.0)}, "calls `forward(scale=..., image=...)`"),
        (WithLabels, {}, "calls `forward(x=..., y=...)`"),
    ],
)
def test_a_forward_that_takes_other_things_gets_them_by_their_names(module, options, said, caplog):
    torch.manual_seed(1)
    lit = module(net(4))
    with caplog.at_level("INFO"):
        record = run(lit, data(LABELS, **options), target=1)
    assert said in caplog.text
    images, labels = (tensor[::4] for tensor in data(LABELS).dataset.tensors)
    with torch.no_grad():
        expected = lit.eval().net(images)
    expected = expected * 2 if module is Named else expected + labels[:, None] if module is WithLabels else expected
    np.testing.assert_allclose(record.samples[-1]["score"], expected[:, 1], rtol=1e-4, atol=1e-6)
    assert 0 < record.numbers[-1]["gradcam/drift_floor"] < 1  # the shifted images went in as well


class Masked(Lit):
    def forward(self, x, mask):  # type: ignore[reportIncompatibleMethodOverride]
        return self.net(x * mask)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0], 1), batch[1])


def test_a_forward_that_the_batch_has_nothing_for_is_asked_about():
    with pytest.raises(
        ValueError,
        match=r"(?s)takes \(x, mask\), the batch is \[tensor .*module\(batch.images, mask=batch.inputs",
    ):
        run(Masked(net(4)), data(LABELS))


def test_all_that_is_missing_is_told_at_once():
    class Pair(Lit):
        def training_step(self, batch, batch_idx):
            return self(batch["left"]).mean()

    def pair(items):
        images = torch.stack([image for image, _ in items])
        return {"left": images, "right": images}

    with pytest.raises(ValueError, match="must be told 2 things") as raised:
        run(Pair(net(4)), data(LABELS, collate_fn=pair), target_layer="net.nine")
    _, *problems, last = str(raised.value).splitlines()
    assert [line[:3] for line in problems] == ["1. ", "2. "]
    assert "'net.nine' is not a layer of Pair" in problems[0]
    assert "images may be any of batch['left'], batch['right']" in problems[1]
    assert last.endswith("GradCAMCallback(batch_fn=lambda batch: Batch(images=batch['left']))")


class UNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.act, self.head = nn.ReLU(), nn.Conv2d(8, classes, 1)

    def forward(self, images):
        return self.head(self.act(self.up(self.down(images).relu())))


def masks(value=1):
    found = torch.zeros(16, 16, 16, dtype=torch.long)
    found[:, :8] = value
    found[4] = 0
    return found


def test_a_mask_makes_a_segmentation_of_it(captions):
    module = Lit(UNet(3), lambda output, target: F.cross_entropy(output, target))
    record = run(module, data(masks(2), ["sky", "road", "tree"]))
    assert record.about["settings"]["question"] == "target SegmentationTarget(region='object') · gradcam"
    assert record.about["labels"] == [2, -100, 2, 2]
    with torch.no_grad():
        pixels = module.eval()(data(masks()).dataset.tensors[0][::4])
    np.testing.assert_allclose(
        record.samples[-1]["score"][[0, 2, 3]], pixels[[0, 2, 3], 2, :8].mean((1, 2)), rtol=1e-4, atol=1e-6
    )
    share = (pixels.argmax(1) == 2).float().mean((1, 2))
    assert captions[0].sample == ("#0 tree", "50%")
    assert captions[0].prediction[0] == f"tree {share[0]:.0%}"
    assert captions[1].sample[0] == "#4 no label"
    assert 0 <= record.numbers[-1]["gradcam/mass_object"] <= 1
    assert record.numbers[-1]["gradcam/lift_object"] == pytest.approx(2 * record.numbers[-1]["gradcam/mass_object"])


def test_a_segmentation_that_ends_in_a_sigmoid_is_asked_before_it():
    model = nn.Sequential(UNet(1), nn.Sigmoid())
    record = run(Lit(model, lambda output, target: output.mean()), data(masks()))
    with torch.no_grad():
        logits = model[0](data(masks()).dataset.tensors[0][::4])
    np.testing.assert_allclose(record.samples[-1]["score"][0], logits[0, 0, :8].mean(), rtol=1e-4, atol=1e-6)


def test_maps_without_a_mask_are_a_segmentation_only_where_the_class_names_are_as_many(caplog):
    with pytest.raises(
        ValueError, match=r"maps \(2, 3, 16, 16\) and the batch has no mask.*SegmentationTarget\(index\)"
    ):
        run(Lit(UNet(3)), data(LABELS))
    with caplog.at_level("INFO"):
        record = run(Lit(UNet(3)), data(LABELS, ["sky", "road", "tree"]))
    assert "the commonest but 0 of the first look" in caplog.text
    with pytest.raises(ValueError, match=r"maps \(2, 3, 16, 16\) and the batch has no mask"):
        run(Lit(UNet(3)), data(LABELS, list("abcd")))
    assert record.samples["asked"].min() > 0


def test_the_commonest_class_of_the_first_look_is_kept_when_a_run_is_resumed():
    class Turning(UNet):
        def forward(self, images):
            turn = torch.arange(3) == (1 if self.early else 2)
            return super().forward(images) * 1e-3 + turn[:, None, None]

    def module(early):
        model = Turning(3)
        model.early = early
        return Lit(model)

    loader, options = data(LABELS, ["sky", "road", "tree"]), {"enable_checkpointing": False, "logger": False}
    first = trainer(GradCAMCallback(samples=4, record="record"), max_epochs=1, **options)
    first.fit(module(True), loader, loader)
    first.save_checkpoint("first.ckpt")
    callback = GradCAMCallback(samples=4, record="record")
    trainer(callback, max_epochs=2, **options).fit(module(False), loader, loader, ckpt_path="first.ckpt")
    assert callback._session.probe.question.target == SegmentationTarget(1)
    assert set(Record.open("record").samples["asked"].flatten()) == {1}


class Detector(nn.Module):
    """Gives a box a sample, whose score is what a small net says, in torchvision's form."""

    def __init__(self):
        super().__init__()
        self.net = net(1)

    def forward(self, images, targets=None):
        assert isinstance(images, list)
        scores = self.net(torch.stack([F.interpolate(image[None], (16, 16))[0] for image in images])).sigmoid()
        box = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1])}
        return [box | {"scores": score} for score in scores]


class LitDetector(Lit):
    def training_step(self, batch, batch_idx):
        images, _ = batch
        return sum(found["scores"].sum() for found in self(list(images)))


def test_detections_are_asked_for_the_class_of_most_boxes(captions):
    @dataclass
    class Detections:
        classes = ("-", "cat", "dog")

        def __len__(self):
            return 8

        def __getitem__(self, index):
            image = torch.rand(3, 16, 16 + index % 2, generator=torch.Generator().manual_seed(index))
            target = {"boxes": torch.tensor([[0.0, 0, 8, 16], [0, 0, 2, 2]]), "labels": torch.tensor([1, 1])}
            return image, target

    loader = DataLoader(Detections(), 4, collate_fn=lambda items: tuple(zip(*items, strict=True)))
    module = LitDetector(Detector())
    record = run(module, loader, target_layer="net.net.1")
    assert record.about["labels"] == [1] * 4
    assert record.about["settings"]["question"] == "target DetectionTarget() · gradcam"
    images = [Detections()[index][0] for index in (0, 2, 4, 6)]
    with torch.no_grad():
        expected = [found["scores"].item() for found in module.eval()(images)]
    np.testing.assert_allclose(record.samples[-1]["score"], expected, rtol=1e-4)
    assert captions[0].sample[0] == "#0 cat"
    assert captions[0].prediction[0] == "cat 1 box"
    assert "gradcam/mass_object" in record.numbers[-1]


def test_what_is_read_stands_in_the_dashboards_card():
    logger = TensorBoardLogger("logs", name="a", version="b")
    loader = data(torch.linspace(1, 90, 16))
    trainer(GradCAMCallback(samples=4), logger=logger, max_epochs=1).fit(Lit(net(1)), loader, loader)
    (card,) = events(logger.log_dir).Tensors("gradcam/probe/text_summary")
    text = card.tensor_proto.string_val[0].decode()
    assert "batch[0]" in text
    assert "RegressionTarget" in text


def test_a_batch_fn_of_the_users_own_is_taken_at_its_word():
    record = run(Lit(net(4)), data(masks()), batch_fn=lambda batch: Batch(batch[0], torch.ones(len(batch[0])).long()))
    assert record.about["labels"] == [1] * 4
    assert pictures()["gradcam-grid"]


@pytest.mark.parametrize(
    "kind",
    [
        lambda: (Lit(net(1)), torch.linspace(1, 90, 16)),
        lambda: (Lit(nn.Sequential(net(4), nn.Softmax(1))), LABELS),
        lambda: (Lit(UNet(3)), masks(2)),
        lambda: (Lit(Two(), lambda output, target: zero(output[1], target)), LABELS),
        lambda: (Whole(net(4)), LABELS),
    ],
)
def test_no_reading_changes_the_run(kind):
    states = []
    for callbacks in ([], [GradCAMCallback(samples=4)]):
        torch.manual_seed(0)
        module, labels = kind()
        trainer(*callbacks, num_sanity_val_steps=0).fit(module, data(labels, shuffle=True), data(labels))
        states.append([*module.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
