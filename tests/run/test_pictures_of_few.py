"""Many samples are measured and few are drawn: which, and in what chunks the model gets them."""

import pytest
import pytorch_lightning as pl
import torch
from records import data_of
from tiny import CLASSES, Images, Recorder, TinyModule, boxed, loader, trainer

from lightning_gradcam import Batch, Drift, GradCAMCallback, Localization, Record, TopTarget, compare, gradcam
from lightning_gradcam.metrics.drift import concentration
from lightning_gradcam.metrics.protocols import pxap
from lightning_gradcam.record.page import page

MANY = 40
SIZES = []  # of forwards


def run(callback, module=None, batch_size=8, **options):
    module, logger = module or TinyModule(), Recorder()
    one = trainer(callback, logger=logger, **options)
    one.fit(module, loader(), loader(Images(MANY), batch_size))
    return one, logger, module


def maps_of(module):
    """The maps of all samples of a module as it is now, by the plain function."""
    everything = Images(MANY)
    return gradcam(module, everything.images, "net.4", "label", labels=everything.labels)


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [(16, [i * MANY // 16 for i in range(16)]), (3, [0, 13, 26]), ([5, 39, 1], [5, 39, 1]), (100, list(range(MANY)))],
)
def test_numbers_are_of_all_and_pictures_of_those_that_are_chosen(pictures, expected, drawn):
    _, logger, module = run(GradCAMCallback("net.4", samples=MANY, pictures=pictures, batch_fn=boxed, record="gradcam"))
    record, maps = Record.open("gradcam"), maps_of(module)
    assert record.pictured.tolist() == expected
    assert record.photos.shape == (len(expected), 16, 16)
    assert record.about["ids"] == list(range(MANY))
    assert record.samples.shape[1] == len(record.regions["object"]) == MANY
    torch.testing.assert_close(torch.from_numpy(record.maps["gradcam"][-1]), maps)
    median = concentration(maps).nanquantile(0.5).item()
    assert logger.values("gradcam/concentration")[-1] == pytest.approx(median, abs=1e-5)
    found = compare(record, samples="all")
    assert found.used.sum() == MANY
    data = data_of(page(found))
    assert [one["title"].split()[0] for one in data["samples"]] == [f"#{i}" for i in expected]
    few = f"Pictures are of {len(expected)} of {MANY} samples"
    assert any(note.startswith(few) for note in data["notes"]) == (len(expected) < MANY)


def test_the_pictures_of_few_are_those_that_a_run_on_these_alone_draws(drawn):
    """But for the layer's own name nothing in a picture of the samples 2, 7 and 31 depends on the other ones."""
    torch.manual_seed(1)
    module = TinyModule()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    options = {"drift": Drift(noise_floor=False), "guided": True, "record": False}
    found = []
    for samples, pictures in ((MANY, [2, 7, 31]), ([2, 7, 31], 16)):
        drawn.clear()
        module.load_state_dict(state)
        torch.manual_seed(2)
        run(GradCAMCallback("net.4", samples=samples, pictures=pictures, **options), module, MANY)
        found.append({(key, step): picture.tobytes() for key, step, picture in drawn})
    assert {key for key, _ in found[0]} == {f"gradcam/{one}" for one in (
        "grid", "filmstrip", "guided_backprop", "guided_gradcam", "positional_bias_map",
    )}  # fmt: skip
    for key, step in found[0].keys() - {one for one in found[0] if one[0].endswith("_map")}:
        assert found[0][key, step] == found[1][key, step], (key, step)


def test_several_scores_a_sample_are_drawn_together(drawn):
    callback = GradCAMCallback("net.4", samples=MANY, pictures=[1, 30], target=TopTarget(CLASSES), record="gradcam")
    run(callback, max_epochs=1)
    record = Record.open("gradcam")
    assert record.pictured.tolist() == [3, 4, 5, 90, 91, 92]
    assert [record.about["ids"][i] for i in record.pictured] == [
        "#1/1", "#1/2", "#1/3", "#30/1", "#30/2", "#30/3",
    ]  # fmt: skip
    grids = [picture.size for key, _, picture in drawn if key.endswith("/grid")]
    assert {height // 170 for _, height in grids} == {2}  # a row a sample


class Counting(TinyModule):
    """Notes how many images each forward has."""

    def forward(self, images):
        SIZES.append(len(images))
        return super().forward(images)


class ForgetValidation(pl.Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        SIZES.clear()


@pytest.mark.parametrize(
    ("samples", "batch_size", "floor", "expected"),
    [
        (16, 4, True, [32]),  # as few as usual run as one, whatever the loader's batch size
        (17, 4, True, [4] * 8 + [2]),
        (40, 16, True, [16] * 5),
        (40, 16, False, [16, 16, 8]),
        (40, 1, True, [2] * 40),
        (40, 64, True, [64, 16]),
        (40, 200, True, [80]),
    ],
)
def test_a_look_takes_the_memory_of_a_validation_step(samples, batch_size, floor, expected):
    callback = GradCAMCallback("net.4", samples=samples, drift=Drift(noise_floor=floor), record=False)
    trainer(ForgetValidation(), callback, max_epochs=1).fit(Counting(), loader(), loader(Images(MANY), batch_size))
    assert expected == SIZES


def test_chunks_give_the_maps_of_the_whole():
    found = []
    for batch_size in (MANY * 2, 6):
        torch.manual_seed(3)
        run(GradCAMCallback("net.4", samples=MANY, record=f"by_{batch_size}"), batch_size=batch_size, max_epochs=1)
        found.append(Record.open(f"by_{batch_size}"))
    whole, parts = (torch.from_numpy(record.maps["gradcam"][0]) for record in found)
    torch.testing.assert_close(whole, parts)
    assert found[0].numbers[0] == pytest.approx(found[1].numbers[0], abs=1e-4, nan_ok=True)


class OfTheWhole(TinyModule):
    """What it says of a sample depends on the others."""

    def forward(self, images):
        scores = super().forward(images)
        return scores - scores.mean(0)


@pytest.mark.parametrize(("module", "batch_size", "tells"), [
    (OfTheWhole, 8, True), (OfTheWhole, 200, False), (TinyModule, 8, False), (TinyModule, 1, False),
])  # fmt: skip
def test_maps_that_depend_on_the_chunk_are_told_of(module, batch_size, tells, recwarn):
    run(GradCAMCallback("net.4", samples=20, record=False), module(), batch_size, max_epochs=1)
    texts = [str(one.message) for one in recwarn if "which others run with it" in str(one.message)]
    assert len(texts) == tells
    assert not tells or "here 4 at a time" in texts[0]


def test_a_resumed_run_with_other_pictures_keeps_its_numbers_and_starts_its_filmstrip_anew(drawn):
    callback = GradCAMCallback("net.4", samples=8, pictures=[0, 1])
    first, _, _ = run(callback, max_epochs=2)
    first.save_checkpoint("run.ckpt")
    for pictures, columns in (([0, 1], 4), ([6, 7], 1)):
        drawn.clear()
        resumed = GradCAMCallback("net.4", samples=8, pictures=pictures)
        logger = Recorder()
        one = trainer(resumed, logger=logger, max_epochs=3)
        one.fit(TinyModule(), loader(), loader(Images(MANY)), ckpt_path="run.ckpt")
        assert len(logger.values("gradcam/drift")) == 1  # since the last look of the first run
        track = resumed._session.history.tracks["gradcam"]
        assert (len(track.frames), track.count) == (columns, 4)
        assert sum(key == "gradcam/filmstrip" for key, _, _ in drawn) == 1


def test_the_protocols_are_of_the_pictured_or_of_all():
    def read(batch):
        images, labels = batch
        places = torch.arange(len(images))[:, None, None]
        masks = torch.zeros(len(images), 16, 16)
        masks[:, :8] = (places < MANY // 2).float()
        masks[:, 8:] = (places >= MANY // 2).float()
        return Batch(images, labels, {"object": masks})

    for asked in ("object", Localization("object"), Localization("object", samples="all")):
        callback = GradCAMCallback("net.4", samples=MANY, pictures=[0, 39], batch_fn=read, localization=asked)
        one, _, module = run(callback, max_epochs=1)
        rows = slice(None) if asked == Localization("object", samples="all") else [0, 39]
        masks = read((Images(MANY).images, None)).regions["object"]
        assert one.callback_metrics["gradcam/pxap"].item() == pytest.approx(
            pxap(maps_of(module)[rows], masks[rows]), abs=1e-5
        )


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"pictures": 0}, ValueError, "`pictures` must be at least 1, got 0"),
        ({"pictures": True}, TypeError, "`pictures` must be a number or positions in the fixed batch, got bool"),
        ({"pictures": 2.5}, TypeError, "got float"),
        ({"pictures": []}, ValueError, "`pictures` must name at least one index"),
        ({"pictures": [3, 0, 3]}, ValueError, r"`pictures` must name each position once, got \[3\] several times"),
        ({"pictures": [-1]}, ValueError, "`pictures` must hold positions in the fixed batch, 0 or above, got -1"),
        ({"localization": 3}, TypeError, "`localization` must be the name of a region, got int"),
    ],
)
def test_what_can_never_work_is_told_at_once(options, error, text):
    with pytest.raises(error, match=text):
        GradCAMCallback(**options)


def test_samples_of_localization_are_told_at_once():
    with pytest.raises(ValueError, match=r'must be "pictured" or "all", got \'some\''):
        Localization("object", samples="some")


def test_positions_that_the_batch_does_not_have_end_the_run_before_it_starts():
    with pytest.raises(
        ValueError, match=r"`pictures` names the indices \[4, 9\], the fixed batch has 4 samples, 0 to 3"
    ):
        run(GradCAMCallback(samples=4, pictures=[0, 4, 9]))


def test_arrays_and_tensors_name_positions_too():
    assert GradCAMCallback(pictures=torch.tensor([1, 2])).pictures == [1, 2]
