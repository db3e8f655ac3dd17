"""The page of several runs a side in a browser: one steps through the runs, and blind gives none of them away."""

import re
from pathlib import Path

import numpy as np
import pytest
from records import BOTH, LEFT, RIGHT, about, choose, text, write
from tiny import canvases, wait_for

from lightning_gradcam import compare
from lightning_gradcam.record.page import page
from lightning_gradcam.record.writer import Writer, sample_rows

RUN = "#cards > li:first-child .says > span:first-child"


@pytest.fixture
def sides():
    for name, cells in {"w0": LEFT, "w1": BOTH, "w2": LEFT, "s0": RIGHT, "s1": LEFT, "s2": BOTH}.items():
        write(name, [[LEFT, LEFT], [cells, RIGHT]])
    return {"weak": ["w0", "w1", "w2"], "strong": ["s0", "s1", "s2"]}


def named(browser):
    return [one.text for one in browser.find_elements("css selector", RUN)]


def seen_text(browser):
    labels = [one.get_attribute("aria-label") for one in browser.find_elements("css selector", "canvas, svg")]
    return browser.find_element("css selector", "body").text + browser.title + " ".join(labels)


def test_one_steps_through_the_runs_by_keyboard(sides, opened):
    from selenium.webdriver import Keys

    browser = opened(sides)
    assert text(browser, "#title") == "Grad-CAM: weak and strong"
    assert named(browser) == ["weak 1", "strong 1"]
    assert text(browser, "#cards .head span:last-child") == "agree 0.00"
    first = canvases(browser)
    select = browser.find_element("id", "run")
    assert select.accessible_name == "Run"
    select.send_keys(Keys.ARROW_DOWN)
    assert named(browser) == ["weak 2", "strong 2"]
    assert text(browser, "#cards .head span:last-child") == "agree 0.50"
    second = canvases(browser)
    assert second[0][0] != first[0][0]
    wait_for(browser, "location.hash === '#run=2'")
    browser.refresh()
    wait_for(browser, "document.body.dataset.ready === 'yes'")
    assert named(browser) == ["weak 2", "strong 2"]
    assert canvases(browser) == second


def test_captions_say_the_range_of_the_runs(sides, opened):
    browser = opened(sides)
    caption = browser.find_elements("css selector", "figcaption")[1].text.splitlines()
    # The second sample lies on the right everywhere: half of 1, 0.5 and 1, and half of 0, 1 and 0.5.
    assert caption[1:] == ["weak 0.42 (0.25 to 0.50)", "strong 0.25 (0.00 to 0.50)"]
    assert text(browser, "#bands") == "Lines: means over runs. Bands: from the least to the most of the runs."
    paths = browser.find_elements("css selector", "svg:first-of-type .band")
    assert len(paths) == 6  # three charts of two sides
    assert all(path.get_attribute("d").startswith("M") for path in paths)
    assert browser.execute_script("return getComputedStyle(document.querySelector('.band')).opacity") == "0.28"


def test_blind_gives_no_run_away(sides, opened):
    browser = opened(sides)
    choose(browser, "blind", True)
    choose(browser, "run", 3)
    assert not re.search(r"\b(weak|strong|w2|s2)\b", seen_text(browser))
    assert sorted(named(browser)) == ["A", "B"]
    assert "(0.25 to 0.50)" in seen_text(browser)


def test_blind_does_not_tell_sides_by_how_many_runs_they_have(sides, opened):
    browser = opened({"weak": sides["weak"], "strong": sides["strong"][:2]})
    choose(browser, "run", 3)
    assert named(browser) == ["weak 3", "strong 1"]  # from the start again
    choose(browser, "blind", True)
    assert named(browser) == ["A", "B"]
    assert browser.find_element("id", "run").get_attribute("value") == "1"
    options = "return [...document.getElementById('run').options].map((one) => one.hidden)"
    assert browser.execute_script(options) == [False, False, True]
    assert not any(band.is_displayed() for band in browser.find_elements("css selector", ".band, #bands"))
    assert not re.search(r"\([\d.]+ to", seen_text(browser))
    choose(browser, "blind", False)
    assert browser.execute_script(options) == [False, False, False]
    assert all(band.is_displayed() for band in browser.find_elements("css selector", "#bands"))


@pytest.mark.parametrize("state", ["run=4", "run=0", "run=x", "run="])
def test_a_run_that_is_not_there_is_the_first(state, sides, opened):
    browser = opened(sides)
    choose(browser, "run", 2)
    browser.execute_script("location.hash = arguments[0]", state)
    wait_for(browser, "document.getElementById('run').value === '1'")
    assert named(browser) == ["weak 1", "strong 1"]


def test_plain_runs_have_no_choice_of_a_run(sides, opened):
    browser = opened("w0", "s0")
    assert not browser.find_element("id", "run").is_displayed()
    assert named(browser) == ["w0", "s0"]
    assert text(browser, "#bands") == "Bands: the middle half of the samples, by quartiles."


def test_three_runs_a_side_of_fifty_epochs_take_less_than_three_megabytes():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 255, (16, 28, 28)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    for name in ("w0", "w1", "w2", "s0", "s1", "s2"):
        writer = Writer(Path(name), about(name=name, ids=list(range(16)), labels=[0] * 16), photos, {})
        for epoch in range(50):
            rows = sample_rows(np.zeros(16), np.full((16, 2), 0.5), np.zeros(16, int), np.ones(16), np.zeros(16))
            maps = rng.normal(size=(16, 14, 14)).astype(np.float32)
            writer.write(epoch, epoch, {"gradcam": maps}, rows, {"gradcam/drift": 0.0})
    assert len(page(compare({"weak": ["w0", "w1", "w2"], "strong": ["s0", "s1", "s2"]}))) < 3_000_000
