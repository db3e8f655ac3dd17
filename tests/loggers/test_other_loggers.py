"""What MLflow, Comet, LitLogger, Trackio and loggers with `log_image` get: from stand-ins, and where they are there
from the packages themselves."""

import inspect
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger
from pytorch_lightning.loggers.logger import DummyLogger
from tiny import Recorder, TinyModule, loader, pictures, trainer

from lightning_gradcam import GradCAMCallback
from lightning_gradcam.loggers import comet, images, litlogger, mlflow, trackio
from lightning_gradcam.loggers.destinations import LOGGERS, send_alert

STEPS = [0, 2, 5]  # before training, and after each of two epochs of three batches
FRAMES = [Image.new("RGB", (30, 20), color) for color in ("red", "green", "blue")]


def fit(*loggers, **options):
    callback = GradCAMCallback("net.5", samples=4, **options)
    trainer(callback, logger=list(loggers)).fit(TinyModule(), loader(), loader())


def named(name, experiment, **more):
    """A logger of a class of this name."""
    return type(name, (Recorder,), {"experiment": experiment, **more})()


def is_page(text):
    return text.startswith("<!doctype html>") and "</html>" in text


class MLflowClient:
    def __init__(self):
        self.images, self.texts = [], []

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None, timestamp=None, synchronous=None):
        assert isinstance(image, Image.Image)
        self.images.append((run_id, key, step, image.size, synchronous))

    def log_text(self, run_id, text, artifact_file):
        self.texts.append((run_id, text, artifact_file))


def test_mlflow_gets_images_by_step_and_the_page():
    client = MLflowClient()
    fit(named("MLFlowLogger", client, run_id="a"))
    assert [step for _, key, step, *_ in client.images if key == "gradcam/grid"] == STEPS
    assert [step for _, key, step, *_ in client.images if key == "gradcam/filmstrip"] == STEPS
    assert {(run, aside) for run, *_, aside in client.images} == {("a", False)}
    assert {(run, file) for run, _, file in client.texts} == {("a", "gradcam/page.html")}
    assert all(is_page(text) for _, text, _ in client.texts)


def test_mlflow_before_it_had_a_thread_for_images():
    calls = []

    def log_image(run_id, image, artifact_file=None, key=None, step=None, timestamp=None):
        calls.append((image, key, step))

    logger = SimpleNamespace(experiment=SimpleNamespace(log_image=log_image), run_id="a")
    mlflow.write_picture(logger, "größe/clip", FRAMES, 3)
    assert calls == [(FRAMES[0], "gre/clip", 3)]


@pytest.mark.filterwarnings("ignore:.*noload:DeprecationWarning")  # of SQLAlchemy 2.1, which MLflow asks for
def test_mlflow_in_a_store():
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    logger = MLFlowLogger("test", tracking_uri=f"sqlite:///{Path.cwd()}/runs.db")
    fit(logger)
    client, run = logger.experiment, logger.run_id
    found = [Path(one.path).name.split("+")[:3] for one in client.list_artifacts(run, "images")]
    grids = sorted(int(step) for key, _, step in found if key in ("gradcam~grid", "gradcam#grid"))
    assert grids == sorted(2 * STEPS)  # in full, and small
    assert [one.path for one in client.list_artifacts(run, "gradcam")] == ["gradcam/page.html"]
    # Without a folder of the logger's own, beside the checkpoints.
    assert Path(logger.name, logger.version, "gradcam", "record.json").is_file()


class CometExperiment:
    def __init__(self):
        self.images, self.assets = [], {}

    def log_image(self, image_data, name=None, overwrite=False, image_format="png", step=None):
        with Image.open(image_data) as image:
            self.images.append((name, step, image.format))

    def log_asset_data(self, data, name=None, overwrite=False, step=None):
        assert overwrite
        self.assets[name] = data


def test_comet_gets_images_by_step_and_the_page():
    experiment = CometExperiment()
    fit(named("CometLogger", experiment))
    assert [step for name, step, _ in experiment.images if name == "gradcam/grid.jpg"] == STEPS
    assert {kind for *_, kind in experiment.images} == {"JPEG"}
    assert list(experiment.assets) == ["gradcam/page.html"]
    assert is_page(experiment.assets["gradcam/page.html"])
    comet.write_picture(SimpleNamespace(experiment=experiment), "gradcam/clip", FRAMES, 3)
    assert experiment.images[-1] == ("gradcam/clip.gif", 3, "GIF")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_comet_offline(monkeypatch):
    monkeypatch.setenv("COMET_INTERNAL_SENTRY_DSN", "")  # it would tell of its errors over the network
    monkeypatch.setenv("COMET_DISABLE_AUTO_LOGGING", "1")
    comet_ml = pytest.importorskip("comet_ml")
    # Lightning's own logger starts a disabled experiment where it is to be offline.
    experiment = comet_ml.OfflineExperiment(project_name="p", workspace="w", offline_directory="comet")
    fit(named("CometLogger", experiment))
    experiment.end()
    (archive,) = Path("comet").glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        lines = [json.loads(line) for line in files.read("messages.json").splitlines()]
    uploads = [line["payload"] for line in lines if line["type"] == "file_upload"]
    names = [one["additional_params"].get("figName") or one["additional_params"].get("fileName") for one in uploads]
    assert names.count("gradcam/grid.jpg") == len(STEPS)
    assert "gradcam/page.html" in names


class Series(list):
    def append(self, value, step=None):
        super().append((value, step))


class LitExperiment(dict):
    def __missing__(self, key):
        self[key] = Series()
        return self[key]


@pytest.fixture
def lit_package(monkeypatch):
    class LitImage:
        def __init__(self, data, format="png", description=""):  # noqa: A002
            self.data, self.format = data, format

    class LitFile:
        def __init__(self, path, description=""):
            self.text = Path(path).read_text(encoding="utf-8")

    monkeypatch.setitem(sys.modules, "litlogger", SimpleNamespace(Image=LitImage, File=LitFile))


def test_litlogger_gets_a_series_of_images_and_the_page(lit_package):
    experiment = LitExperiment()
    fit(named("LitLogger", experiment))
    assert [step for _, step in experiment["gradcam/grid"]] == STEPS
    assert {image.format for image, _ in experiment["gradcam/grid"]} == {"jpg"}
    assert is_page(experiment["gradcam/page.html"].text)
    litlogger.write_picture(SimpleNamespace(experiment=experiment), "gradcam/clip", FRAMES, 3)
    assert experiment["gradcam/clip"][0][0].data is FRAMES[0]


def test_litlogger_has_the_interface():
    package = pytest.importorskip("litlogger")
    inspect.signature(package.Image).bind(FRAMES[0], format="jpg")
    inspect.signature(package.File).bind("page.html")
    inspect.signature(package.Experiment.__getitem__).bind(None, "key")
    inspect.signature(package.Experiment.__setitem__).bind(None, "key", None)


@pytest.fixture
def trackio_package(monkeypatch):
    def read(path):
        with Image.open(path) as image:
            return image.format, image.size

    package = SimpleNamespace(Image=read, Html=lambda data, inject=True: (data, inject))
    monkeypatch.setitem(sys.modules, "trackio", package)
    return package


def test_trackio_gets_pictures_pages_and_alerts(trackio_package):
    logged, alerts = [], []
    run = SimpleNamespace(log=lambda row, step: logged.append((step, row)), alert=lambda **told: alerts.append(told))
    logger = named("TrackioLogger", run)
    fit(logger)
    grids = [(step, row["gradcam/grid"][0]) for step, row in logged if "gradcam/grid" in row]
    assert grids == [(step, "JPEG") for step in STEPS]
    *_, (page, inject) = (row["gradcam/page"] for _, row in logged if "gradcam/page" in row)
    assert is_page(page)
    assert not inject
    send_alert(logger, "title", "text")
    assert alerts == [{"title": "title", "text": "text"}]
    trackio.write_picture(logger, "gradcam/clip", FRAMES, 3)
    assert logged[-1] == (3, {"gradcam/clip": ("GIF", (30, 20))})


def test_trackio_itself_serves_a_logger_that_hands_out_no_run(trackio_package):
    class TrackioLogger:
        pass

    logged = []
    trackio_package.log = lambda row, step: logged.append((list(row), step))
    trackio.write_page(TrackioLogger(), "gradcam/page", "<!doctype html>", 3)
    assert logged == [(["gradcam/page"], 3)]


def test_trackio_keeps_files(monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(Path.cwd() / "trackio"))
    monkeypatch.setenv("HF_HOME", str(Path.cwd() / "hf"))
    package = pytest.importorskip("trackio")
    fit(named("TrackioLogger", package.init(project="p", name="run", auto_log_gpu=False)))
    package.finish()
    media = Path(package.utils.MEDIA_DIR, "p", "run")
    assert len(list(media.rglob("*.jpg"))) == 3 * len(STEPS)
    assert len(list(media.rglob("*.html"))) == 2


class ImageLogger(Recorder):
    """As SwanLab's."""

    def __init__(self):
        super().__init__()
        self.images = []

    def log_image(self, key, images, step=None, **kwargs):
        assert isinstance(images, list)
        self.images.append((key, step, images[0].size, kwargs))


def test_a_logger_that_draws_random_numbers_changes_no_training():
    class Draws(ImageLogger):
        def log_image(self, key, images, step=None, **kwargs):
            torch.manual_seed(len(self.images))
            super().log_image(key, images, step, **kwargs)

    weights = []
    for logger, callbacks in ((Draws(), [GradCAMCallback(samples=2)]), (Recorder(), [])):
        torch.manual_seed(0)
        module = TinyModule()
        module.net.append(torch.nn.Dropout(0.5))  # draws in training
        trainer(*callbacks, logger=logger, max_epochs=2).fit(module, loader(), loader())
        weights.append(module.state_dict())
        assert callbacks == [] or logger.images
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())


def test_any_logger_that_logs_images_by_key_and_step_gets_them():
    logger = ImageLogger()
    fit(logger)
    assert [step for key, step, *_ in logger.images if key == "gradcam/grid"] == STEPS
    assert not any(kwargs for *_, kwargs in logger.images)
    assert not pictures()
    images.write_picture(logger, "gradcam/clip", FRAMES, 3)
    assert logger.images[-1] == ("gradcam/clip", 3, (30, 20), {})


@pytest.mark.parametrize(
    "log_image",
    [
        lambda self, name, image, step=None: None,
        lambda self, key, images, step, caption: None,
        lambda self, *args, **kwargs: None,
        "no method",
    ],
)
def test_another_method_of_that_name_is_not_called(log_image):
    logger = type("Other", (Recorder,), {"log_image": log_image})()
    fit(logger)
    assert pictures()["gradcam-grid"] == STEPS


def test_what_a_logger_makes_up_is_no_method():
    assert not images.are_taken_by(DummyLogger())


def test_a_class_that_raises_anything_has_no_such_method():
    class Raises(type):
        def __getattr__(cls, name):
            raise RuntimeError(name)

    assert not images.are_taken_by(Raises("Odd", (), {})())


@pytest.mark.parametrize(("last", "steps"), [(0, [2]), (1, [2, 5])])
def test_a_run_that_is_interrupted_sends_its_last_page_once(last, steps):
    class Breaks(TinyModule):
        def on_train_epoch_start(self):
            if self.current_epoch > last:
                raise KeyError("interrupted")

    class Counts(CometExperiment):
        def log_asset_data(self, data, name=None, overwrite=False, step=None):
            sent.append(step)

    sent = []
    run = trainer(GradCAMCallback(samples=2), logger=named("CometLogger", Counts()), max_epochs=4)
    with pytest.raises(KeyError, match="interrupted"):
        run.fit(Breaks(), loader(), loader())
    assert sent == steps


def test_swanlab_has_the_method():
    package = pytest.importorskip("swanlab.integration.pytorch_lightning")
    assert images.are_taken_by(package.SwanLabLogger(mode="disabled"))


def test_each_of_several_loggers_gets_its_own():
    experiment, logger = CometExperiment(), ImageLogger()
    fit(CSVLogger(".", name="csv", version=0), named("CometLogger", experiment), logger)
    assert [step for name, step, _ in experiment.images if "grid" in name] == STEPS
    assert [step for key, step, *_ in logger.images if "grid" in key] == STEPS
    assert not pictures()


def test_a_logger_that_fails_keeps_nothing_from_the_others():
    class Fails(CometExperiment):
        def log_image(self, *args, **kwargs):
            raise OSError("quota")

        log_asset_data = log_image

    logger = ImageLogger()
    with pytest.warns(UserWarning, match="is left out; training goes on. OSError: quota") as told:
        fit(named("CometLogger", Fails()), logger)
    assert [step for key, step, *_ in logger.images if "grid" in key] == STEPS
    assert logger.steps("gradcam/strength") == STEPS
    texts = [text for one in told if "OSError: quota" in (text := str(one.message))]
    assert sum("a picture in epoch" in text for text in texts) == 3 * len(STEPS)
    assert sum("the page of the run in epoch" in text for text in texts) == 2


def test_each_module_of_a_logger_writes_pictures_and_imports_no_package():
    for module in LOGGERS.values():
        assert callable(module.write_picture)
    code = (
        "import sys, lightning_gradcam.loggers.destinations\n"
        "print({'mlflow', 'comet_ml', 'litlogger', 'trackio', 'wandb'} & {*sys.modules})"
    )
    from tiny import python

    assert python("-c", code).stdout.strip() == "set()"
