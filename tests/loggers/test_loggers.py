"""What TensorBoard, W&B and other loggers hold after a run, read back from their own files and pages."""

import json
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from offline import rows
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tiny import TinyModule, events, loader, trainer

from lightning_gradcam import GradCAMCallback
from lightning_gradcam.loggers import files, wandb
from lightning_gradcam.loggers.tensorboard import write_picture

STEPS = [0, 2, 5]  # before training, and after each of two epochs of three batches


def fit(*loggers, **options):
    run = trainer(GradCAMCallback(samples=4), logger=list(loggers), **options)
    run.fit(TinyModule(), loader(), None if options.get("limit_val_batches") == 0 else loader())
    return run


def test_tensorboard_holds_one_jpeg_an_observation_at_the_step_of_the_metrics():
    logger = TensorBoardLogger(".", name="tb", version="a")
    fit(logger)
    found = events(logger.log_dir)
    images = found.Images("gradcam/grid")
    assert [image.step for image in images] == STEPS
    assert [0, *(scalar.step for scalar in found.Scalars("val_loss"))] == STEPS
    for key in ("strength", "empty_fraction", "seconds"):
        assert [scalar.step for scalar in found.Scalars(f"gradcam/{key}")] == STEPS
    for image in images:
        picture = Image.open(BytesIO(image.encoded_image_string))
        picture.load()
        assert picture.format == "JPEG"
        assert picture.size == (image.width, image.height)
    assert not list(Path().rglob("*.jpg"))


def test_tensorboard_without_validation():
    logger = TensorBoardLogger(".", name="tb", version="a")
    fit(logger, limit_val_batches=0)
    found = events(logger.log_dir)
    assert [image.step for image in found.Images("gradcam/grid")] == STEPS
    assert [scalar.step for scalar in found.Scalars("gradcam/strength")] == STEPS


def test_tensorboard_after_fit():
    logger = TensorBoardLogger(".", name="tb", version="a")
    run = fit(logger)
    run.validate(run.lightning_module, loader(), verbose=False)
    images = events(logger.log_dir).Images("gradcam/grid")
    assert sorted(image.step for image in images) == [*STEPS, 6]  # files of one second are read in any order


def test_a_writer_with_the_public_interface_alone():
    calls = []
    writer = SimpleNamespace(add_image=lambda *args, **options: calls.append((args, options)))
    write_picture(SimpleNamespace(experiment=writer), "key", Image.new("RGB", (3, 2), "red"), 7)
    (((key, pixels, step), options),) = calls
    assert (key, pixels.shape, step, options) == ("key", (2, 3, 3), 7, {"dataformats": "HWC"})
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_tensorboard_x():
    from tensorboardX import SummaryWriter

    writer = SummaryWriter("x")
    write_picture(SimpleNamespace(experiment=writer), "key", Image.new("RGB", (30, 20), "red"), 7)
    writer.close()
    (image,) = events("x").Images("key")
    assert (image.step, image.width, image.height) == (7, 30, 20)
    red, green, blue = np.asarray(Image.open(BytesIO(image.encoded_image_string)))[10, 10]
    assert red > 250
    assert max(green, blue) < 5


FRAMES = [Image.new("RGB", (30, 20), color) for color in ("red", "green", "blue")]


def check_gif(data):
    with Image.open(BytesIO(data)) as played:
        assert (played.format, played.n_frames, played.size) == ("GIF", 3, (30, 20))
        for i, frame in enumerate(FRAMES):
            played.seek(i)
            assert played.convert("RGB").getpixel((5, 5)) == frame.getpixel((5, 5))


@pytest.mark.parametrize("writer", ["torch.utils.tensorboard", "tensorboardX"])
def test_tensorboard_holds_a_clip_that_plays(writer):
    board = pytest.importorskip(writer).SummaryWriter("x")
    write_picture(SimpleNamespace(experiment=board), "gradcam/clip", FRAMES, 7)
    board.close()
    (image,) = events("x").Images("gradcam/clip")
    assert (image.step, image.width, image.height) == (7, 30, 20)
    check_gif(image.encoded_image_string)


def test_a_writer_with_the_public_interface_alone_gets_the_first_frame():
    calls = []
    writer = SimpleNamespace(add_image=lambda key, pixels, *_, **__: calls.append(pixels))
    write_picture(SimpleNamespace(experiment=writer), "key", FRAMES, 7)
    assert calls[0][5, 5].tolist() == [255, 0, 0]


def test_files_of_clips_play_beside_those_of_pictures():
    for _ in range(2):
        files.write_picture(Path(), "gradcam/clip", FRAMES, 3)
    files.write_picture(Path(), "gradcam/grid", FRAMES[0], 3)
    assert sorted(path.name for path in Path().glob("gradcam-*")) == [
        "gradcam-clip-step=00000003-1.gif", "gradcam-clip-step=00000003.gif", "gradcam-grid-step=00000003.jpg"
    ]  # fmt: skip
    check_gif(Path("gradcam-clip-step=00000003.gif").read_bytes())


def ask(url):
    with urlopen(url, timeout=10) as answer:
        return answer.read()


@pytest.fixture
def server():
    """TensorBoard on a free port of 127.0.0.1; the address of its page."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "tb", "--host", "127.0.0.1", "--port", "0"]
    with (
        Path("server.log").open("w") as log,
        subprocess.Popen([*command, "--load_fast=false"], stdout=log, stderr=log) as process,
    ):
        text = ""
        try:
            for _ in range(300):
                text = Path("server.log").read_text()
                if "http://" in text:
                    break
                assert process.poll() is None, text
                time.sleep(0.2)
            yield "http://" + text.split("http://")[1].split("/")[0]
        finally:
            process.terminate()


def test_tensorboard_serves_the_pictures(request):
    fit(TensorBoardLogger(".", name="tb", version="a"))
    address = request.getfixturevalue("server")
    plugin, images = f"{address}/data/plugin/images", []
    for _ in range(150):  # the server reads the files in the background
        try:
            tags = json.loads(ask(f"{plugin}/tags"))
            if "gradcam/grid" in tags.get("a", {}):
                images = json.loads(ask(f"{plugin}/images?run=a&tag={quote('gradcam/grid', safe='')}&sample=0"))
        except URLError:
            pass
        if len(images) == len(STEPS):
            break
        time.sleep(0.2)
    assert [image["step"] for image in images] == STEPS
    for image in images:
        picture = Image.open(BytesIO(ask(f"{plugin}/individualImage?{image['query']}")))
        picture.load()
        assert picture.format == "JPEG"


@pytest.mark.parametrize("beside", ["alone", "tensorboard first", "tensorboard last", "without validation"])
def test_wandb_has_one_row_an_epoch_with_picture_and_numbers(beside):
    logger = WandbLogger(project="test", save_dir=Path.cwd(), offline=True)
    board = TensorBoardLogger(".", name="tb", version="a")
    loggers = {"tensorboard first": [board, logger], "tensorboard last": [logger, board]}.get(beside, [logger])
    fit(*loggers, **({"limit_val_batches": 0} if beside == "without validation" else {}))
    history = rows(logger)
    grids = [row for row in history if any(key.startswith("gradcam/grid") for key in row)]
    assert [row["trainer/global_step"] for row in grids] == STEPS
    assert [row.get("epoch") for row in grids[1:]] == [0, 1]
    for row in grids:
        assert {"gradcam/strength", "gradcam/empty_fraction", "gradcam/seconds"} <= row.keys()
        assert any(key.startswith("gradcam/filmstrip") for key in row)
    if beside != "without validation":
        assert all("val_loss" in row for row in grids[1:])
    files = sorted(Path("wandb").glob("offline-run-*/files/media/images/gradcam/*.jpg"))
    assert len(files) == 3 * len(STEPS)  # grid, filmstrip and places
    for path in files:
        with Image.open(path) as picture:
            assert picture.format == "JPEG"


def test_wandb_holds_a_clip_that_plays_in_the_row_of_the_picture():
    logger = WandbLogger(project="test", save_dir=Path.cwd(), offline=True)
    wandb.write_picture(logger, "gradcam/clip", FRAMES, 3)
    wandb.write_picture(logger, "gradcam/grid", FRAMES[0], 3)
    logger.log_metrics({"loss": 1.0}, step=3)
    (row,) = (row for row in rows(logger) if "loss" in row)
    assert row["trainer/global_step"] == 3
    assert {"gradcam/clip", "gradcam/grid"} <= {"/".join(key.split("/")[:2]) for key in row}
    (path,) = Path("wandb").glob("offline-run-*/files/media/videos/gradcam/*.gif")
    check_gif(path.read_bytes())


def test_the_row_of_the_picture_in_wandb_tells_when_whoever_commits_it():
    class Own(TinyModule):
        def on_validation_epoch_end(self):  # behind the callback's hook, before Lightning logs
            self.logger.experiment.log({"own": 1.0})

    logger = WandbLogger(project="test", save_dir=Path.cwd(), offline=True)
    trainer(GradCAMCallback("net.5", samples=2), logger=logger).fit(Own(), loader(), loader())
    grids = [row for row in rows(logger) if any(key.startswith("gradcam/grid") for key in row)]
    assert [(row["trainer/global_step"], row["epoch"]) for row in grids] == [(0, -1), (2, 0), (5, 1)]
    assert ["own" in row for row in grids] == [False, True, True]


def test_other_loggers_get_the_numbers_and_files_the_pictures():
    logger = CSVLogger(".", name="csv", version=0)
    fit(logger)
    table = Path(logger.log_dir, "metrics.csv").read_text()
    assert "gradcam/strength" in table.splitlines()[0]
    assert len(list(Path(logger.log_dir, "gradcam").glob("*grid*.jpg"))) == len(STEPS)


def test_wandb_gets_alerts_samples_and_the_probe():
    from types import SimpleNamespace

    from lightning_gradcam.loggers.destinations import send_alert, write_card, write_samples

    calls = []

    class WandbLogger:
        experiment = SimpleNamespace(
            alert=lambda **options: calls.append(options),
            log=lambda row, commit: calls.append((list(row), [image._caption for image in row["k"]], commit)),
            config=SimpleNamespace(update=lambda row, allow_val_change: calls.append(row)),
        )

    picture = Image.new("RGB", (8, 8))
    send_alert(WandbLogger(), "title", "text")
    write_samples(WandbLogger(), "k", [picture] * 200, [str(i) for i in range(200)])
    write_card(WandbLogger(), "probe", {"layer": "net"}, 0)
    assert calls[0] == {"title": "title", "text": "text"}
    assert calls[1] == (["k"], [str(i) for i in range(108)], False)
    assert calls[2] == {"probe": {"layer": "net"}}
