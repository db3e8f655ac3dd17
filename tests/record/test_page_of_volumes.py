"""The page of volumes, clips and signals: what of them is in it, and what a browser shows of that."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from records import LEFT, RIGHT, choose, data_of, pixel, text, write, write_maps
from tiny import canvases

from lightning_gradcam import compare
from lightning_gradcam.picture.colormaps import COLORMAPS
from lightning_gradcam.record.page import page


def photo_of(sample):
    """A photo in the page, as grey values."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(sample["photo"].partition(",")[2]))))


def cells_of(run, t=2, n=2):
    return np.frombuffer(base64.b64decode(run["maps"]), np.int8).reshape(t, n, *run["grid"])


def test_volumes_are_cut_in_the_middle_of_the_slices_of_their_maps():
    photos = np.zeros((2, 100, 10, 6), np.uint8) + np.arange(100, dtype=np.uint8)[:, None, None]
    masks = np.zeros(photos.shape)
    masks[0, 30:40, 2:5, 1:4] = 1
    boxes = np.array([[1, 2, 30, 4, 5, 40], [0, 0, 0, 6, 10, 7]])
    maps = np.zeros((2, 2, 16, 4, 2))
    maps[:, :, 6:8, 1] = [1, 2]  # of the 8 slices that it is averaged down to the fourth
    write_maps("run", maps, photos, {"mask": masks, "box": boxes}, spacing=[3.0, 1.0, 2.0])
    data = data_of(page(compare("run")))
    places = [6, 18, 31, 43, 56, 68, 81, 93]  # 12.5 k + 6.25
    assert data["slices"] == [f"Slice [{place}, :, :]" for place in places]
    assert data["size"] == [10, 12]
    (run,) = data["runs"]
    assert (run["grid"], run["size"]) == ([8, 4, 2], [10, 6])
    cells = cells_of(run)
    assert cells[0, 0, 3, 1].tolist() == [64, 127]
    assert (cells != 0).sum() == 2 * 2 * 2
    nothing, cut = [0] * 4, [1, 2, 4, 5]
    assert run["regions"][0] == [[*nothing * 2, *cut, *nothing * 5], nothing * 8]
    assert run["regions"][1] == [[*nothing * 2, *cut, *nothing * 5], [0, 0, 6, 10, *nothing * 7]]
    strip = photo_of(data["samples"][0])
    assert strip.shape == (8 * 10, 6)
    assert strip.reshape(8, 60).mean(1) == pytest.approx(places, abs=2)  # JPEG, and 64 slices of 100


def test_each_of_several_boxes_is_in_the_page():
    boxes, masks = np.array([[[0, 0, 2, 3], [4, 1, 6, 8]], [[1, 1, 3, 3], [0, 0, 0, 0]]]), np.ones((2, 8, 6))
    write_maps("images", np.ones((2, 2, 4, 3)), np.zeros((2, 8, 6), np.uint8), {"box": boxes, "mask": masks})
    (run,) = data_of(page(compare("images")))["runs"]
    assert run["regions"] == [*boxes.swapaxes(0, 1).tolist(), [[0, 0, 6, 8]] * 2]
    spans = np.array([[[2, 4], [6, 9]]] * 2)
    write_maps("signals", np.ones((2, 2, 3)), np.zeros((2, 10), np.uint8), {"span": spans})
    (run,) = data_of(page(compare("signals")))["runs"]
    assert run["regions"] == [[[2, 0, 4, 1]] * 2, [[6, 0, 9, 1]] * 2]
    boxes = np.array([[[0, 0, 0, 2, 3, 1], [1, 1, 1, 4, 4, 2]]] * 2)
    write_maps("volumes", np.ones((2, 2, 2, 1, 1)), np.zeros((2, 2, 5, 4), np.uint8), {"box": boxes})
    (run,) = data_of(page(compare("volumes")))["runs"]
    assert run["regions"] == [[[0, 0, 2, 3, 0, 0, 0, 0]] * 2, [[0, 0, 0, 0, 1, 1, 4, 4]] * 2]


@pytest.mark.parametrize("time", [0, 2])
def test_clips_are_cut_across_time(time):
    frames = np.zeros((2, 16, 9, 8), np.uint8) + 10 * np.arange(16, dtype=np.uint8)[:, None, None]
    maps = np.arange(2 * 2 * 2 * 3 * 4).reshape(2, 2, 2, 3, 4)
    masks = np.zeros(frames.shape)
    masks[:, 12:, 1:3, 4:] = 1
    box = np.zeros((2, 16, 9, 8))
    box[:, :3, 5:7, :2] = 1
    photos, maps, masks = (np.moveaxis(one, -3, -3 + time) for one in (frames, maps, masks))
    starts, ends = ([0, 5, 0], [2, 7, 3]) if time == 0 else ([0, 0, 5], [3, 2, 7])  # the last axis first
    write_maps(
        "run", maps, np.ascontiguousarray(photos), {"m": masks, "b": np.array([[*starts, *ends]] * 2)}, time=time
    )
    data = data_of(page(compare("run")))
    # Two cells of 8 frames each: three frames a cell, so that its middle is the second of them.
    places = [1, 4, 6, 9, 12, 14]
    assert data["slices"] == [f"Frame {place}" for place in places]
    assert data["size"] == [9, 8]
    (run,) = data["runs"]
    assert (run["grid"], run["size"]) == ([2, 3, 4], [9, 8])
    assert cells_of(run)[1, 1].flatten().tolist() == [round(127 * value / 95) for value in range(72, 96)]
    assert run["regions"][0][0] == [*[0] * 16, *[4, 1, 8, 3] * 2]
    assert run["regions"][1][0] == [0, 5, 2, 7, *[0] * 20]
    assert photo_of(data["samples"][0]).reshape(6, 72).mean(1) == pytest.approx([10 * place for place in places], abs=2)


@pytest.mark.parametrize(
    ("size", "grid", "number"),
    [
        (16, 1, 7),
        (16, 2, 6),
        (16, 3, 3),
        (16, 4, 4),
        (16, 7, 7),
        (16, 16, 8),
        (4, 1, 3),
        (1, 1, 1),
        (5, 2, 2),
        (2, 4, 4),
    ],
)
def test_the_middle_of_each_slice_of_a_map_is_shown(size, grid, number):
    write_maps("run", np.ones((1, 1, grid, 2, 2)), np.zeros((1, size, 4, 4), np.uint8))
    assert len(data_of(page(compare("run")))["slices"]) == number


def test_signals_are_drawn_as_curves():
    photos = np.zeros((2, 320), np.uint8)
    photos[:, 160:] = 255
    maps = np.zeros((2, 2, 128))
    maps[:, :, :2] = [1, 3]
    write_maps("run", maps, photos, {"beat": np.array([[8, 16], [0, 0]])})
    data = data_of(page(compare("run")))
    assert (data["slices"], data["size"]) == ([""], [60, 160])
    (run,) = data["runs"]
    assert (run["grid"], run["size"]) == ([1, 64], [1, 320])
    assert cells_of(run)[0, 0, 0, :2].tolist() == [127, 0]
    assert run["unit"][0][0] == pytest.approx(2 / 127, rel=1e-3)
    assert run["regions"] == [[[8, 0, 16, 1], [0, 0, 0, 1]]]
    curve = photo_of(data["samples"][0])
    assert curve.shape == (60, 160)
    dark = curve < 128
    assert dark[54:60, :75].any(0).all()  # low in the first half: 0.95 of 60
    assert dark[:6, 85:].any(0).all()  # high in the second
    assert not dark[10:50, :75].any()


def test_two_runs_of_fifty_epochs_and_eight_volumes_take_less_than_three_megabytes():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 255, (8, 16, 16, 16)).astype(np.uint8).repeat(5, 1).repeat(5, 2).repeat(5, 3)
    masks = np.zeros(photos.shape, np.uint8)
    masks[:, 20:60, 20:60, 20:60] = 1
    for name in ("weak", "strong"):
        write_maps(name, rng.normal(size=(50, 8, 16, 16, 16)), photos, {"organ": masks})
    text = page(compare("weak", "strong"))
    assert data_of(text)["runs"][0]["grid"] == [8, 8, 8]
    assert len(text) < 3_000_000


# In a browser


@pytest.fixture
def volumes():
    """Evidence on the left of the first slice and on the right of the last of four, which has a region."""
    photos = np.full((2, 8, 16, 16), 60, np.uint8)
    photos[:, 6:] = 120
    masks = np.zeros(photos.shape)
    masks[:, 6:, 4:12, 4:12] = 1
    maps = np.zeros((2, 2, 4, 2, 2))
    maps[:, :, 0, :, 0] = 2
    maps[:, :, 3, :, 1] = 1
    maps[1] *= [[[[0]]], [[[1]]]]
    for name in ("weak", "strong"):
        write_maps(name, maps, photos, {"organ": masks}, class_names=["a", "b"])


def test_the_slice_moves_by_slider_and_by_keyboard_and_the_epoch_keeps_it(volumes, opened):
    from selenium.webdriver import Keys

    browser = opened("weak", "strong")
    body, slider = browser.find_element("css selector", "body"), browser.find_element("id", "slice")
    assert text(browser, "#where") == "Slice [5, :, :]"  # the third of 1, 3, 5, 7
    assert (slider.accessible_name, slider.get_attribute("aria-valuetext")) == ("Slice", "Slice [5, :, :]")
    third = canvases(browser)
    body.send_keys(Keys.ARROW_UP)
    assert text(browser, "#where") == "Slice [7, :, :]"
    fourth = canvases(browser)
    assert fourth[1] != third[1]
    label = "return document.querySelector('#cards canvas').getAttribute('aria-label')"
    assert browser.execute_script(label) == "Map of #0 a, weak, a ✓ 0.50, slice [7, :, :], epoch 1"
    body.send_keys(Keys.ARROW_UP)  # there is no other
    assert text(browser, "#where") == "Slice [7, :, :]"
    body.send_keys(Keys.ARROW_LEFT)
    assert (text(browser, "#now"), text(browser, "#where")) == ("epoch 0", "Slice [7, :, :]")
    body.send_keys(Keys.END)
    assert (text(browser, "#now"), text(browser, "#where")) == ("epoch 1", "Slice [7, :, :]")
    assert canvases(browser) == fourth
    slider.send_keys(Keys.HOME)
    assert (text(browser, "#now"), text(browser, "#where")) == ("epoch 1", "Slice [1, :, :]")
    body.send_keys(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert canvases(browser) == third
    shown = [one for one in browser.find_elements("css selector", "input, select, button") if one.is_displayed()]
    assert slider in shown
    assert all(control.accessible_name for control in shown)
    charts = [one.text for one in browser.find_elements("css selector", "figcaption")]
    choose(browser, "slice", 0)
    assert [one.text for one in browser.find_elements("css selector", "figcaption")] == charts


def test_a_slice_shows_its_photo_its_part_of_the_map_and_its_cut_of_the_region(volumes, opened):
    browser = opened("weak")
    choose(browser, "time", 0)
    choose(browser, "slice", 0)
    left, right = (pixel(browser, 0, x, 0.5) for x in (0.05, 0.95))
    assert left[0] > left[2] + 50  # the map's maximum, red
    assert right == pytest.approx([60] * 3, abs=2)
    choose(browser, "slice", 3)
    left, right = (pixel(browser, 0, x, 0.1) for x in (0.05, 0.95))
    assert left == pytest.approx([120] * 3, abs=2)
    assert right[1] > max(right[0], right[2])  # half of the maximum, which lies in another slice: green
    choose(browser, "strength", 0)
    assert min(pixel(browser, 0, 0.26, 0.5)) > 200  # the box: 4 of 16 pixels from the left
    choose(browser, "slice", 1)
    assert pixel(browser, 0, 0.26, 0.5) == pytest.approx([60] * 3, abs=2)


def test_between_the_slices_of_a_map_it_is_linear(opened):
    maps = np.zeros((1, 1, 2, 1, 1))
    maps[0, 0, 1] = 1
    write_maps("run", maps, np.zeros((1, 12, 8, 8), np.uint8))
    browser = opened("run")
    choose(browser, "colors", "inferno")
    seen = []
    for place in range(6):
        choose(browser, "slice", place)
        seen.append(sum(pixel(browser, 0, 0.5, 0.5)))
    # Middles of the cells are the second and the fifth: 0, 0, 1/3, 2/3, 1, 1.
    assert seen[0] == seen[1] < seen[2] < seen[3] < seen[4] == seen[5]
    assert seen[0] == 0
    table = np.array(
        [int(COLORMAPS["inferno"][k : k + 2], 16) for k in range(0, len(COLORMAPS["inferno"]), 2)]
    ).reshape(-1, 3)
    third = [np.interp(1 / 3, np.linspace(0, 1, len(table)), channel) for channel in table.T]
    choose(browser, "slice", 2)
    assert pixel(browser, 0, 0.5, 0.5) == pytest.approx([0.25 * ink for ink in third], abs=3)


def test_the_sides_of_a_slice_are_in_proportion_to_the_spacing(opened):
    write_maps("run", np.ones((1, 1, 2, 2, 2)), np.zeros((1, 6, 10, 20), np.uint8), spacing=[5.0, 4.0, 1.0])
    browser = opened("run")
    one = browser.find_element("css selector", "#cards canvas")
    assert (one.get_property("width"), one.get_property("height")) == (80, 160)


def test_clips_have_frames_and_signals_and_images_no_other_slider(opened):
    write("image", [[LEFT, RIGHT]])
    write_maps("clip", np.ones((1, 1, 3, 2, 2)), np.zeros((1, 6, 8, 8), np.uint8), time=0)
    browser = opened("clip")
    assert text(browser, "#where") == "Frame 3"
    assert browser.find_element("id", "slice").accessible_name == "Frame"
    photos = np.arange(100, dtype=np.uint8)[None]
    write_maps("signal", [np.eye(10)[:1]], photos, {"beat": np.array([[50, 100]])})
    for name in ("signal", "image"):
        browser = opened(name)
        assert not browser.find_element("id", "slice").is_displayed()
        before = canvases(browser)
        browser.find_element("css selector", "body").send_keys("\ue013")  # up
        assert canvases(browser) == before
        label = browser.find_element("css selector", "#cards canvas").get_attribute("aria-label")
        assert not re.search("slice|frame|, ,", label)


def test_the_curve_of_a_signal_is_shaded_where_its_map_is(opened):
    photos = np.full((1, 100), 128, np.uint8)
    write_maps("signal", [np.eye(10)[:1]], photos, {"beat": np.array([[50, 100]])})
    browser = opened("signal")
    shaded, paper, line = (pixel(browser, 0, *place) for place in ((0.03, 0.2), (0.4, 0.2), (0.4, 0.5)))
    assert shaded[0] > shaded[2] + 50
    assert min(paper) > 245
    assert max(line) < 128
    edge = [min(pixel(browser, 0, x / 160, 0.3)) for x in range(78, 84)]
    assert min(edge) < 50  # the black of the box's left edge, in the middle
