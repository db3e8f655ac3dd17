"""The tab in TensorBoard itself, in a browser: nothing complains there, and nothing is asked of another host."""

import json
import os
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from records import LEFT, RIGHT, choose, text
from tabs import OBSERVATIONS, grow, logged, tensorboard
from tiny import wait_for

THREE = (*OBSERVATIONS, [RIGHT, LEFT])


class Tab:
    """TensorBoard in a browser, with the tab in front."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    def open(self, fragment=""):
        self.wait_for_data()
        self.browser.switch_to.default_content()
        self.browser.get("about:blank")
        self.browser.get(f"{self.address}#lightning_gradcam{fragment}")
        self.in_page()
        return self

    def wait_for_data(self):
        self.wait_for_start()
        end = time.time() + 60
        while not self.is_enabled():
            assert time.time() < end, "the tab does not come"
            time.sleep(0.2)

    def wait_for_start(self):
        end = time.time() + 60
        while time.time() < end:
            with suppress(URLError), urlopen(self.address):
                return
            time.sleep(0.1)

    def is_enabled(self):
        with urlopen(f"{self.address}data/plugins_listing") as answer:
            return json.load(answer)["lightning_gradcam"]["enabled"]

    def in_bar(self):
        self.browser.switch_to.default_content()
        wait_for(self.browser, "document.querySelector('iframe') !== null")
        self.browser.switch_to.frame(self.browser.find_element("css selector", "iframe"))

    def in_page(self):
        self.in_bar()
        wait_for(self.browser, "document.querySelectorAll('iframe:not(.behind)').length === 1")
        wait_for(self.browser, "document.querySelectorAll('iframe.behind').length === 0")
        self.browser.switch_to.frame(self.browser.find_element("css selector", "iframe"))
        wait_for(self.browser, "document.body.dataset.ready === 'yes'")

    def reload(self):
        """TensorBoard's own button."""
        self.browser.switch_to.default_content()
        self.browser.find_element("css selector", "app-header-reload button, .reload-button").click()

    def boxes(self):
        self.in_bar()
        found = self.browser.find_elements("css selector", "input")
        return {box.get_attribute("value"): box.is_selected() for box in found}

    def tick(self, name):
        self.in_bar()
        next(
            box for box in self.browser.find_elements("css selector", "input") if box.get_attribute("value") == name
        ).click()
        time.sleep(0.1)
        self.in_page()

    def shows(self, selector):
        self.in_page()
        return text(self.browser, selector)

    def wait_until(self, selector, value):
        end = time.time() + 60
        while self.shows(selector) != value:
            assert time.time() < end, f"{self.shows(selector)} is not {value}"
            time.sleep(0.1)

    def where(self):
        time.sleep(0.6)  # the address follows when the slider rests
        self.browser.switch_to.default_content()
        return self.browser.execute_script("return location.hash")


@pytest.fixture
def tab(browser):
    """Start a TensorBoard and open its tab."""
    browser.get_log("performance")
    browser.get_log("browser")
    hosts = []
    with ExitStack() as running:

        def start(*arguments):
            address = running.enter_context(tensorboard(*arguments))
            hosts.append(address[: address.index("/", len("http://")) + 1])
            return Tab(browser, address)

        yield start
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        browser.switch_to.default_content()
        browser.get("about:blank")
    browser.set_window_size(1400, 1100)
    asked = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    assert [one for one in asked if not one.startswith((*hosts, "data:", "blob:", "about:"))] == []
    # TensorBoard itself warns of its libraries and of WebGL, and under a path prefix does not find its fonts.
    complaints = [one for one in browser.get_log("browser") if "font-roboto" not in one["message"]]
    ours = "/data/plugin/lightning_gradcam/"
    assert [one for one in complaints if one["level"] == "SEVERE" or ours in one["message"]] == []


def test_two_runs_side_by_side_follow_the_training_and_the_reader(tab):
    from selenium.common.exceptions import WebDriverException

    for name in ("weak", "strong"):
        logged(f"logs/{name}", *THREE)
    one = tab("--logdir=logs").open()
    assert one.boxes() == {"weak": True, "strong": True}
    assert one.shows("#title") == "Grad-CAM: weak and strong"
    assert one.shows("#now") == "epoch 2"
    for name in ("weak", "strong"):
        grow(f"logs/{name}/gradcam")
    one.reload()
    one.wait_until("#now", "epoch 3")  # the newest, for one who never moved the slider
    choose(one.browser, "time", 1)
    choose(one.browser, "colors", "inferno")
    for name in ("weak", "strong"):
        grow(f"logs/{name}/gradcam")
    one.reload()
    end, last = time.time() + 60, ""
    while last != "4":
        assert time.time() < end
        with suppress(WebDriverException):  # of a page that gives way to the newer one just now
            one.in_page()
            last = one.browser.execute_script("return document.getElementById('time').max")
    assert one.shows("#now") == "epoch 1"
    assert one.browser.find_element("id", "colors").get_attribute("value") == "inferno"
    one.tick("strong")
    assert one.shows("#title") == "Grad-CAM: weak"
    assert one.shows("#now") == "epoch 1"
    one.in_bar()
    one.browser.find_element("css selector", "input").click()
    assert text(one.browser, "main") == "Tick a run to see where it looks."


@pytest.mark.slow
def test_a_run_that_has_just_started_joins_but_where_the_reader_has_chosen_a_moment(tab):
    logged("logs/long", *THREE)
    one = tab("--logdir=logs").open()
    choose(one.browser, "time", 1)
    logged("logs/young", THREE[0])
    end = time.time() + 60
    while one.boxes() != {"long": True, "young": False}:
        assert time.time() < end, one.boxes()
        one.reload()
        time.sleep(0.5)
    assert one.shows("#title") == "Grad-CAM: long"
    assert one.shows("#now") == "epoch 1"
    one.tick("young")
    assert one.shows("#title") == "Grad-CAM: long and young"


@pytest.mark.slow
def test_the_slider_may_be_moved_while_a_new_page_is_made_ready(tab):
    folder = logged("logs/run", *THREE)
    one = tab("--logdir=logs").open()
    grow(folder)
    one.in_bar()
    one.browser.execute_async_script(
        "const page = document.querySelector('iframe').contentDocument;"
        "const [done] = arguments;"
        "const move = () => {"
        "  if (!document.querySelector('iframe.behind')) return setTimeout(move, 1);"
        "  page.getElementById('time').value = 0;"
        "  page.getElementById('time').dispatchEvent(new Event('input'));"
        "  done();"
        "};"
        "dispatchEvent(new Event('resize'));"
        "move();"
    )
    one.in_page()
    assert one.browser.find_element("id", "time").get_attribute("max") == "3"
    assert one.shows("#now") == "epoch 0"


@pytest.mark.slow
def test_there_is_no_tab_until_a_run_with_a_record_starts(tab):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter("logs/other") as writer:
        writer.add_scalar("loss", 1.0, 0)
    one = tab("--logdir=logs")
    one.wait_for_start()
    one.browser.get(one.address)
    wait_for(one.browser, "document.body.innerText.toLowerCase().includes('scalars')")
    assert not one.is_enabled()
    assert "GRAD-CAM" not in text(one.browser, "body")
    logged("logs/run", *OBSERVATIONS)
    one.wait_for_data()
    one.reload()
    wait_for(one.browser, "document.body.innerText.toUpperCase().includes('GRAD-CAM')")
    assert one.open().shows("#title") == "Grad-CAM: run"


@pytest.mark.slow
def test_the_address_holds_what_is_seen(tab):
    for name in ("a&run=b", "strong", "weak"):
        logged(f"logs/{name}", *THREE)
    one = tab("--logdir=logs").open()
    assert one.where() == "#lightning_gradcam"
    one.tick("weak")
    choose(one.browser, "time", 0)
    choose(one.browser, "sort", "drift")
    fragment = one.where()
    # Another of TensorBoard's tabs and back, and in a browser that opens the link.
    one.browser.execute_script("location.hash = location.hash.replace('#lightning_gradcam', '#scalars')")
    wait_for(one.browser, "location.hash.startsWith('#scalars')")
    one.browser.execute_script("location.hash = location.hash.replace('#scalars', '#lightning_gradcam')")
    assert one.where() == fragment
    one.open(fragment.removeprefix("#lightning_gradcam"))
    assert one.boxes() == {"a&run=b": True, "strong": True, "weak": False}
    assert one.shows("#now") == "epoch 0"
    assert one.browser.find_element("id", "sort").get_attribute("value") == "drift"
    # A link that is opened in the same window.
    one.browser.switch_to.default_content()
    one.browser.execute_script("location.hash = location.hash.replace('at%3D0', 'at%3D1')")
    one.wait_until("#now", "epoch 1")
    choose(one.browser, "sort", "order")
    choose(one.browser, "time", 2)
    assert "page=" not in one.where()
    one.open("&p.lightning_gradcam.runs=run%3Dnone%26run%3Dweak&p.lightning_gradcam.page=at%3Dx%26sort%3D%2525")
    assert one.boxes() == {"a&run=b": False, "strong": False, "weak": True}
    assert text(one.browser, "#status") == "Not here, or not yet: none"
    assert one.shows("#now") == "epoch 2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["--logdir=logs", "--load_fast=false", "--path_prefix=/x"], "run"),
        (["--logdir_spec=named:logs"], "named/run"),
        (["--logdir=logs", "--load_fast=true"], "run"),
    ],
    ids=["slow loader", "logdir_spec", "fast loader"],
)
def test_ways_to_start_tensorboard(arguments, run, tab):
    logged("old/run", *THREE)
    shutil.move("old", "logs")
    assert tab(*arguments).open().shows("#title") == f"Grad-CAM: {run}"


@pytest.mark.slow
def test_runs_that_cannot_be_shown_say_why_and_leave_the_others(tab):
    names = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\"b'c&run=d#e", "猫 🐈", "..%2f.."]
    for name in names:
        logged(f"logs/{name}", *THREE)
    other = {"fingerprint": {"identity": "other", "pixels": "p", "length": 12}, "started": "1999"}
    logged("logs/other", *THREE, **other)
    shutil.rmtree(logged("logs/deleted", *THREE))
    damaged = logged("logs/damaged", *THREE, started="9999")
    next(damaged.glob("observation=000001*")).write_bytes(b"PK")
    one = tab("--logdir=logs").open()
    time.sleep(1)  # the page of a run that turned out to be damaged is followed by one without it
    one.in_page()
    assert "damaged" not in one.shows("#title")
    boxes = one.boxes()
    assert set(boxes) == {*names, "other"}
    assert sum(boxes.values()) == 4
    shown = text(one.browser, "header")
    assert "damaged: ValueError: " in shown
    assert "deleted: FileNotFoundError: there is no record at" in shown
    assert ", on other samples: the datasets hold 9 and 12." in shown
    one.tick("other")
    assert [name for name, on in one.boxes().items() if on] == ["other"]
    assert one.shows("#title") == "Grad-CAM: other"
    for name in names:
        one.tick(name)
        one.browser.switch_to.default_content()
    assert one.shows("#title").startswith("Grad-CAM: ")
    assert len(one.browser.find_elements("css selector", "#cards > li:first-child canvas")) == len(names)


@pytest.mark.slow
def test_hundreds_of_runs_leave_the_page_its_place(tab):
    logged("one/run", *OBSERVATIONS)
    for number in range(300):
        shutil.copytree("one/run", f"logs/run{number}")
    one = tab("--logdir=logs")
    one.wait_for_data()
    time.sleep(3)  # TensorBoard finds them one after the other
    one.open()
    boxes = one.boxes()
    assert (len(boxes), sum(boxes.values())) == (300, 4)
    height = "return document.querySelector(arguments[0]).getBoundingClientRect().height"
    assert one.browser.execute_script(height, "header") < 0.15 * one.browser.execute_script(height, "main")


@pytest.mark.slow
def test_keys_and_focus(tab):
    from selenium.webdriver import Keys

    for name in ("weak", "strong"):
        logged(f"logs/{name}", *THREE)
    one = tab("--logdir=logs")
    one.browser.set_window_size(1400, 500)
    one.open()
    one.in_bar()
    first, second = one.browser.find_elements("css selector", "input")
    first.send_keys(Keys.ARROW_LEFT)
    assert one.shows("#now") == "epoch 1"
    one.in_bar()
    first.send_keys(Keys.TAB)
    assert one.browser.switch_to.active_element == second
    assert second.value_of_css_property("outline-style") == "solid"
    one.in_bar()
    one.browser.switch_to.active_element.send_keys(Keys.TAB)
    one.in_page()
    one.browser.find_element("id", "time").send_keys(Keys.ARROW_LEFT)
    grow("logs/weak/gradcam")
    grow("logs/strong/gradcam")
    one.browser.execute_script("scrollTo(0, 120)")
    # Without the button, which would take the focus.
    one.in_bar()
    one.browser.execute_script("dispatchEvent(new Event('resize'))")
    time.sleep(1)
    one.in_page()
    assert one.browser.find_element("id", "time").get_attribute("max") == "3"
    assert one.browser.execute_script("return document.activeElement.id") == "time"
    assert one.browser.execute_script("return document.documentElement.scrollTop") == 120
    assert one.shows("#now") == "epoch 0"


AXE = os.environ.get("AXE", "")


@pytest.mark.slow
@pytest.mark.skipif(not AXE, reason="the environment variable AXE names no axe.min.js")
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_in_the_way_of_assistive_technology(width, dark, tab):
    for name in ("weak", "strong"):
        logged(f"logs/{name}", *THREE)
    logged("logs/other", *THREE, fingerprint={"identity": "other", "pixels": "p", "length": 12}, started="1999")
    shutil.rmtree(logged("logs/deleted", *THREE))
    one = tab("--logdir=logs")
    one.browser.set_window_size(width, 844)
    one.open()
    one.browser.switch_to.default_content()
    if dark:
        one.browser.execute_script("document.body.classList.add('dark-mode')")
    for enter in (one.in_bar, one.in_page):
        enter()
        theme = one.browser.execute_script("return document.documentElement.dataset.theme")
        paper = one.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (theme, max(map(int, paper[4:-1].split(", "))) < 128) == ("dark" if dark else "light", dark)
        one.browser.execute_script(Path(AXE).read_text())
        found = one.browser.execute_async_script(
            "axe.run({iframes: false}).then((result) => arguments[0](result.violations))"
        )
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
