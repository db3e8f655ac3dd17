"""Volumes, clips and signals as flat pictures, by their pixels; and that images are drawn as ever."""

import hashlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tiny import new

from lightning_gradcam import Batch, Display
from lightning_gradcam.attribution.spatial import upsampled
from lightning_gradcam.metrics.positional import how_often
from lightning_gradcam.picture import panels
from lightning_gradcam.picture.clip import clip
from lightning_gradcam.picture.display import photos, value_limits
from lightning_gradcam.picture.draw import draw_box
from lightning_gradcam.picture.encode import encode, gif
from lightning_gradcam.picture.filmstrip import Filmstrip, Frame, frame_maps
from lightning_gradcam.picture.grid import Caption, grid, tiles
from lightning_gradcam.picture.overlay import gradient_pictures, overlay
from lightning_gradcam.picture.panels import draw_regions, gradient_tiles, map_tiles, region_boxes
from lightning_gradcam.picture.view import Axes, Panel, evenly, frame_views, narrow_view, strongest_pixels, wide_view
from lightning_gradcam.run.history import Measurement, Moment
from lightning_gradcam.run.observer import Seen
from lightning_gradcam.run.pictures import Look, layer_pictures, sample_pictures
from lightning_gradcam.run.probe import Probe

CAPTION = Caption(("", ""), ("", ""), True, "")
CLIPS = Axes(time=0)
# Of pictures of images without a letter, from values that every machine rounds alike; from before there were views.
DIGESTS = {
    "grid": "ed9370d996e3ce3abaf74fb723ea05ee90c4aa7763f8f8cb77cfc2293640038e",
    "strip": "75c5e6c60aed1a50780190a11610555ae8ca28a0aa23551c0eced21c4e6bfcf9",
    "tile": "73efba04abbf85001956f58c43508467ed2d1400b49d7a012156576678a9bf82",
}


def digest(picture):
    return hashlib.sha256(picture.tobytes()).hexdigest()


def unknown(epoch, maps):
    n = len(maps)
    return Frame(epoch, frame_maps(maps), torch.full((n,), -1), torch.full((n,), -1), torch.zeros(n))


def test_pictures_of_images_are_those_of_old():
    grey = (torch.arange(2 * 64 * 64) % 256).reshape(2, 64, 64) / 255
    maps = torch.tensor([[[1.0, 0.5], [0.25, -1]], [[0, 0.75], [0.5, 0.125]]])
    under = [Caption(("", ""), ("", ""), right, "") for right in (True, False)]
    box = {"a": torch.tensor([[8, 8, 40, 56]] * 2)}
    assert digest(grid(grey, maps, under, box, "", tile=64)) == DIGESTS["grid"]
    grey = (torch.arange(2 * 80 * 80) % 256).reshape(2, 80, 80) / 255
    maps = F.interpolate(maps[:, None], (5, 5))[:, 0]
    strip = Filmstrip(grey, ["", ""], (), box, "")
    picture = strip.draw([unknown(0, maps)], torch.full((2,), torch.nan), torch.tensor([2.0, 1.0]))
    assert digest(picture.crop((0, 17, 172, 17 + 2 * 98))) == DIGESTS["strip"]
    assert digest(tiles(grey, maps, under, 80, "inferno")[0][1]) == DIGESTS["tile"]


# Cuts


def test_the_strongest_pixel_by_hand():
    maps = torch.zeros(4, 2, 3, 4)
    maps[0, 1, 0, 2] = 1
    maps[1, 0, 2, 3] = 5
    maps[2] = -1
    maps[3, 0, 0, 0] = torch.nan
    # The middle of cell i of h along H pixels: floor((i + 0.5) H / h), as 10 (1.5 / 2) = 7.5, 9 (0.5 / 3) = 1.5.
    assert strongest_pixels(maps, (10, 9, 8)).tolist() == [[7, 1, 5], [2, 7, 7], [5, 4, 4], [5, 4, 4]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_of_maps_are_trilinear_and_those_of_photos_exact(axis):
    generator = torch.Generator().manual_seed(0)
    size, n = (9, 12, 10), 3
    maps, grey = torch.rand(n, 3, 4, 5, generator=generator), torch.rand(n, *size, generator=generator)
    at = torch.tensor([0, 4, size[axis] - 1])
    flat = [side for i, side in enumerate(size) if i != axis]
    panel = Panel((0, 0), (flat[0], flat[1]), axis, size[axis], at)
    whole, plane = upsampled(maps, size), F.interpolate(panel.cut(maps)[:, None], flat, mode="bilinear")[:, 0]
    for i in range(n):
        torch.testing.assert_close(plane[i], whole[i].select(axis, int(at[i])), rtol=0, atol=1e-6)
        assert torch.equal(panel.cut(grey)[i], grey[i].select(axis, int(at[i])))


def test_a_plane_is_on_the_scale_of_the_whole_map():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0], maps[0, 1] = 1, 4
    panel = Panel((0, 0), (4, 4), 0, 4, torch.tensor([0]))
    grey = torch.zeros(1, 4, 4, 4)
    weak = overlay(grey, maps, (4, 4), "turbo", cut=panel.cut)
    expected = overlay(grey[:, 0], torch.ones(1, 2, 2), (4, 4), "turbo", torch.tensor([4.0]))
    assert torch.equal(weak, expected)


def test_gradients_have_one_scale_for_all_panels_of_a_sample():
    gradients = torch.zeros(1, 1, 2, 4, 4)
    gradients[0, 0, 0], gradients[0, 0, 1] = 2, -1
    cuts = [Panel((0, 0), (4, 4), 0, 2, torch.tensor([at])).cut for at in (0, 1)]
    assert [gradient_pictures(gradients, (4, 4), cut)[0, 0, 0, 0].item() for cut in cuts] == [255, 64]


# Volumes


def test_three_planes_side_by_side_have_the_volumes_proportions():
    view = wide_view(torch.zeros(2, 10, 20, 40), 160, Axes(spacing=(2, 1, 1)))  # 20 x 20 x 40 in space
    # Two times 40 and once 20 share 316 pixels: 3.16 a unit.
    assert [panel.size for panel in view.panels] == [(63, 126), (63, 126), (63, 63)]
    assert [panel.corner for panel in view.panels] == [(0, 0), (128, 0), (256, 0)]
    assert view.size == (63, 319)
    assert view.panels[0].names == ["[5, :, :]"] * 2
    assert view.panels[1].names == ["[:, 10, :]"] * 2
    narrow = narrow_view(torch.zeros(2, 10, 20, 40), 80, Axes(spacing=(2, 1, 1)))
    assert [panel.size for panel in narrow.panels] == [(40, 80), (40, 80), (40, 40)]
    assert narrow.size == (124, 80)


def test_planes_of_flat_volumes_stand_one_above_the_other():
    view = wide_view(torch.zeros(1, 10, 40, 120), 160, Axes())  # 156 pixels for 40 + 10 + 10
    assert [panel.size for panel in view.panels] == [(104, 312), (26, 312), (26, 104)]
    assert [panel.corner for panel in view.panels] == [(0, 0), (0, 106), (0, 134)]
    assert view.size == (160, 312)


def test_the_cross_hair_lies_where_the_other_planes_cut(monkeypatch):
    monkeypatch.setattr(panels, "write", lambda *_, **__: 0)
    grey, at = torch.zeros(1, 32, 32, 32), torch.tensor([[4, 10, 20]])
    view = wide_view(grey, 108, Axes(), at)  # 70 2/3 pixels a panel, about 2.2 a voxel
    (tile,) = map_tiles(view, grey, -torch.ones(1, 2, 2, 2), "turbo")
    pixels = np.asarray(tile)[..., 0] > 0
    side = view.panels[0].size[0]
    for panel, (row, column) in zip(view.panels, ((10, 20), (4, 20), (4, 10)), strict=True):
        left = panel.corner[0]
        part = pixels[:, left : left + side]
        assert part[:, -1].nonzero()[0].tolist() == [int((row + 0.5) / 32 * side)]
        assert part[-1].nonzero()[0].tolist() == [int((column + 0.5) / 32 * side)]
        assert not part[int((row + 0.5) / 32 * side), int((column + 0.5) / 32 * side)]


def test_regions_are_outlined_where_a_plane_cuts_them():
    box = torch.tensor([[2, 4, 6, 10, 12, 14], [0, 0, 0, 0, 0, 0]])  # x0, y0, z0, x1, y1, z1
    mask = torch.zeros(2, 16, 16, 16)
    mask[0, 6:14, 4:12, 2:10] = 1
    at = torch.tensor([[6, 3, 9]] * 2)  # inside along z and x, outside along y
    view = wide_view(torch.zeros(2, 16, 16, 16), 160, Axes(), at)
    side = view.panels[0].size[0]
    found = [boxes * 16 / side for _, boxes in region_boxes(view, {"box": box, "mask": mask})]
    expected = [[2, 4, 10, 12], [0, 0, 0, 0], [4, 6, 12, 14]]
    for boxes, plane in zip(found, expected * 2, strict=True):
        torch.testing.assert_close(boxes, torch.tensor([[plane], [[0.0] * 4]]), rtol=0, atol=1e-4)


def test_each_of_several_boxes_is_outlined():
    boxes = torch.tensor([[[0, 0, 8, 8], [16, 20, 30, 31], [0, 0, 0, 0]]])
    view = wide_view(torch.zeros(1, 32, 32), 64, Axes())
    canvas = Image.new("L", (view.size[1], view.size[0]), 128)
    draw_regions(ImageDraw.Draw(canvas), region_boxes(view, {"box": boxes}), 0, (0, 0))
    expected = Image.new("L", canvas.size, 128)
    for box in ([0, 0, 16, 16], [32, 40, 60, 62]):
        draw_box(ImageDraw.Draw(expected), box, (0, 0))
    assert canvas.tobytes() == expected.tobytes()


def volume_look(maps, time_axis=None):
    n = len(maps)
    batch = Batch(torch.zeros(n, 1, 16, 16, 16), ids=list(range(n)), time_axis=time_axis)
    probe = Probe(
        SimpleNamespace(display=Display(), question="target label"), batch, batch, None, {"cam": "net"}, {}, {},
        torch.zeros(n, 16, 16, 16), Axes(batch.time), None, None, None, k=1, pictured=list(range(n)),
    )  # fmt: skip
    missing = {"cam": torch.full((n,), torch.nan)}
    seen = Seen({"cam": maps}, {}, torch.zeros(n), None, None, None, 1)
    numbers = {"cam/positional_bias": 0.5, "cam/positional_bias_chance": 0.4}
    measured = Measurement(numbers, missing, missing, {}, {"cam": how_often(maps)})
    return Look(probe, seen, measured, Moment(0, True), "epoch 0")


def spot(*cells):
    maps = torch.zeros(len(cells), 4, 4, 4)
    for one, cell in zip(maps, cells, strict=True):
        if cell is not None:
            one[cell] = 1
    return maps


def test_volumes_are_cut_through_the_reference_in_every_epoch():
    history = SimpleNamespace(tracks={})
    look = volume_look(spot((0, 1, 2), (3, 3, 3)))
    assert look.planes(history, "cam").tolist() == [[2, 6, 10], [14, 14, 14]]  # no reference: the map's own
    reference = spot((1, 1, 1), None)
    reference[1] = torch.nan
    history.tracks["cam"] = SimpleNamespace(reference=reference)
    for maps in (spot((0, 1, 2), (3, 3, 3)), spot((2, 2, 2), (3, 3, 3))):
        assert volume_look(maps).planes(history, "cam").tolist() == [[6, 6, 6], [14, 14, 14]]


def test_earlier_columns_are_drawn_anew_through_other_planes():
    generator = torch.Generator().manual_seed(0)
    grey, maps = torch.rand(2, 16, 16, 16, generator=generator), torch.rand(2, 4, 4, 4, generator=generator)
    frames, rest = [unknown(i, maps.roll(i, 1)) for i in range(2)], (torch.zeros(2), torch.ones(2), None)
    first, second = torch.tensor([[2, 6, 10]] * 2), torch.tensor([[14, 2, 6]] * 2)

    def new_strip():
        return Filmstrip(grey, ["a", "b"], (), {}, "key")

    going_on = new_strip()
    one = going_on.draw(frames[:1], *rest, first)
    assert going_on.draw(frames[:1], *rest, first).tobytes() == one.tobytes()
    kept = going_on._drawn[id(frames[0])].picture
    going_on.draw(frames, *rest, first)
    assert going_on._drawn[id(frames[0])].picture is kept
    assert going_on.draw(frames, *rest, second).tobytes() == new_strip().draw(frames, *rest, second).tobytes()


def test_frames_keep_few_cells_of_volumes_and_many_of_signals():
    assert frame_maps(torch.rand(2, 20, 40, 8)).shape == (2, 8, 16, 3)
    maps = torch.rand(2, 512)
    torch.testing.assert_close(frame_maps(maps), maps.reshape(2, 256, 2).mean(2))
    assert torch.equal(frame_maps(maps[:, :200]), maps[:, :200])


# Clips


def test_frames_of_a_clip_are_evenly_spaced():
    assert evenly(24, 8) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert evenly(5, 8) == [0, 1, 2, 3, 4]
    assert evenly(1, 8) == [0]
    view = wide_view(torch.zeros(1, 24, 12, 24), 160, CLIPS)
    assert [panel.names[0] for panel in view.panels][::7] == ["t 0", "t 23"]
    assert [panel.size for panel in view.panels] == [(39, 78)] * 8
    assert view.size == (80, 318)
    assert [panel.names[0] for panel in narrow_view(torch.zeros(1, 24, 12, 24), 80, CLIPS).panels] == [
        "t 0", "t 12", "t 23"
    ]  # fmt: skip


def test_frames_show_their_own_time_wherever_its_axis_is():
    grey = torch.linspace(0, 1, 5).reshape(1, 5, 1, 1).expand(1, 5, 8, 8)
    for time in range(3):
        views = frame_views(grey.movedim(1, 1 + time), 32, time, 16)
        drawn = [map_tiles(view, grey.movedim(1, 1 + time), -torch.ones(1, 1, 1, 1), "turbo")[0] for view in views]
        assert [int(np.asarray(tile)[28, 16, 0]) for tile in drawn] == [0, 64, 128, 191, 255]


def test_a_clip_plays_below_a_megabyte():
    generator = torch.Generator().manual_seed(0)
    noise, maps = torch.rand(8, 40, 112, 112, generator=generator), torch.rand(8, 8, 7, 7, generator=generator) - 0.3
    data, ending = encode(clip(noise, maps, [CAPTION] * 8, {}, "key", 0))
    assert ending == "gif"
    assert len(data) < 1_000_000
    with Image.open(BytesIO(data)) as played:
        assert (played.format, played.n_frames, played.info["loop"], played.info["duration"]) == ("GIF", 16, 0, 150)
        assert played.size == (4 * 116 + 4, 4 + 2 * (112 + 14 + 4) + 17)


def test_colours_of_the_map_survive_in_a_clip():
    grey, maps = torch.full((1, 4, 32, 32), 0.5), torch.full((1, 1, 1, 1), 1.0)
    maps = torch.tensor([-1.0, 1.0]).reshape(1, 2, 1, 1)
    frames = clip(grey, maps, [CAPTION], {}, "", 0)
    with Image.open(BytesIO(gif(frames))) as played:
        for i in (0, 3):
            played.seek(i)
            found, drawn = np.asarray(played.convert("RGB")).astype(int), np.asarray(frames[i]).astype(int)
            assert np.abs(found[60:100, 20:100] - drawn[60:100, 20:100]).max() < 12


def test_only_clips_play_and_all_kinds_come_in_a_look():
    history = new()
    maps = torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    history.tracks["cam"] = SimpleNamespace(
        reference=maps, frames=[unknown(0, maps)], peak=torch.ones(2),
    )  # fmt: skip
    look = volume_look(maps)
    assert [key for key, _ in layer_pictures(look, history)] == [
        "cam/grid", "cam/positional_bias_map", "cam/filmstrip",
    ]  # fmt: skip
    look = volume_look(maps, time_axis=2)
    found = dict(layer_pictures(look, history))
    assert list(found) == ["cam/grid", "cam/clip", "cam/positional_bias_map", "cam/filmstrip"]
    assert len(found["cam/clip"]) == 16
    assert sample_pictures(look, history, "cam")[0][0].size == (4 * 78 + 6, 2 * 78 + 2)


# Signals


def test_the_map_shades_the_paper_behind_a_curve():
    values, maps = torch.zeros(1, 100), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    view = wide_view(values, 100, Axes(limits=(-1.5, 2.0)))
    (tile,) = map_tiles(view, values, maps, "turbo")
    panel = view.panels[0]
    assert tile.size == (200, 63)
    assert (panel.size, panel.corner) == ((50, 160), (34, 0))
    assert tile.getpixel((34 + 10, 20)) == (255, 255, 255)
    full = overlay(torch.ones(1, 1, 1), torch.ones(1, 1, 1), (1, 1), "turbo")[0, 0, 0]
    assert tile.getpixel((34 + 150, 20)) == tuple(full.tolist())
    assert tile.getpixel((34 + 80, 45)) == (0, 0, 0)  # the lowest value, four pixels above the edge
    (gradient,) = gradient_tiles(view, values, torch.ones(1, 1, 100))
    assert gradient.getpixel((34 + 80, 20)) == (255, 255, 255)


def test_the_axes_of_a_signal(monkeypatch):
    written = []
    monkeypatch.setattr(panels, "write", lambda draw, place, text, *rest: written.append((text, place)))
    values = torch.linspace(0, 1, 500)[None]
    view = wide_view(values, 160, Axes(limits=(-1.5, 2.25)))
    map_tiles(view, values, torch.ones(1, 4), "turbo")
    assert [text for text, _ in written] == ["0", "250", "499", "2.25", "-1.5"]
    assert written[1][1][0] == pytest.approx(34 + 250.5 / 500 * 280)
    assert [place[1] for _, place in written[3:]] == [4, 80 - 1 - 4]
    written.clear()
    map_tiles(narrow_view(values, 80, Axes(limits=(-1.5, 2.25))), values, torch.ones(1, 4), "turbo")
    assert not written


def test_peaks_of_long_signals_stay():
    values = torch.full((1, 100_000), 0.5)
    values[0, 31_234], values[0, 70_001] = 1, 0
    tile = np.asarray(map_tiles(narrow_view(values, 80, Axes()), values, -torch.ones(1, 4), "turbo")[0])
    rows, columns = (tile[..., 0] == 0).nonzero()
    assert (rows.min(), rows.max()) == (10, 29)  # the middle half
    assert abs(int(columns[rows == 10].mean()) - 25) <= 1  # 31,234 of 100,000 on 80 pixels
    assert abs(int(columns[rows == 29].mean()) - 56) <= 1


def test_regions_of_signals_span_the_curve():
    view = wide_view(torch.zeros(2, 100), 100, Axes())
    mask = torch.zeros(2, 100)
    mask[0, 25:50] = 1
    box = torch.tensor([[25, 50], [0, 0]])
    for _, boxes in region_boxes(view, {"box": box, "mask": mask}):
        assert boxes.tolist() == [[[40, 0, 80, 50]], [[0, 0, 0, 0]]]


# Photos


def test_a_window_says_what_is_black_and_white():
    values = torch.tensor([-2000.0, -1000, -300, 400, 900, torch.nan])
    expected = torch.tensor([0, 0, 0.5, 1, 1, 0])
    for shape in ((1, 1, 6), (1, 1, 2, 3), (1, 1, 1, 2, 3)):
        shown, note = photos(values.reshape(shape), None, None, (-1000, 400))
        assert note is None
        torch.testing.assert_close(shown.flatten(), expected)
    shown, _ = photos(torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8), None, None, (0, 128))
    assert shown.flatten().tolist() == [0, 1, 1]


def test_volumes_are_shown_from_their_first_to_their_99th_percentile():
    values = torch.arange(101.0).reshape(1, 1, 1, 1, 101) - 50
    shown, note = photos(values, None, None)
    torch.testing.assert_close(shown.flatten(), ((torch.arange(101.0) - 1) / 98).clamp(0, 1))
    assert note
    assert "volumes are shown on one scale from -49 (black) to 49 (white)" in note
    assert "`Display(window=(-49, 49))` keeps that" in note
    shown, note = photos(values, 0.5, 100.0)
    assert note
    assert "`mean` 0.5 and `std` 100.0 bring the images" in note
    clips = values / 100 + 0.5
    assert photos(clips, None, None, None, True) == (pytest.approx(clips[:, 0]), None)
    _, note = photos(values, None, None, None, True)
    assert note
    assert "clips are shown on one scale from -49" in note


def test_signals_are_scaled_without_a_word():
    signals = torch.tensor([[[0.0, 2.0], [0.0, 4.0]], [[-1.0, 1.0], [-1.0, 1.0]]])  # means 0, 3, -1, 1
    shown, note = photos(signals, None, None)
    assert note is None
    torch.testing.assert_close(shown, torch.tensor([[0.25, 1.0], [0.0, 0.5]]))
    assert value_limits(signals, None, None, None) == (-1, 3)
    assert value_limits(signals, [1.0, 2.0], 2.0, None) == (-0.5, 7.5)
    assert value_limits(signals, None, None, (0, 9)) == (0, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (0, 1), "mean": 0.5, "std": 0.5}, "`Display` takes `window`, or `mean` and `std`, got all"),
        ({"window": (1, 0)}, r"`window` must be two numbers, the lower one first, got \[1, 0\]"),
        ({"window": 5}, "`window` must be two numbers, the lower one first, got 5"),
        ({"window": (0, 1, 2)}, "`window` must be two numbers"),
        ({"window": (0, float("nan"))}, "`window` must be two numbers"),
    ],
)
def test_display_refuses_windows(arguments, message):
    with pytest.raises(ValueError, match=message):
        Display(**arguments)
