import json
import os
import random
import shutil

import pytest

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"


def pytest_xdist_auto_num_workers(config):
    """All tests take a process a core; those that a path, `-k` or `-m` has chosen take one, which `-s` works in."""
    chosen = config.args_source is not config.ArgsSource.TESTPATHS or config.option.keyword
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if chosen or config.option.markexpr != "not slow" or cores < 2 else min(cores, 4)


def pytest_collectstart():
    """Import Lightning before the package, which takes the distribution that is there, and only where tests run."""
    import pytorch_lightning  # noqa: F401
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch, caplog):
    """Each test has a folder, a seed, and gradients on; none leaves them otherwise, or has our warnings unexpected."""
    import numpy as np
    import torch

    monkeypatch.chdir(tmp_path)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not [record for record in caplog.get_records("call") if record.name == "lightning_gradcam"]


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; tests that need one are skipped where there is none."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no chromium with its chromedriver on this machine")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1100", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser):
    """Open a page; at the end of the test nothing has been asked of a network, and nothing complained of."""
    from tiny import wait_for

    from lightning_gradcam import compare
    from lightning_gradcam.record.page import write_page

    browser.get_log("performance")
    browser.get_log("browser")
    addresses = []

    def open_page(*runs, **options):
        path = write_page(compare(*runs, **options), "page.html").resolve()
        addresses.append(path.as_uri())
        browser.get(addresses[-1])
        wait_for(browser, "document.body.dataset.ready === 'yes'")
        return browser

    yield open_page
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    assert addresses[0] in asked
    assert [one for one in asked if one not in addresses and not one.startswith("data:image/jpeg")] == []
    assert browser.get_log("browser") == []


@pytest.fixture
def drawn(monkeypatch):
    """The pictures that were handed out: key, step and picture."""
    found = []
    monkeypatch.setattr(
        "lightning_gradcam.run.outlets.find_destinations",
        lambda *_: [lambda key, picture, step: found.append((key, step, picture))],
    )
    return found


@pytest.fixture(scope="session")
def deeplab():
    import torch
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    torch.manual_seed(0)
    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()


@pytest.fixture(scope="session")
def detector():
    import torch
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 3, "box_score_thresh": 0.0}
    return fasterrcnn_mobilenet_v3_large_320_fpn(**options, min_size=64, max_size=64).eval()
