"""What a run remembers: references, frames, monitors, alerts."""

import io
import math
from itertools import pairwise

import pytest
import torch
from tiny import BEFORE, new, observe, prediction

from lightning_gradcam.picture.filmstrip import COLUMNS, shown_frames
from lightning_gradcam.run.history import Moment
from lightning_gradcam.run.settings import Drift

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
RIGHT = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
NONE = -torch.ones(2, 2)


def test_the_first_map_that_is_not_empty_after_a_trained_epoch_is_the_reference():
    history = new()
    observe(history, [RIGHT, RIGHT], BEFORE)
    numbers, _ = observe(history, [LEFT, NONE], Moment(0, True))
    assert math.isnan(numbers["drift_from_reference"])
    assert numbers["drift"] == 1  # of the first sample alone: the second is empty
    numbers, reading = observe(history, [RIGHT, LEFT], Moment(1, True))
    assert reading.drift_from_reference["cam"][0] == 1
    assert reading.drift_from_reference["cam"][1].isnan()
    numbers, reading = observe(history, [LEFT, RIGHT], Moment(2, True))
    assert reading.drift_from_reference["cam"].tolist() == [0, 1]
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
    assert reading.drift["cam"][0] == reading.drift_from_reference["cam"][0] == 1
    assert reading.drift["cam"][1].isnan()
    assert reading.drift_from_reference["cam"][1].isnan()
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
    numbers = new().measure(maps, {}, None, {"dog": masks}).numbers
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
        observe(history, [maps, LEFT], Moment(epoch, True), shifted=[maps, LEFT])[1].alerts
        for epoch, maps in enumerate([LEFT, RIGHT, LEFT, LEFT, LEFT, RIGHT])
    ]
    assert alarms == [{}, {}, {}, {}, {}, {"cam": [0]}]


def test_no_alert_below_the_noise_floor():
    loud, quiet = new(alert_above=0.3), new(alert_above=0.3)
    for epoch in range(3):
        for history in (loud, quiet):
            observe(history, [LEFT], Moment(epoch, True), shifted=[LEFT])
    assert observe(loud, [RIGHT], Moment(3, True), shifted=[RIGHT])[1].alerts == {"cam": [0]}
    numbers, reading = observe(quiet, [RIGHT], Moment(3, True), shifted=[LEFT])
    assert numbers["drift"] == numbers["drift_floor"] == 1
    assert reading.alerts == {}


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
    shown = shown_frames(track.frames)
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


def test_numbers_of_groups_by_hand():
    history = new()
    groups = ["ours", "theirs", "ours", "theirs"]
    left = {"left": LEFT.expand(4, 2, 2)}
    maps, later = torch.stack([LEFT, LEFT, RIGHT, NONE]), torch.stack([LEFT, RIGHT, LEFT, RIGHT])
    reading = history.measure({"cam": maps}, {}, prediction(0, 1, 2, 3), left, groups)
    assert reading.numbers["cam/mass_left"] == pytest.approx(2 / 3)
    assert reading.numbers["cam/mass_left/ours"] == 0.5
    assert reading.numbers["cam/mass_left/theirs"] == 1  # of its two samples one is empty
    assert reading.numbers["cam/empty_fraction/theirs"] == 0.5
    assert reading.numbers["cam/drift_chance/ours"] == 1
    assert math.isnan(reading.numbers["cam/drift_chance/theirs"])  # no two maps to compare
    history.add(reading, {"cam": maps}, prediction(0, 1, 2, 3), Moment(0, True))
    reading = history.measure({"cam": later}, {}, prediction(0, 2, 2, 2), left, groups)
    assert reading.numbers["cam/drift"] == 1
    assert reading.numbers["cam/drift/ours"] == 0.5
    assert reading.numbers["cam/drift/theirs"] == 1
    assert reading.numbers["cam/prediction_flips"] == 0.5
    assert reading.numbers["cam/prediction_flips/ours"] == 0
    assert reading.numbers["cam/prediction_flips/theirs"] == 1
    assert history.monitored["cam/lift_left/ours"] == 0.5 / LEFT.mean()


@pytest.mark.parametrize("size", [(6,), (2, 3, 2)], ids=["signal", "volume"])
def test_maps_of_other_axes_by_hand(size):
    one, other = torch.zeros(2, math.prod(size))
    one[0] = one[-1] = 2
    other[0], nothing = 8, -torch.ones(size)
    one, other = one.reshape(size), other.reshape(size)
    history = new()
    numbers, _ = observe(history, [one, nothing], Moment(0, True), shifted=[other, nothing])
    assert numbers["drift_floor"] == 0.5
    assert numbers["empty_fraction"] == 0.5
    numbers, reading = observe(history, [other, one], Moment(1, True), shifted=[other, one])
    assert reading.drift["cam"].tolist() == [0.5, pytest.approx(math.nan, nan_ok=True)]
    assert "drift_floor" not in numbers
    # The centre was in the middle and is at an end of the diagonal of the first and the last cell.
    half = sum((side - 1) ** 2 for side in size) ** 0.5 / 2
    assert numbers["centroid_shift"] == pytest.approx(half / sum(side**2 for side in size) ** 0.5)
    track = history.tracks["cam"]
    assert torch.equal(track.reference, torch.stack([one, one]))  # each sample's first map that is not empty
    assert track.peak.tolist() == [8, 2]


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_run_on_slices_measures_what_one_on_images_does(place):
    maps = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    maps[0, 1] = -1
    masks = (torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    flat, thin = new(), new()
    for epoch, one in enumerate(maps):
        numbers = []
        for history, now, region in ((flat, one, masks), (thin, one.unsqueeze(place), masks.unsqueeze(place))):
            reading = history.measure({"cam": now}, {"cam": now.roll(1, -1)}, prediction(0, 1, 2), {"dog": region})
            history.add(reading, {"cam": now}, prediction(0, 1, 2), Moment(epoch, True))
            numbers.append(reading.numbers)
        scale = ((5**2 + 6**2) / (1 + 5**2 + 6**2)) ** 0.5  # of the diagonal
        numbers[0]["cam/centroid_shift"] *= scale
        if place == 3:  # the shift is along another axis
            del numbers[0]["cam/drift_floor"]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-5, abs=1e-6, nan_ok=True)
