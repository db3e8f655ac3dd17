"""Records and comparisons show their page where a notebook ends a cell with them."""

import html
from pathlib import Path

import numpy as np
import pytest
from records import LEFT, RIGHT, write, write_maps
from tiny import wait_for

from lightning_gradcam import Record, compare
from lightning_gradcam.record.page import page


def test_a_record_and_a_comparison_show_their_page():
    write("weak", [[LEFT, LEFT], [LEFT, RIGHT]])
    write("strong", [[LEFT, LEFT], [RIGHT, RIGHT]])
    record, both = Record.open("weak"), compare("weak", "strong")
    for shown, comparison in ((record, compare(record)), (both, both)):
        frame = shown._repr_html_()
        address, _, end = frame.partition('srcdoc="')[2].partition('"')
        assert html.unescape(address) == page(comparison)
        assert end == "></iframe>"


def test_a_run_without_a_right_sample_is_shown():
    write("weak", [[LEFT, LEFT]], right=[[0, 0]])
    assert "numbers are of all samples" in Record.open("weak")._repr_html_()


def runs(n, size, number):
    photos, maps = np.zeros((n, *size), np.uint8), np.random.default_rng(0).random((2, n, 4, 4))
    regions = {name: np.array([[0, 0, 4, 4]] * n) for name in ("tag", "object")}
    return [write_maps(f"run{i}", maps, photos, regions) for i in range(number)]


@pytest.mark.parametrize(
    ("n", "size", "number"),
    [(2, (8, 8), 1), (16, (8, 8), 1), (16, (8, 8), 2), (5, (12, 6), 3), (4, (6, 12), 1), (16, (8, 8), 4)],
)
def test_the_frame_is_as_high_as_its_page(browser, n, size, number):
    given = runs(n, size, number)
    given = [{"weak": given[:2], "strong": given[2:]}] if number == 4 else given
    frame = compare(*given)._repr_html_().replace("80vh", "9000px")
    document = f'<!doctype html><body style="margin: 0; width: 900px">{frame}'
    path = Path("notebook.html").resolve()
    path.write_text(document, encoding="utf-8")
    browser.get_log("browser")
    browser.get(path.as_uri())
    browser.switch_to.frame(0)
    wait_for(browser, "document.body.dataset.ready === 'yes'")
    needed, given = browser.execute_script("return [document.body.scrollHeight, window.innerHeight]")
    browser.switch_to.default_content()
    assert needed <= given <= 1.35 * needed + 60
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
