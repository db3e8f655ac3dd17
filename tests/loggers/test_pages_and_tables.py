"""The page of a run and the table of its last look: when they come, what they hold, and that training is as it was."""

import json
from pathlib import Path

import pytest
import torch
from offline import artifact_files, rows
from pytorch_lightning.loggers import WandbLogger
from tiny import HOSTILE, Images, Recorder, TinyModule, Traced, boxed, different, early_stop, loader, outcome, trainer

from lightning_gradcam import Batch, Display, GradCAMCallback
from lightning_gradcam.run.table import sample_table


@pytest.fixture(autouse=True)
def staged_here(monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(Path.cwd() / "staged"))


class CometLogger(Recorder):
    """Keeps the moments of each page, with the step at which it came."""

    def __init__(self):
        super().__init__()
        self.experiment, self.pages = self, {}

    def log_image(self, data, name, step):
        pass

    def log_asset_data(self, data, name, overwrite, step):
        held = data.split('id="data">')[1].split("</script>")[0]
        self.pages.setdefault(name, []).append((step, json.loads(held)["moments"]))


def fit(*callbacks, module=None, val=True, logger=None, raises=None, **options):
    logger = logger or CometLogger()
    callback = callbacks[0] if callbacks else GradCAMCallback("net.5", samples=2)
    run = trainer(callback, *callbacks[1:], logger=logger, **options)
    loaders = loader(), loader() if val else None
    if raises is None:
        run.fit(module or TinyModule(), *loaders)
    else:
        with pytest.raises(raises):
            run.fit(module or TinyModule(), *loaders)
    return logger


def moments(logger):
    (pages,) = logger.pages.values()
    return [held for _, held in pages]


def test_the_page_comes_at_every_doubling_and_at_the_end():
    logger = fit(max_epochs=10)
    assert list(logger.pages) == ["gradcam/page.html"]
    assert [step for step, _ in logger.pages["gradcam/page.html"]] == [2, 8, 20, 29]
    assert moments(logger) == [list(range(-1, last + 1)) for last in (0, 2, 6, 9)]


def test_each_layer_has_a_page():
    logger = fit(GradCAMCallback(["net.2", "net.5"], samples=2), max_epochs=1)
    assert list(logger.pages) == ["gradcam_2/page.html", "gradcam_5/page.html"]


class Ends(TinyModule):
    """Ends its run in the second batch of the third epoch."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 2 and batch_idx == 1:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("how", "last"),
    [
        ({"callbacks": early_stop, "max_epochs": 9}, 1),
        ({"max_steps": 8, "max_epochs": -1}, 2),
        ({"max_steps": 8, "max_epochs": -1, "val": False}, 2),
        ({"module": RuntimeError("on purpose"), "raises": RuntimeError, "max_epochs": 9}, 1),
        ({"module": KeyboardInterrupt(), "raises": SystemExit, "max_epochs": 9}, 1),
    ],
    ids=["early stopping", "max_steps", "max_steps without validation", "an error", "an interrupt"],
)
def test_however_a_run_ends_its_page_holds_the_last_look(how, last):
    more = [how.pop("callbacks")()] if "callbacks" in how else []
    how = how | {"module": Ends(how["module"])} if "module" in how else how
    found = moments(fit(GradCAMCallback("net.5", samples=2), *more, **how))
    assert found[-1] == list(range(-1, last + 1))
    assert found.count(found[-1]) == 1


@pytest.mark.parametrize("options", [{"display": Display(page=False)}, {"record": False}])
def test_no_page_where_none_is_wanted_or_can_be(options):
    assert not fit(GradCAMCallback("net.5", samples=2, **options)).pages


def test_no_page_and_no_table_in_a_trial_run():
    logger = WandbLogger(project="test", save_dir=Path.cwd(), offline=True)
    fit(logger=logger, fast_dev_run=True)
    assert not list(Path().rglob("*.html"))


def test_a_page_that_fails_is_told_and_costs_nothing_else(monkeypatch):
    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("lightning_gradcam.run.outlets.page", fail)
    with pytest.warns(UserWarning, match="the page of the run in epoch 0, .* is left out; .* OSError: disk full"):
        logger = fit(max_epochs=1)
    assert logger.steps("gradcam/strength") == [0, 2]


def tables(folder="."):
    found = sorted(Path(folder).glob("wandb/offline-run-*/files/media/table/gradcam/*.json"))
    return [json.loads(path.read_text()) for path in found]


def wandb_run(*callbacks, **options):
    logger = WandbLogger(project="test", save_dir=Path.cwd(), offline=True)
    fit(*callbacks, logger=logger, **options)
    history = rows(logger)
    return [{"/".join(key.split("/")[:2]) if "gradcam" in key else key: row[key] for key in row} for row in history]


def test_wandb_gets_page_and_table_in_the_row_of_the_last_epoch():
    callback = GradCAMCallback("net.5", samples=3, batch_fn=lambda batch: boxed(batch, "tag"))
    history = wandb_run(callback, max_epochs=2)
    assert [row["epoch"] for row in history if "gradcam/grid" in row] == [-1, 0, 1]
    assert [row["epoch"] for row in history if "gradcam/page" in row] == [0, 1]
    (row,) = (row for row in history if "gradcam/table" in row)
    assert {"gradcam/grid", "gradcam/page", "gradcam/seconds", "val_loss"} <= row.keys()
    assert (row["epoch"], row["trainer/global_step"]) == (1, 5)
    assert row is history[-1]
    for page in Path("wandb").glob("offline-run-*/files/media/html/gradcam/*.html"):
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
        assert "normalize.css" not in page.read_text(encoding="utf-8")
    (table,) = tables()
    lines = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
    assert [line["sample"] for line in lines] == ["#0", "#8", "#16"]
    assert [line["label"] for line in lines] == ["ant", "crab", "bee"]
    assert {"picture", "prediction", "confidence", "right", "score", "drift", "strength", "mass_tag"} <= lines[0].keys()
    assert [line["right"] for line in lines] == [line["prediction"] == line["label"] for line in lines]
    (kept,) = artifact_files()
    assert "gradcam/table.table.json" in kept
    assert sum(path.startswith("media/images/") and path.endswith(".jpg") for path in kept) == 3


def test_wandb_gets_one_row_more_where_nobody_knew_the_last_epoch_to_be_it():
    history = wandb_run(GradCAMCallback("net.5", samples=2), early_stop(), max_epochs=9)
    assert [row["epoch"] for row in history if "gradcam/grid" in row] == [-1, 0, 1]
    (row,) = (row for row in history if "gradcam/table" in row)
    assert row is history[-1]
    assert row.keys() - {"_step", "_timestamp", "_runtime"} == {
        "gradcam/table", "gradcam/page", "epoch", "trainer/global_step"
    }  # fmt: skip
    assert (row["epoch"], row["trainer/global_step"]) == (1, 5)
    assert [row["_step"] for row in history] == list(range(len(history)))


def table_of(**options):
    """The table of the last look of a run."""
    looks = []

    class Keeps(GradCAMCallback):
        def on_train_end(self, trainer, pl_module):
            looks.append((self._session.outlets._unshown, self._session.history))
            super().on_train_end(trainer, pl_module)

    fit(Keeps("net.5", samples=3, **options), early_stop(), max_epochs=9)
    ((look, _), history) = looks[0]
    return look, sample_table(look, history, "gradcam")


def test_a_table_says_of_each_sample_what_was_measured():
    look, table = table_of(batch_fn=lambda batch: Batch(*batch, groups=["a", "b", "a"]))
    maps, prediction = look.seen.maps["gradcam"], look.seen.prediction
    assert table["group"] == ["a", "b", "a"]
    assert table["score"] == look.seen.scores.tolist()
    assert table["confidence"] == pytest.approx(prediction.probabilities.amax(1).tolist())
    assert table["strength"] == pytest.approx(maps.flatten(1).sum(1).tolist(), abs=1e-6)
    drift = [None if value != value else value for value in look.measured.drift["gradcam"].tolist()]
    assert table.get("drift", [None] * 3) == drift
    assert "map of" not in table
    assert not {key for key in table if key.startswith(("mass_", "lift_"))}
    assert len({len(cells) for cells in table.values()}) == 1


def test_a_line_of_the_table_is_a_map():
    _, table = table_of(target=[2, 0])
    assert table["sample"] == ["#0/1", "#0/2", "#8/1", "#8/2", "#16/1", "#16/2"]
    assert table["map of"] == ["crab", "ant"] * 3


def test_cells_without_a_value_are_empty():
    class Unlabelled(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, torch.tensor(-1) if index == 8 else label

    class Constant(TinyModule):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", 1.0)

    def names(batch):
        images, labels = batch
        return Batch(images, labels, ids=["a", HOSTILE["control"], HOSTILE["long"]])

    looks = []

    class Keeps(GradCAMCallback):
        def on_train_end(self, trainer, pl_module):
            looks.append((self._session.outlets._unshown, self._session.history))

    callback = Keeps("net.5", samples=3, target="predicted", batch_fn=names)
    trainer(callback, early_stop(), max_epochs=9).fit(Constant(), loader(), loader(Unlabelled()))
    ((look, _), history) = looks[0]
    table = sample_table(look, history, "gradcam")
    assert table["label"] == ["ant", None, "bee"]
    assert [verdict is None for verdict in table["right"]] == [False, True, False]
    assert table["sample"][0] == "a"
    assert all(name.isprintable() and len(name) <= 200 for name in table["sample"])


@pytest.mark.parametrize("stops", [False, True])
def test_training_with_page_and_table_is_bit_identical(stops):
    def run(*callbacks, **options):
        more = [early_stop()] if stops else []
        options = {"num_sanity_val_steps": 0, "max_epochs": 4, "logger": False} | options
        return outcome(Traced, [*callbacks, *more], Images(), Images(24), options, {})

    expected = run()
    logger = WandbLogger(project="test", save_dir=Path.cwd(), offline=True)
    found = run(GradCAMCallback("net.5", samples=4), logger=logger)
    logger.experiment.finish()
    assert different(expected, found) == set()
    assert len(tables()) == 1
    assert list(Path("wandb").rglob("*.html"))
