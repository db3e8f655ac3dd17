"""What a record and a page weigh, and how long they take to open.

python benchmarks/record.py    # some seconds
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from lightning_gradcam import Record, compare
from lightning_gradcam.record.page import write_page
from lightning_gradcam.record.writer import Writer, sample_rows

SAMPLES = 16


def record(folder: Path, observations: int, cells: int) -> Record:
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 255, (SAMPLES, 28, 28)).astype(np.uint8).repeat(8, 1).repeat(8, 2)  # 224 x 224
    about = {
        "name": folder.name,
        "settings": {"layers": {"gradcam": "layer4"}},
        "fingerprint": {"identity": "x"},
        "ids": list(range(SAMPLES)),
        "labels": [0] * SAMPLES,
        "class_names": None,
    }
    writer = Writer(folder, about, photos, {"object": np.array([[0, 0, 112, 112]] * SAMPLES)})
    keys = [f"gradcam/number_{i}" for i in range(16)]
    for epoch in range(observations):
        maps = rng.normal(size=(SAMPLES, cells, cells)).astype(np.float32)
        ones = np.ones(SAMPLES, int)
        rows = sample_rows(np.zeros(SAMPLES), np.full((SAMPLES, 1000), 1e-3), ones, ones, ones)
        writer.write(epoch, 100 * epoch, {"gradcam": maps}, rows, dict(zip(keys, rng.random(16).tolist(), strict=True)))
    started = perf_counter()
    opened = Record.open(folder)
    seconds = perf_counter() - started
    largest = max(file.stat().st_size for file in folder.glob("observation=*.npz"))
    print(
        f"{observations:5} observations of {SAMPLES} samples at {cells}x{cells}: {largest / 1000:.1f} kB each, "
        f"opened in {seconds:.2f} s"
    )
    return opened


def browse(page: Path) -> None:
    """How long a browser takes from the start of loading to the first picture."""
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver_path):
        return
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1100"):
        options.add_argument(f"--{flag}")
    driver = Chrome(options, Service(driver_path))
    driver.get(page.as_uri())
    WebDriverWait(driver, 20, 0.01).until(lambda one: one.execute_script("return document.body.dataset.ready"))
    ready = driver.execute_script("return performance.getEntriesByName('ready')[0].startTime")
    moved = driver.execute_script(
        "const one = document.getElementById('time'), start = performance.now();"
        "one.value = 3; one.dispatchEvent(new Event('input')); return performance.now() - start"
    )
    driver.quit()
    print(f"in a browser: ready after {ready / 1000:.2f} s, {moved:.0f} ms for a move of the slider")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    many, some = (5, 4) if parser.parse_args().quick else (1000, 50)
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder, "long"), many, 7)
        for cells in (7, 14):
            runs = [record(Path(folder, f"{name}{cells}"), some, cells) for name in ("weak", "strong")]
            started = perf_counter()
            page = write_page(compare(*runs), Path(folder, "page.html"))
            seconds = perf_counter() - started
            print(
                f"a page of two of these: {page.stat().st_size / 1e6:.2f} MB, compared and written in {seconds:.2f} s"
            )
        browse(page)


if __name__ == "__main__":
    main()
