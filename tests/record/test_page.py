"""The page in a browser: it works from disk, by keyboard, without a network, and shows what the records hold."""

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from records import BOTH, LEFT, RIGHT, about, choose, data_of, pixel, text, write
from tiny import HOSTILE, canvases, wait_for

from lightning_gradcam import compare
from lightning_gradcam.picture.colormaps import AGAINST
from lightning_gradcam.record.page import page, write_page
from lightning_gradcam.record.writer import Writer, sample_rows


def test_maps_come_back_from_the_page_within_a_127th_of_their_maximum():
    rng = np.random.default_rng(0)
    maps = [[rng.normal(size=(4, 5)).astype(np.float32) * 10.0**i for _ in range(2)] for i in range(3)]
    write("run", maps)
    data = data_of(page(compare("run")))
    (run,), drawn = data["runs"], data["curves"][0]["lines"][0]
    cells = np.frombuffer(base64.b64decode(run["maps"]), np.int8).reshape(3, 2, 4, 5)
    back = cells * np.array(run["unit"])[:, :, None, None]
    most = np.abs(np.stack(maps)).max((2, 3), keepdims=True)
    assert (np.abs(back - np.stack(maps)) <= 0.51 / 127 * most).all()
    _, *drift = [row["run/drift"] for row in compare("run").table()]
    assert drawn == [None, *(pytest.approx(value, rel=1e-3) for value in drift)]


def test_two_runs_of_fifty_epochs_and_sixteen_photos_take_less_than_a_megabyte():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 255, (16, 28, 28)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    for name in ("weak", "strong"):
        card = about(name=name, ids=list(range(16)), labels=[0] * 16)
        writer = Writer(Path(name), card, photos, {})
        for epoch in range(50):
            rows = sample_rows(np.zeros(16), np.full((16, 2), 0.5), np.zeros(16, int), np.ones(16), np.zeros(16))
            maps = rng.normal(size=(16, 14, 14)).astype(np.float32)
            writer.write(epoch, epoch, {"gradcam": maps}, rows, {"gradcam/drift": 0.0})
    assert len(page(compare("weak", "strong"))) < 1_000_000


def test_long_runs_and_fine_maps_are_thinned_out():
    fine = np.zeros((40, 20), np.float32)
    fine[:20] = 1
    write("run", [[fine, fine]] * 250)
    data = data_of(page(compare("run")))
    assert len(data["moments"]) == 100
    assert (data["moments"][0], data["moments"][-1]) == (0, 249)
    assert data["runs"][0]["grid"] == [16, 8]
    assert "This page shows 100 of 250 moments." in data["notes"]


def test_the_policy_allows_this_script_and_this_style_alone_and_no_network():
    write("run", [[LEFT, RIGHT]])
    text = page(compare("run"))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts.keys() == {"default-src", "img-src", "style-src", "script-src"}
    assert (parts["default-src"], parts["img-src"]) == ("'none'", "data:")
    for tag, kind in (("<style>", "style-src"), ("<script>", "script-src")):
        content = text.partition(tag)[2].partition(tag.replace("<", "</"))[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert parts[kind] == f"'sha256-{digest}'"
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_names_stay_data(text):
    text = text.encode("utf-8", "replace").decode()  # a file cannot hold half of a letter
    for name in ("one", "two"):
        write(name, [[LEFT, RIGHT]], ids=[text, "5"], class_names=[text, text], name=text)
    found = page(compare("one", "two"))
    assert data_of(found)["classes"] == [text, text]
    assert found.count("<script") == 2
    assert "<img" not in found


def test_a_page_that_cannot_be_written_leaves_nothing():
    write("run", [[LEFT, RIGHT]])
    Path("taken.html").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_page(compare("run"), "taken.html")
    assert not list(Path().glob("*.part"))


# In a browser


@pytest.fixture
def runs():
    write("weak", [[LEFT, LEFT], [LEFT, RIGHT], [LEFT, BOTH]], right=[[0, 0], [1, 0], [1, 1]])
    write("strong", [[BOTH, RIGHT], [LEFT, LEFT], [RIGHT, BOTH]])


def test_the_slider_moves_by_keyboard_and_the_maps_with_it(runs, opened):
    from selenium.webdriver import Keys

    browser = opened("weak", "strong")
    assert text(browser, "#title") == "Grad-CAM: weak and strong"
    assert text(browser, "#now") == "epoch 2"
    last = canvases(browser)
    assert [len(card) for card in last] == [2, 2]
    assert last[0][0] != last[0][1]  # left against right
    assert last[1][0] == last[1][1]  # the same map over the same photo
    slider = browser.find_element("id", "time")
    slider.send_keys(Keys.ARROW_LEFT)
    assert text(browser, "#now") == "epoch 1"
    before = canvases(browser)
    assert before[0][0] == before[0][1] == last[0][0]
    assert before[1] != last[1]
    assert before[1][0] != before[1][1]
    slider.send_keys(Keys.HOME)
    assert text(browser, "#now") == "epoch 0"
    browser.find_element("css selector", "body").send_keys(Keys.ARROW_RIGHT)  # also away from the slider
    assert text(browser, "#now") == "epoch 1"
    assert slider.get_attribute("aria-valuetext") == "epoch 1"


def test_captions_charts_and_labels_say_what_the_records_hold(runs, opened):
    browser = opened("weak", "strong")
    choose(browser, "time", 1)
    cards = browser.find_elements("css selector", "#cards > li")
    assert cards[0].text.splitlines() == ["#3 a", "agree 1.00", "weak", "a ✓ 0.50", "strong", "a ✓ 0.50"]
    assert cards[1].text.splitlines() == ["#5 b", "agree 0.00", "weak", "a ✗ 0.50", "strong", "b ✓ 0.50"]
    row = compare("weak", "strong").table()[1]
    captions = [one.text.split() for one in browser.find_elements("css selector", "figcaption")]
    assert [one[-3::2] for one in captions] == [
        [f"{row[f'{run}/{key}']:.2f}" for run in ("weak", "strong")] for key in ("drift", "mass_left", "mass_top")
    ]
    label = browser.find_element("css selector", "#cards canvas").get_attribute("aria-label")
    assert label == "Map of #3 a, weak, a ✓ 0.50, epoch 1"
    controls = browser.find_elements("css selector", "input, select, button")
    shown = [control for control in controls if control.is_displayed()]
    # These maps have no other side to show, these samples no groups and no slices, and these sides one run each.
    assert len(shown) == len(controls) - 4
    assert all(control.accessible_name for control in shown)


def test_a_map_lies_where_the_record_has_it(runs, opened):
    browser = opened("weak")
    red_minus_blue = (
        "const copy = document.createElement('canvas').getContext('2d', {willReadFrequently: true});"
        "copy.drawImage(document.querySelector('#cards canvas'), -arguments[0], -arguments[1]);"
        "const pixel = copy.getImageData(0, 0, 1, 1).data; return pixel[0] - pixel[2]"
    )
    assert browser.execute_script(red_minus_blue, 20, 60) > 80  # the left is at its maximum: red
    assert browser.execute_script(red_minus_blue, 140, 60) == 0  # the right is a grey photo
    choose(browser, "strength", 0)
    assert browser.execute_script(red_minus_blue, 20, 60) == 0


def test_colours_and_scales_change_the_maps(opened):
    write("weak", [[LEFT, LEFT], [LEFT * 4, LEFT]])
    write("strong", [[LEFT, LEFT], [LEFT, LEFT * 2]])
    browser = opened("weak", "strong")
    choose(browser, "time", 0)
    own = canvases(browser)
    assert len({picture for card in own for picture in card}) == 1
    choose(browser, "scale", "sample")
    in_run = canvases(browser)
    assert [[picture == own[0][0] for picture in card] for card in in_run] == [[False, True], [True, False]]
    choose(browser, "scale", "common")
    common = canvases(browser)
    assert [[picture == own[0][0] for picture in card] for card in common] == [[False, False], [False, False]]
    choose(browser, "scale", "map")
    choose(browser, "colors", "inferno")
    assert canvases(browser)[0][0] != own[0][0]


def test_sorting_and_filters(runs, opened):
    browser = opened("weak", "strong", samples="all")
    titles = (
        "return [...document.querySelectorAll('#cards > li:not([hidden]) .head span:first-child')]"
        ".map(one => one.textContent)"
    )
    choose(browser, "time", 1)
    choose(browser, "sort", "difference")
    assert browser.execute_script(titles) == ["#5 b", "#3 a"]  # agreement 0 and 1
    choose(browser, "time", 2)
    assert browser.execute_script(titles) == ["#3 a", "#5 b"]
    choose(browser, "time", 1)
    choose(browser, "sort", "drift")
    assert browser.execute_script(titles) == ["#5 b", "#3 a"]  # both have moved: wholly, and by half
    choose(browser, "verdict", "wrong")
    assert browser.execute_script(titles) == ["#5 b"]
    choose(browser, "verdict", "right")
    assert browser.execute_script(titles) == ["#3 a"]
    choose(browser, "verdict", "all")
    choose(browser, "class", "b")
    assert browser.execute_script(titles) == ["#5 b"]


def test_blind_hides_which_run_is_which(runs, opened):
    browser = opened("weak", "strong")
    choose(browser, "blind", True)
    shown = browser.find_element("css selector", "body").text + browser.title
    labels = [one.get_attribute("aria-label") for one in browser.find_elements("css selector", "canvas, svg")]
    assert not re.search(r"\b(weak|strong)\b", shown + " ".join(labels))
    assert text(browser, "#title") == "Grad-CAM: A and B"
    first_is = set()
    for _ in range(40):  # by chance alone the same one every time: once in 2^39
        choose(browser, "blind", True)
        first_is.add(canvases(browser)[0][0])
    assert len(first_is) == 2
    choose(browser, "blind", False)
    assert text(browser, "#title") == "Grad-CAM: weak and strong"


def test_play_runs_to_the_end(runs, opened):
    browser = opened("weak", "strong")
    browser.find_element("id", "play").click()
    assert text(browser, "#play") == "Pause"
    wait_for(browser, "document.getElementById('play').textContent === 'Play'")
    assert text(browser, "#now") == "epoch 2"


def test_one_run_has_nothing_to_compare(runs, opened):
    browser = opened("weak")
    assert text(browser, "#title") == "Grad-CAM: weak"
    assert not browser.find_element("id", "blind").is_displayed()
    assert "agree" not in browser.find_element("id", "cards").text


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_wider_than_the_window(opened, width):
    for name in ("weak", "strong"):
        write(name * 15, [[LEFT, RIGHT]], class_names=[name * 15] * 2)
    browser = opened("weak" * 15, "strong" * 15)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_runs_with_other_regions(opened):
    for name, region in (("one", "left"), ("two", "right")):
        card = about(name=name)
        writer = Writer(Path(name), card, np.zeros((2, 8, 8), np.uint8), {region: np.array([[0, 0, 4, 8]] * 2)})
        writer.write(0, 1, {"gradcam": np.stack([LEFT, RIGHT])}, sample_rows(np.zeros(2), None, None, None, None), {})
    browser = opened("one", "two")
    charts = [one.text.splitlines() for one in browser.find_elements("css selector", "figcaption")]
    assert [chart[1:] for chart in charts[1:]] == [["one 0.50", "two –"], ["one –", "two 0.50"]]


def test_a_filter_that_leaves_nothing_says_so(runs, opened):
    browser = opened("strong")
    assert not browser.find_element("id", "none").is_displayed()
    choose(browser, "verdict", "wrong")
    assert browser.find_element("id", "none").is_displayed()


def test_names_with_markup_are_shown_as_they_are(opened):
    name = HOSTILE["markup"]
    write("one", [[LEFT, RIGHT]], class_names=[name, name], name=name)
    browser = opened("one")
    assert text(browser, "#title") == f"Grad-CAM: {name}"
    assert name in text(browser, "#cards")


def test_empty_maps_and_numbers_that_are_none(opened):
    write("one", [[-BOTH, LEFT * np.nan], [LEFT, LEFT]])
    browser = opened("one")
    choose(browser, "time", 0)
    first, second = canvases(browser)
    assert first != second  # one says `map empty`, the other `not finite`


def test_the_side_of_evidence(opened):
    both_sides = np.array([[4, -2], [4, -2]], np.float32)
    write("run", [[both_sides, LEFT]], signed=True)
    browser = opened("run")
    photo = pixel(browser, 0, 0.95, 0.5)  # where the first map is against
    assert max(photo) - min(photo) <= 2  # grey
    strong = pixel(browser, 0, 0.05, 0.5)
    assert strong[0] > strong[2] + 50  # turbo's red
    choose(browser, "side", "against")
    against = pixel(browser, 0, 0.95, 0.5)
    expected = [0.25 * grey + 0.75 * ink for grey, ink in zip(photo, AGAINST["turbo"], strict=True)]
    assert against == pytest.approx(expected, abs=2)
    left = pixel(browser, 0, 0.05, 0.5)
    assert max(left) - min(left) <= 2
    assert text(browser, "#cards li:nth-child(2)")  # whose map has nothing against: its photo alone, with a note
    choose(browser, "side", "both")
    assert pixel(browser, 0, 0.05, 0.5) == strong
    half = [0.625 * grey + 0.375 * ink for grey, ink in zip(photo, AGAINST["turbo"], strict=True)]
    assert pixel(browser, 0, 0.95, 0.5) == pytest.approx(half, abs=2)  # 2 of 4, on one scale
    choose(browser, "colors", "inferno")
    blue = pixel(browser, 0, 0.95, 0.5)
    assert blue[2] > blue[0] + 20


def test_methods_without_a_sign_have_no_other_side(opened):
    write("run", [[np.array([[1, -1], [1, -1]], np.float32), LEFT]])
    browser = opened("run")
    assert not browser.find_element("id", "side").is_displayed()
    before = canvases(browser)
    choose(browser, "side", "both")
    assert canvases(browser) == before


def test_another_class_that_was_asked_for_is_said(opened):
    write("run", [[LEFT, RIGHT]], settings={"layers": {"gradcam": "a"}, "question": "target predicted"}, right=[[0, 1]])
    text_of_cards = text(opened("run"), "#cards")
    assert "for " not in text_of_cards  # the predicted one was asked for
    photos = np.full((2, 8, 8), 99, np.uint8)
    writer = Writer(Path("other"), about(name="other", ids=[3, 5], labels=[0, 1], class_names=["a", "b"]), photos, {})
    rows = sample_rows(np.zeros(2), np.full((2, 2), 0.5), np.array([0, 1]), np.ones(2), np.zeros(2), np.array([1, 1]))
    writer.write(0, 1, {"gradcam": np.stack([LEFT, RIGHT])}, rows, {})
    assert text(opened("other"), "#cards").count("for b; a") == 1


def test_the_filter_by_group(opened):
    write("run", [[LEFT, RIGHT]], groups=["tagged", "plain"])
    browser = opened("run")
    assert [len(card) for card in canvases(browser)] == [1, 1]
    both = canvases(browser)
    choose(browser, "group", "plain")
    assert canvases(browser) == both[1:]
    choose(browser, "group", "")
    assert canvases(browser) == both


# The address


def fragment(browser):
    wait_for(browser, "(document.body.dataset.state || '') === location.hash.slice(1)")
    return browser.execute_script("return location.hash")


def test_the_address_holds_what_was_changed(runs, opened):
    browser = opened("weak", "strong")
    assert fragment(browser) == ""
    choose(browser, "time", 1)
    choose(browser, "sort", "drift")
    choose(browser, "colors", "inferno")
    choose(browser, "strength", 0.5)
    assert fragment(browser) == "#at=1&colors=inferno&strength=0.5&sort=drift"
    seen = canvases(browser)
    browser.refresh()
    wait_for(browser, "document.body.dataset.ready === 'yes'")
    assert text(browser, "#now") == "epoch 1"
    assert canvases(browser) == seen
    for name, value in (("time", 2), ("sort", "order"), ("colors", "turbo"), ("strength", 0.75)):
        choose(browser, name, value)
    assert fragment(browser) == ""


def test_another_address_changes_the_page_at_once(runs, opened):
    browser = opened("weak", "strong")
    browser.execute_script("location.hash = '#at=0&verdict=wrong'")
    wait_for(browser, "document.getElementById('now').textContent === 'epoch 0'")
    assert browser.find_element("id", "verdict").get_attribute("value") == "wrong"
    browser.execute_script("location.hash = '#at=1'")
    wait_for(browser, "document.getElementById('now').textContent === 'epoch 1'")
    assert browser.find_element("id", "verdict").get_attribute("value") == "all"


@pytest.mark.parametrize(
    "state",
    ["at=", "at=x", "at=NaN&strength=7", "colors=<script>", "%%%", "sort&slice=9", "side=constructor", "at=9e9"],
)
def test_what_an_address_says_wrongly_is_left_out(state, runs, opened):
    browser = opened("weak", "strong")
    seen = canvases(browser)
    choose(browser, "time", 0)
    browser.execute_script("location.hash = arguments[0]", state)
    wait_for(browser, "document.getElementById('now').textContent === 'epoch 2'")
    assert canvases(browser) == seen
    assert fragment(browser) == ""


def test_the_address_of_a_long_run_leads_to_the_nearest_epoch(opened):
    write("run", [[LEFT, RIGHT]] * 250)
    browser = opened("run")
    browser.execute_script("location.hash = '#at=100'")
    wait_for(browser, "document.getElementById('now').textContent === 'epoch 101'")


def test_blind_places_come_back_by_the_address(runs, opened):
    browser = opened("weak", "strong")
    browser.execute_script("location.hash = '#blind=1.0'")
    wait_for(browser, "document.getElementById('blind').checked")
    seen = canvases(browser)
    assert text(browser, "#title") == "Grad-CAM: A and B"
    browser.execute_script("location.hash = ''")
    wait_for(browser, "!document.getElementById('blind').checked")
    assert [card[::-1] for card in canvases(browser)] == seen
    browser.execute_script("location.hash = '#blind=7'")  # of other runs: still blind
    wait_for(browser, "document.getElementById('blind').checked")


def test_a_frame_without_an_address_of_its_own_works(runs, opened):
    browser = opened("weak", "strong")
    browser.execute_script(
        "const frame = document.createElement('iframe');"
        "frame.srcdoc = arguments[0]; frame.setAttribute('sandbox', 'allow-scripts'); document.body.append(frame);",
        page(compare("weak", "strong")),
    )
    browser.switch_to.frame(browser.find_element("css selector", "iframe"))
    wait_for(browser, "document.body.dataset.ready === 'yes'")
    choose(browser, "time", 1)
    wait_for(browser, "document.body.dataset.state === 'at=1'")
    browser.switch_to.default_content()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_embeds_the_page_may_choose_its_theme(theme, runs, opened):
    browser = opened("weak", "strong")
    paper = "return getComputedStyle(document.body).backgroundColor"
    for preferred in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": preferred}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.execute_script("delete document.documentElement.dataset.theme")
        assert browser.execute_script(paper) == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 22)"}[preferred]
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        assert browser.execute_script(paper) == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 22)"}[theme]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
