import json
import os
import random
import shutil

import numpy as np
import pytest
import pytorch_lightning  # noqa: F401  # before the package, which takes the distribution that is imported already
import torch

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch, caplog):
    """Each test has a folder, a seed, and gradients on; none leaves them otherwise, or has our warnings unexpected."""
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
    from lightning_gradcam import compare
    from lightning_gradcam.report import write_page

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


def wait_for(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda one: one.execute_script(f"return {condition}"))
