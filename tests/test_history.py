"""What a run remembers: references, frames, monitors, alerts."""

import io
import math
from itertools import pairwise

import pytest
import torch

from lightning_gradcam.history import COLUMNS, ROWS, Drift, History, Moment, kept_maps
from lightning_gradcam.metrics.evidence import complaint
from lightning_gradcam.picture.filmstrip import columns, filmstrip
from lightning_gradcam.targets import Prediction

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
RIGHT = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
NONE = -torch.ones(2, 2)
BEFORE = Moment(-1, False)


def prediction(*classes):
    chosen = torch.tensor(classes)
    return Prediction(torch.eye(4)[chosen], chosen, chosen == 0)


def observe(history, maps, moment, classes=None, shifted=None, asked=None):
    """One observation of one layer: read, then add."""
    maps = {"cam": torch.stack(list(maps))}
    shifted = {} if shifted is None else {"cam": torch.stack(list(shifted))}
    said = prediction(*(classes or [0] * len(maps["cam"])))
    asked = None if asked is None else torch.tensor(asked)
    reading = history.read(maps, shifted, said, {}, asked=asked)
    history.add(reading, maps, said, moment, asked)
    return {key.removeprefix("cam/"): value for key, value in reading.numbers.items()}, reading


def new(**options):
    return History("cam", Drift(**options), additive=True)


def test_the_first_map_that_is_not_empty_after_a_trained_epoch_is_the_reference():
    history = new()
    observe(history, [RIGHT, RIGHT], BEFORE)
    numbers, _ = observe(history, [LEFT, NONE], Moment(0, True))
    assert math.isnan(numbers["drift_from_reference"])
    assert numbers["drift"] == 1  # of the first sample alone: the second is empty
    numbers, reading = observe(history, [RIGHT, LEFT], Moment(1, True))
    assert reading.moved["cam"][0] == 1
    assert reading.moved["cam"][1].isnan()
    numbers, reading = observe(history, [LEFT, RIGHT], Moment(2, True))
    assert reading.moved["cam"].tolist() == [0, 1]
    assert numbers["drift_from_reference"] == 0.5
    assert numbers["topk_iou"] == 0.5
    assert numbers["centroid_shift"] == pytest.approx(0.5 / 8**0.5)


def test_half_an_epoch_is_no_trained_epoch():
    history = new()
    observe(history, [LEFT], Moment(0, False))
    observe(history, [RIGHT], Moment(0, True))
    numbers, _ = observe(history, [RIGHT], Moment(1, False))
    assert numbers["drift_from_reference"] == 0


def test_a_named_epoch_is_the_reference():
    history = new(reference=1)
    for epoch, maps in enumerate([LEFT, RIGHT]):
        numbers, _ = observe(history, [maps], Moment(epoch, True))
        assert math.isnan(numbers["drift_from_reference"])
    assert observe(history, [LEFT], Moment(2, True))[0]["drift_from_reference"] == 1
    assert observe(history, [RIGHT], Moment(3, True))[0]["drift_from_reference"] == 0


def test_another_question_is_no_drift():
    history = new()
    observe(history, [LEFT, LEFT], Moment(0, True), [0, 1], asked=[0, 1])
    numbers, reading = observe(history, [RIGHT, RIGHT], Moment(1, True), [0, 2], asked=[0, 2])
    assert reading.drift["cam"][0] == reading.moved["cam"][0] == 1
    assert reading.drift["cam"][1].isnan()
    assert reading.moved["cam"][1].isnan()
    assert numbers["prediction_flips"] == 0.5
    same = new()  # a label's score is the same question whatever is predicted
    observe(same, [LEFT, LEFT], Moment(0, True), [0, 1])
    assert observe(same, [RIGHT, LEFT], Moment(1, True), [0, 2])[1].drift["cam"].tolist() == [1, 0]


def test_floor_and_chance():
    numbers, _ = observe(new(), [LEFT, LEFT, RIGHT], BEFORE, shifted=[LEFT, RIGHT, NONE])
    assert numbers["drift_floor"] == 0.5
    assert numbers["drift_chance"] == 1  # of the pairs 0, 1 and 1
    assert "drift_floor" not in observe(new(), [LEFT], BEFORE)[0]


def test_regions():
    masks = torch.zeros(2, 4, 4)
    masks[0, :, :2] = 1  # the second sample has none
    maps = {"cam": torch.stack([LEFT + RIGHT, LEFT])}
    numbers = new().read(maps, {}, None, {"dog": masks}).numbers
    assert numbers["cam/mass_dog"] == 0.5
    assert numbers["cam/lift_dog"] == 1
    assert "cam/prediction_flips" not in numbers


def test_monitors_get_the_last_finite_value_and_before_it_the_worst():
    history = new()
    observe(history, [LEFT], BEFORE)
    assert history.monitored["cam/concentration"] == 0
    assert history.monitored["cam/drift"] == history.monitored["cam/empty_fraction"] == 1
    assert history.monitored["cam/strength"] < -1e38
    observe(history, [LEFT], Moment(0, True))
    assert history.monitored["cam/drift"] == 0
    observe(history, [NONE], Moment(1, True))
    assert history.monitored["cam/drift"] == 0
    assert history.monitored["cam/concentration"] == 0.5
    assert history.monitored["cam/empty_fraction"] == 1


def test_an_alert_needs_two_calm_observations_before():
    history = new(alert_above=0.3)
    alarms = [
        observe(history, [maps, LEFT], Moment(epoch, True), shifted=[maps, LEFT])[1].alarms
        for epoch, maps in enumerate([LEFT, RIGHT, LEFT, LEFT, LEFT, RIGHT])
    ]
    assert alarms == [{}, {}, {}, {}, {}, {"cam": [0]}]


def test_no_alert_below_the_noise_floor():
    loud, quiet = new(alert_above=0.3), new(alert_above=0.3)
    for epoch in range(3):
        for history in (loud, quiet):
            observe(history, [LEFT], Moment(epoch, True), shifted=[LEFT])
    assert observe(loud, [RIGHT], Moment(3, True), shifted=[RIGHT])[1].alarms == {"cam": [0]}
    numbers, reading = observe(quiet, [RIGHT], Moment(3, True), shifted=[LEFT])
    assert numbers["drift"] == numbers["drift_floor"] == 1
    assert reading.alarms == {}


@pytest.mark.parametrize("observations", [1, 2, 8, 9, 16, 17, 18, 31, 100, 1000])
def test_frames_hold_the_first_and_the_last_and_are_bounded(observations):
    history = new()
    for epoch in range(observations):
        observe(history, [LEFT] * 3, Moment(epoch, True))
    track = history.tracks["cam"]
    epochs = [frame.epoch for frame in track.frames]
    assert epochs[0] == 0
    assert epochs[-1] == observations - 1
    assert len(epochs) <= 2 * COLUMNS + 1
    steps = {b - a for a, b in pairwise(epochs[:-1])}
    assert steps <= {track.spacing}
    shown = columns(track.frames)
    assert shown[0] == 0
    assert shown[-1] == len(epochs) - 1
    assert len(shown) == min(COLUMNS, len(epochs))


def test_a_jump_between_kept_frames_stays_in_the_line():
    history = new()
    for epoch in range(64):
        observe(history, [RIGHT if epoch == 37 else LEFT], Moment(epoch, True))
    frames = history.tracks["cam"].frames
    assert 37 not in [frame.epoch for frame in frames]
    line = torch.stack([frame.drift for frame in frames])[:, 0]
    assert (line == 1).sum() in (1, 2)  # there and back
    assert frames[int((line == 1).nonzero()[0])].epoch in range(37, 42)


def test_frames_keep_a_bounded_grid_and_rows():
    kept = kept_maps(torch.rand(20, 64, 48))
    assert kept.shape == (ROWS, 28, 21)
    assert kept.untyped_storage().nbytes() == kept.numel() * 4
    assert kept_maps(torch.ones(3, 7, 7)).shape == (3, 7, 7)


def test_state_is_plain_and_goes_on_as_if_unbroken():
    maps = torch.rand(40, 3, 5, 5, generator=torch.Generator().manual_seed(0)) - 0.4
    unbroken = new(alert_above=0.1)
    for epoch in range(20):
        observe(unbroken, maps[epoch], Moment(epoch, True), shifted=maps[epoch].roll(1, -1))
    file = io.BytesIO()
    torch.save(unbroken.state(), file)
    file.seek(0)
    resumed = new(alert_above=0.1)
    resumed.restore(torch.load(file, weights_only=True))
    for epoch in range(20, 40):
        shifted = maps[epoch].roll(1, -1)
        assert observe(resumed, maps[epoch], Moment(epoch, True), shifted=shifted)[0] == pytest.approx(
            observe(unbroken, maps[epoch], Moment(epoch, True), shifted=shifted)[0], rel=0, abs=0, nan_ok=True
        )
    torch.testing.assert_close(resumed.state(), unbroken.state(), rtol=0, atol=0, equal_nan=True)


def test_another_grid_starts_anew():
    history = new()
    observe(history, [LEFT], Moment(0, True))
    numbers, _ = observe(history, [torch.ones(3, 3)], Moment(1, True))
    assert math.isnan(numbers["drift"])
    assert len(history.tracks["cam"].frames) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": -1}, '`reference` must be "first" or an epoch of at least 0, got -1'),
        ({"reference": "last"}, "`reference` must be \"first\" or an epoch of at least 0, got 'last'"),
        ({"alert_above": 0}, "`alert_above` must lie between 0 and 1, got 0"),
        ({"alert_above": 1.5}, "`alert_above` must lie between 0 and 1, got 1.5"),
    ],
)
def test_drift_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Drift(**options)


def test_complaints():
    fine = torch.tensor([[1.0, -1.0]])
    assert complaint(torch.stack([fine])) == {}
    maps = torch.stack([fine, fine * torch.nan, fine * 0, -fine.abs(), fine.abs()])
    said = complaint(maps)
    assert set(said) == {"not finite", "zero", "negative", "constant"}
    assert all(text.startswith("the maps of 1 of 5 samples are") for text in said.values())


# The filmstrip


def strip(history, **options):
    track = history.tracks["cam"]
    n = len(track.peak)
    moved = torch.linspace(0, 1, n)
    photos = torch.zeros(n, 16, 16)
    titles = [f"#{i}" for i in range(n)]
    return filmstrip(photos, track.frames, moved, titles, ["cat"], {}, track.peak, "key", **options)


@pytest.mark.parametrize("observations", [1, 3, 8, 100])
def test_the_filmstrip_is_bounded(observations):
    history = new()
    for epoch in range(observations):
        observe(history, [LEFT] * ROWS, Moment(epoch - 1, True))
    picture = strip(history)
    assert picture.width <= 1000
    assert picture.height <= 17 * 2 + ROWS * (80 + 18)
    assert picture.width == 4 + (1 + min(COLUMNS, observations)) * 84 + 130 + 4


def tile(picture, row, column):
    return picture.crop((4 + column * 84, 17 + row * 98, 84 + column * 84, 97 + row * 98))


def red(picture, box):
    r, g, b = picture.crop(box).resize((1, 1)).getpixel((0, 0))
    return r > 60 and g < 40 and b < 40


def test_columns_show_their_own_maps():
    history = new()
    observe(history, [LEFT], BEFORE)
    observe(history, [RIGHT], Moment(0, True))
    picture = strip(history)
    left, right = (5, 20, 15, 60), (60, 20, 70, 60)
    assert not red(tile(picture, 0, 0), left)
    assert red(tile(picture, 0, 1), left)
    assert not red(tile(picture, 0, 1), right)
    assert red(tile(picture, 0, 2), right)
    assert not red(tile(picture, 0, 2), left)


def test_scale_of_the_run_dims_what_was_weak():
    history = new()
    observe(history, [LEFT * 0.01], BEFORE)
    observe(history, [LEFT], Moment(0, True))
    own, run = strip(history), strip(history, scale="run")
    assert red(tile(own, 0, 1), (5, 20, 15, 60))
    assert not red(tile(run, 0, 1), (5, 20, 15, 60))
    assert red(tile(run, 0, 2), (5, 20, 15, 60))
    amber = (255, 213, 74)
    gauges = [sum(tile(own, 0, column).getpixel((77, y)) == amber for y in range(80)) for column in (1, 2)]
    assert gauges == [1, 80]


def test_the_three_that_moved_most_are_marked():
    history = new()
    observe(history, [LEFT] * 6, Moment(0, True))
    picture = strip(history)
    marks = [picture.getpixel((80, 17 + row * 98 + 80 + 12)) == (180, 83, 9) for row in range(6)]
    assert marks == [False, False, False, True, True, True]


def test_numbers_of_groups_by_hand():
    history = new()
    groups = ["ours", "theirs", "ours", "theirs"]
    left = {"left": LEFT.expand(4, 2, 2)}
    maps, later = torch.stack([LEFT, LEFT, RIGHT, NONE]), torch.stack([LEFT, RIGHT, LEFT, RIGHT])
    reading = history.read({"cam": maps}, {}, prediction(0, 1, 2, 3), left, groups)
    assert reading.numbers["cam/mass_left"] == pytest.approx(2 / 3)
    assert reading.numbers["cam/mass_left/ours"] == 0.5
    assert reading.numbers["cam/mass_left/theirs"] == 1  # of its two samples one is empty
    assert reading.numbers["cam/empty_fraction/theirs"] == 0.5
    assert reading.numbers["cam/drift_chance/ours"] == 1
    assert math.isnan(reading.numbers["cam/drift_chance/theirs"])  # no two maps to compare
    history.add(reading, {"cam": maps}, prediction(0, 1, 2, 3), Moment(0, True))
    reading = history.read({"cam": later}, {}, prediction(0, 2, 2, 2), left, groups)
    assert reading.numbers["cam/drift"] == 1
    assert reading.numbers["cam/drift/ours"] == 0.5
    assert reading.numbers["cam/drift/theirs"] == 1
    assert reading.numbers["cam/prediction_flips"] == 0.5
    assert reading.numbers["cam/prediction_flips/ours"] == 0
    assert reading.numbers["cam/prediction_flips/theirs"] == 1
    assert history.monitored["cam/lift_left/ours"] == 0.5 / LEFT.mean()
