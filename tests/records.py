"""Records written by hand, most of two samples, and what is read in their pages."""

import json
from pathlib import Path

import numpy as np

from lightning_gradcam.record.writer import Writer, sample_rows

LEFT, RIGHT, BOTH = (np.array(cells, np.float32) for cells in ([[1, -9], [1, -9]], [[0, 2], [0, 2]], [[1, 1], [1, 1]]))
IDENTITY = {"identity": "same", "pixels": "p", "length": 9}


def about(**options):
    settings = {"layers": {"gradcam": "net.5"}}
    ids = {"ids": [0, 1], "labels": [0, 1], "class_names": None}
    return {"name": "run", "settings": settings, "fingerprint": {"identity": "x"}} | ids | options


def written(folder, observations=3):
    """A record whose maps and drift say which observation they are of."""
    writer = Writer(Path(folder), about(), np.zeros((2, 16, 16), np.uint8), {})
    for epoch in range(observations):
        maps = {"gradcam": np.full((2, 4, 4), epoch, np.float32)}
        samples = sample_rows(np.zeros(2), None, None, None, None)
        writer.write(epoch, 10 * epoch, maps, samples, {"gradcam/drift": np.nan if epoch == 0 else epoch / 10})
    return writer


def write(folder, maps, steps=None, epochs=None, right=None, **options):
    """A record of two samples; ``maps`` by observation and sample."""
    steps = steps or [10 * (i + 1) for i in range(len(maps))]
    regions = {"left": np.array([[0, 0, 4, 8]] * 2), "top": np.ones((2, 8, 8), np.float32)}
    regions["top"][:, 4:] = 0
    card = about(
        **{
            "name": Path(folder).parts[0],
            "fingerprint": IDENTITY,
            "ids": [3, 5],
            "labels": [0, 1],
            "class_names": ["a", "b"],
        }
        | options
    )
    writer = Writer(Path(folder), card, np.full((2, 8, 8), 99, np.uint8), regions)
    for i, one in enumerate(maps):
        verdict = np.array([1, 1] if right is None else right[i])
        said = np.where(verdict == 1, [0, 1], [1, 0])
        asked = said if "target predicted" in card["settings"].get("question", "") else None
        rows = sample_rows(np.zeros(2), np.full((2, 2), 0.5), said, verdict, np.array([0, 1]), asked)
        epoch = i if epochs is None else epochs[i]
        writer.write(epoch, steps[i], {"gradcam": np.stack(one)}, rows, {"gradcam/strength": 0.0})
    return folder


def write_maps(folder, maps, photos, regions=None, **options):
    """A record of maps ``(t, n, *grid)`` of photos with as many axes."""
    n = len(photos)
    card = about(
        **{"name": Path(folder).parts[0], "fingerprint": IDENTITY, "ids": list(range(n)), "labels": [0] * n} | options
    )
    writer = Writer(Path(folder), card, photos, regions or {})
    for epoch, one in enumerate(maps):
        rows = sample_rows(np.zeros(n), np.full((n, 2), 0.5), np.zeros(n, int), np.ones(n), np.zeros(n))
        writer.write(epoch, epoch + 1, {"gradcam": np.asarray(one, np.float32)}, rows, {"gradcam/strength": 0.0})
    return writer.folder


# Pages


def data_of(text):
    """What a page holds."""
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def text(browser, selector):
    return browser.find_element("css selector", selector).text


def choose(browser, name, value):
    browser.execute_script(
        "const one = document.getElementById(arguments[0]);"
        "if (one.type === 'checkbox') one.checked = arguments[1]; else one.value = arguments[1];"
        "one.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def pixel(browser, card, x, y):
    """The colour of a place in a card's first canvas, given in shares of its sides."""
    return browser.execute_script(
        "const one = document.querySelectorAll('#cards canvas')[arguments[0]];"
        "const at = [arguments[1] * one.width, arguments[2] * one.height].map(Math.floor);"
        "const copy = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});"
        "copy.drawImage(one, -at[0], -at[1]);"
        "return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3)",
        card,
        x,
        y,
    )
