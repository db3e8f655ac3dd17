"""Runs on volumes, clips and signals: the training is left alone, and numbers, pictures and record are of all axes."""

import io
import logging
import re

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tiny import events, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradcam import Batch, Display, GradCAMCallback, Record, gradcam
from lightning_gradcam.attribution.reading import AskError


class FramesAndGRU(nn.Module):
    """A network for images on all frames of clips (n, t, c, h, w), and one for sequences behind it."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.1))
        self.gru, self.head = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, clips):
        rows = self.cnn(clips.flatten(0, 1)).mean((2, 3))
        return self.head(self.gru(rows.unflatten(0, clips.shape[:2]))[0][:, -1])


def volume_net():
    return nn.Sequential(
        *(nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 2)),
    )


def signal_net():
    return nn.Sequential(
        *(nn.Conv1d(3, 6, 5), nn.BatchNorm1d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 2)),
    )


# A network, the shape of a sample, the grid of its last layer, and the size of what is drawn.
KINDS = {
    "volume": (volume_net, (1, 6, 10, 8), (6, 10, 8), (6, 10, 8)),
    "clip": (FramesAndGRU, (5, 3, 10, 8), (5, 10, 8), (5, 10, 8)),
    "signal": (signal_net, (3, 40), (36,), (40,)),
}


class Lit(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def data(shape, *more):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(12, *shape, generator=generator), torch.arange(12) % 2, *more), 4)


def fit(kind, *callbacks, loader=None, **options):
    make, shape, _, _ = KINDS[kind]
    pl.seed_everything(0, verbose=False)
    module, loader = Lit(make()), loader or data(shape)
    training = trainer(*callbacks, **{"max_epochs": 2, **options})
    training.fit(module, loader, loader)
    return module, training


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_is_the_same_and_the_record_holds_all_axes(kind, tmp_path):
    _, shape, grid, size = KINDS[kind]
    without = fit(kind, default_root_dir=tmp_path / "without")[0].state_dict()
    module, training = fit(kind, GradCAMCallback(samples=3), default_root_dir=tmp_path / "with")
    torch.testing.assert_close(module.state_dict(), without, rtol=0, atol=0)
    numbers = {"drift", "drift_floor", "drift_chance", "centroid_shift", "topk_iou", "concentration", "empty_fraction"}
    assert {f"gradcam/{name}" for name in numbers} <= training.callback_metrics.keys()
    record = Record.open(next((tmp_path / "with").rglob("record.json")).parent)
    assert record.maps["gradcam"].shape == (3, 3, *grid)
    assert record.photos.shape == (3, *size)
    images = torch.stack([data(shape).dataset[i][0] for i in record.about["ids"]])
    labels = torch.tensor(record.about["labels"])
    time_axis = 1 if kind == "clip" else None
    expected = gradcam(module.eval(), images, target="label", labels=labels, time_axis=time_axis)
    torch.testing.assert_close(torch.from_numpy(record.maps["gradcam"][-1]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_regions_localization_and_guided_pictures(kind, tmp_path):
    size = KINDS[kind][3]
    start, end = [side // 4 for side in size[::-1]], [side // 2 + 1 for side in size[::-1]]

    def batch_fn(batch):
        box = torch.tensor([start + end] * len(batch[0]))
        return Batch(batch[0], batch[1], {"object": box}, time_axis=1 if kind == "clip" else None)

    callback = GradCAMCallback(samples=3, batch_fn=batch_fn, localization="object", guided=True)
    logger = TensorBoardLogger(tmp_path)
    _, training = fit(kind, callback, logger=logger)
    numbers = training.callback_metrics
    assert 0 <= numbers["gradcam/mass_object"] <= 1
    share = torch.tensor(
        [(last - first) / side for first, last, side in zip(start, end, size[::-1], strict=True)]
    ).prod()
    torch.testing.assert_close(
        numbers["gradcam/mass_object"] / numbers["gradcam/lift_object"], share, rtol=1e-3, atol=0
    )
    assert {"gradcam/max_box_acc_v2", "gradcam/pxap", "gradcam/localization_error_known"} <= numbers.keys()
    tags = set(events(logger.log_dir).Tags()["images"])
    kinds = ("grid", "filmstrip", "positional_bias_map", "guided_backprop", "guided_gradcam")
    expected = {f"gradcam/{kind}" for kind in kinds}
    assert tags == expected | ({"gradcam/clip"} if kind == "clip" else set())
    if kind == "clip":
        played = Image.open(io.BytesIO(events(logger.log_dir).Images("gradcam/clip")[-1].encoded_image_string))
        assert (played.format, played.n_frames) == ("GIF", 5)


def test_what_is_read_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fit("volume", GradCAMCallback(samples=2), default_root_dir=tmp_path)
    assert "GradCAMCallback takes the images for volumes (n, c, D, H, W); `Batch(time_axis=2)` says" in caplog.text
    caplog.clear()
    fit("clip", GradCAMCallback(samples=2), default_root_dir=tmp_path)
    assert "takes the images for clips (n, t, c, H, W), by what the model reads first" in caplog.text


def test_maps_are_summed_down_to_16_cells_a_side(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fit("volume", GradCAMCallback(samples=2), loader=data((1, 6, 20, 33)), default_root_dir=tmp_path)
    assert caplog.text.count("`net.2` has 6 x 20 x 33 cells; its maps are summed down to at most 16 a side") == 1
    record = Record.open(next(tmp_path.rglob("record.json")).parent)
    assert record.maps["gradcam"].shape[2:] == (6, 16, 16)


def test_a_line_to_paste_where_nothing_tells_the_axes(tmp_path):
    """All frames are channels of one image here."""

    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.cnn, self.head = nn.Conv2d(15, 4, 3), nn.Linear(4, 2)

        def forward(self, clips):
            return self.head(self.cnn(clips.flatten(1, 2)).relu().mean((2, 3)))

    training = trainer(GradCAMCallback(samples=2), default_root_dir=tmp_path)
    paste = "batch_fn=lambda batch: Batch(images=batch[0], labels=batch[1], time_axis=2)"
    with pytest.raises(AskError, match=f"(?s)give `time_axis=1` .*{re.escape(paste)}"):
        training.fit(Lit(Stacked()), data((5, 3, 10, 8)), data((5, 3, 10, 8)))


def test_a_network_without_a_grid_is_told_of_once_and_trains_on(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(5 * 3 * 80, 2))
    training = trainer(GradCAMCallback(samples=2), default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="none of its modules hands out maps or tokens on a grid"):
        training.fit(Lit(net), data((5, 3, 10, 8)), data((5, 3, 10, 8)))
    assert training.current_epoch == 2


class MetaTensor(torch.Tensor):
    """As MONAI's, which carries where it comes from."""

    @property
    def pixdim(self):
        return [torch.tensor([4.0, 1.0, 1.0])] * len(self)


def test_metatensors_leave_their_proportions_and_nothing_else(tmp_path, monkeypatch):
    def collate(items):
        images = torch.stack([image for image, _ in items]).as_subclass(MetaTensor)
        images.meta = {"filename_or_obj": "patient_7.nii"}
        return images, torch.tensor([label for _, label in items])

    loader = DataLoader(data((1, 6, 10, 8)).dataset, 4, collate_fn=collate)
    callback = GradCAMCallback(samples=3)
    _, training = fit("volume", callback, loader=loader, default_root_dir=tmp_path)
    training.save_checkpoint(tmp_path / "run.ckpt")
    record = next(tmp_path.rglob("record.json")).parent
    assert Record.open(record).about["spacing"] == [4, 1, 1]
    for file in [tmp_path / "run.ckpt", *record.rglob("*")]:
        assert file.is_dir() or (b"patient_7" not in file.read_bytes() and b"MetaTensor" not in file.read_bytes())


def test_a_resumed_run_goes_on(tmp_path):
    _, training = fit("volume", GradCAMCallback(samples=3), default_root_dir=tmp_path / "first")
    training.save_checkpoint(tmp_path / "run.ckpt")
    callback = GradCAMCallback(samples=3)
    loader = data(KINDS["volume"][1])
    resumed = trainer(callback, max_epochs=3, default_root_dir=tmp_path / "second")
    resumed.fit(Lit(volume_net()), loader, loader, ckpt_path=tmp_path / "run.ckpt")
    record = Record.open(next((tmp_path / "second").rglob("record.json")).parent)
    assert record.epochs.tolist() == [-1, 0, 1, 2]


def test_a_named_layer_with_one_cell_in_time_is_told_of(tmp_path):
    pooled = nn.Sequential(
        *(nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)), nn.ReLU(), nn.Conv3d(4, 5, (5, 1, 1)), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 2)),
    )
    training = trainer(GradCAMCallback("net.3", samples=2), default_root_dir=tmp_path, max_epochs=1)
    with pytest.warns(UserWarning, match="the 1 x 10 x 8 cells of `net.3` tell nothing of when; a layer before it has"):
        training.fit(Lit(pooled), data((3, 5, 10, 8)), data((3, 5, 10, 8)))


def test_a_window_is_for_greys(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    display = Display(window=(0.25, 0.75))
    fit("volume", GradCAMCallback(samples=2, display=display), default_root_dir=tmp_path)
    assert "percentile" not in caplog.text
    photos = Record.open(next(tmp_path.rglob("record.json")).parent).photos
    images = data(KINDS["volume"][1]).dataset.tensors[0][[0, 6], 0]
    torch.testing.assert_close(torch.from_numpy(photos), (((images - 0.25) / 0.5).clamp(0, 1) * 255).round().byte())
