"""The page's card of places: where maps lie whatever the picture."""

import base64

import numpy as np
import pytest
from records import data_of, text, write, write_maps

from lightning_gradcam import Record, compare
from lightning_gradcam.record.page import page
from lightning_gradcam.record.writer import Writer, sample_rows

CARD = "#places .runs > div:nth-child({})"


def cells_of(run):
    return np.frombuffer(base64.b64decode(run["places"]["cells"]), np.uint8).reshape(-1, *run["grid"])


def spots(*cells):
    """Maps of 4 x 4 cells with one positive cell each."""
    maps = np.zeros((len(cells), 4, 4), np.float32)
    for one, cell in zip(maps, cells, strict=True):
        one[cell] = 1
    return maps


def test_the_data_is_the_share_of_all_samples_whoever_is_used():
    maps = np.stack([spots((0, 0), (0, 0), (3, 3), (2, 2)), spots((1, 3), (1, 3), (1, 3), (1, 3))])
    write_maps("run", maps, np.zeros((4, 16, 16), np.uint8))
    (run,) = data_of(page(compare("run")))["runs"]
    assert run["places"]["share"] == [0.5, 1]
    assert run["places"]["chance"] == [None, None]  # the run is older than the number
    first, second = cells_of(run)
    assert (first[0, 0], first[3, 3], first[1, 1]) == (128, 64, 0)
    assert second[1, 3] == second.sum() == 255


def test_what_the_run_logged_is_shown_beside_what_chance_gives():
    folder = write_maps("run", spots((0, 0), (0, 0))[None], np.zeros((2, 16, 16), np.uint8))
    before = Record.open(folder)
    writer = Writer(folder.with_name("other"), before.about, before.photos, {})
    rows = sample_rows(np.zeros(2), None, None, None, None)
    for step, logged in enumerate((1.0, 0.75)):  # the second is of other samples, whose chance that is
        numbers = {"gradcam/positional_bias": logged, "gradcam/positional_bias_chance": 0.5}
        writer.write(step, step, {"gradcam": before.maps["gradcam"][0]}, rows, numbers)
    (run,) = data_of(page(compare(writer.folder)))["runs"]
    assert run["places"]["share"] == [1, 1]
    assert run["places"]["chance"] == [0.5, None]


@pytest.mark.parametrize(
    ("n", "share", "chance", "is_told"), [(8, 1, 0.5, True), (7, 1, 0.5, False), (8, 0.6, 0.5, False), (8, 1, 1, False)]
)
def test_a_place_that_all_maps_share_is_told_in_the_text(n, share, chance, is_told):
    folder = write_maps("run", spots(*[(0, 0)] * n)[None], np.zeros((n, 16, 16), np.uint8))
    before = Record.open(folder)
    writer = Writer(folder.with_name("other"), before.about, before.photos, {})
    numbers = {"gradcam/positional_bias": share, "gradcam/positional_bias_chance": chance}
    rows = sample_rows(np.zeros(n), None, None, None, None)
    writer.write(0, 0, {"gradcam": before.maps["gradcam"][0]}, rows, numbers)
    told = "lie at one place at the last moment: positional_bias 1.00, by chance 0.50."
    assert (told in str(compare(writer.folder))) == is_told


def test_slices_of_volumes_have_places_of_their_own():
    maps = np.zeros((1, 2, 3, 4, 4), np.float32)
    maps[..., 2, 1, 0] = 1
    write_maps("run", maps, np.zeros((2, 6, 8, 8), np.uint8))
    (run,) = data_of(page(compare("run")))["runs"]
    assert run["grid"] == [3, 4, 4]
    assert cells_of(run)[0, 2, 1, 0] == cells_of(run).sum() == 255


def test_the_card_follows_the_moment_and_tells_the_share(opened):
    left, right, none = np.ones((3, 2, 2), np.float32)
    left[0, 0] = right[0, 1] = 2
    write("one", [[left, right], [left, left], [none, none]])
    write("two", [[left, right], [left, right], [right, right]])
    browser = opened("one", "two")
    drawn = {}
    for moment, (one, two) in enumerate([("0.50", "0.50"), ("1.00", "0.50"), ("–", "1.00")]):
        browser.execute_script(f"moveTo({moment})")
        assert text(browser, CARD.format(1)) == f"one\nat most {one}"
        assert text(browser, CARD.format(2)) == f"two\nat most {two}"
        drawn[moment] = browser.execute_script(
            "return [...document.querySelectorAll('#places canvas')].map(one => one.toDataURL())"
        )
    assert drawn[0][1] == drawn[1][1] != drawn[2][1]
    assert drawn[2][0] not in (drawn[0][0], drawn[1][0])  # "no map"
    browser.execute_script("document.getElementById('blind').click()")
    assert {text(browser, CARD.format(place)).split("\n")[0] for place in (1, 2)} == {"A", "B"}
    label = browser.find_element("css selector", "#places canvas").get_attribute("aria-label")
    assert label.startswith("Share of maps with each cell in their strongest tenth, A, at most ")
