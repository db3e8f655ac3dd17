"""The filmstrip by its pixels."""

import numpy as np
import pytest
import torch
from tiny import BEFORE, new, observe

from lightning_gradcam.picture.filmstrip import COLUMNS, ROWS, Filmstrip, Frame, frame_maps
from lightning_gradcam.run.history import Moment

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
RIGHT = torch.tensor([[0.0, 1.0], [0.0, 1.0]])


def test_frames_keep_a_bounded_grid_and_rows():
    kept = frame_maps(torch.rand(20, 64, 48))
    assert kept.shape == (ROWS, 28, 21)
    assert kept.untyped_storage().nbytes() == kept.numel() * 4
    assert frame_maps(torch.ones(3, 7, 7)).shape == (3, 7, 7)


def strip(history, **options):
    track = history.tracks["cam"]
    n = len(track.peak)
    moved = torch.linspace(0, 1, n)
    photos = torch.zeros(n, 16, 16)
    titles = [f"#{i}" for i in range(n)]
    return Filmstrip(photos, titles, ["cat"], {}, "key", **options).draw(track.frames, moved, track.peak)


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


def test_the_filmstrip_ends_with_a_column_of_the_reference_run():
    maps = torch.zeros(2, 4, 4)
    maps[:, :, 0] = 1
    unknown = torch.full((2,), -1)
    frames = [Frame(i, frame_maps(maps), unknown, unknown, torch.zeros(2)) for i in range(3)]
    theirs = Frame(-1, maps.flip(2), unknown, unknown, torch.zeros(2))

    def draw(beside):
        photos, moved = torch.full((2, 16, 16), 0.5), torch.zeros(2)
        return Filmstrip(photos, ["a", "b"], (), {}, "key").draw(frames, moved, torch.ones(2), beside)

    without, beside = draw(None), draw(("strong", theirs))
    assert beside.width - without.width == 84  # a tile and a gutter
    pixels = np.asarray(beside).astype(int)
    red = pixels[17:97, :, 0] - pixels[17:97, :, 2] > 80  # of the first row
    ours, column = (red[:, 4 + i * 84 : 84 + i * 84].any(0) for i in (3, 4))
    assert ours[:15].all()
    assert not ours[40:70].any()
    assert column[-15:].all()
    assert not column[:40].any()


@pytest.mark.parametrize("scale", ["sample", "run"])
def test_a_filmstrip_that_goes_on_is_the_one_drawn_at_once(scale):
    generator = torch.Generator().manual_seed(0)
    photos, boxes = torch.rand(3, 20, 30, generator=generator), torch.tensor([[2, 2, 12, 12]] * 3)

    def filmstrip():
        return Filmstrip(photos, ["a", "b", "c"], ["cat"], {"object": boxes}, "key", scale=scale)

    history, going_on = new(), filmstrip()
    for epoch in range(-1, 20):
        maps = torch.randn(3, 4, 4, generator=generator) * (1 + epoch % 5)
        maps[0] *= epoch % 4 > 0  # some are empty
        observe(history, maps, Moment(epoch, True))
        track = history.tracks["cam"]
        given = track.frames, torch.rand(3, generator=generator), track.peak
        assert going_on.draw(*given).tobytes() == filmstrip().draw(*given).tobytes()
    assert len(going_on._drawn) <= 2 * COLUMNS
