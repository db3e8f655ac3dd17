"""The example, as a user runs it; by `pytest -m slow`, since it takes a minute or two."""

import warnings
from functools import partial

import pytest
import torch
from tiny import canvases, events

from lightning_gradcam import Drift, GradCAMCallback, compare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def example(imported):
    return imported("digits_on_photos")


@pytest.fixture(scope="module")
def runs(example, tmp_path_factory):
    """The three runs of seed 0 with an alert set: their folder, and of each the alerts and what the log says once."""
    folder = tmp_path_factory.mktemp("example")
    alerts, lines = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(example, "GradCAMCallback", partial(GradCAMCallback, drift=Drift(alert_above=0.2)))
        for run in example.TRAINING_TAG:
            lines[run] = []
            patch.setattr("lightning_gradcam.run.outlets.rank_zero_info", lines[run].append)
            example.seed_everything(0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                example.fit(example.Classifier(), run, example.make_logger("tensorboard", run), epochs=15)
            alerts[run] = [str(warning.message) for warning in caught if "moved: median drift" in str(warning.message)]
    torch.set_num_threads(1)
    return folder / "runs", alerts, lines


def test_two_seeds_of_a_training_agree_more_than_weak_and_strong(example, runs):
    folder, *_ = runs
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        example.seed_everything(1)
        example.fit(example.Classifier(), "strong", example.make_logger("tensorboard", "strong_again"), epochs=15)
    torch.set_num_threads(1)
    agree = {
        other: compare(folder / "strong", folder / other).table()[-1][f"{other}/agreement"]
        for other in ("strong_again", "weak")
    }
    assert agree["strong_again"] > 2 * agree["weak"]


def test_the_table_is_of_the_records(runs):
    folder, *_ = runs
    found = compare(folder / "weak", folder / "strong", samples="all")
    for run in ("weak", "strong"):
        logged = [scalar.value for scalar in events(folder / run).Scalars("gradcam/mass_tag")]
        assert [row[f"{run}/mass_tag"] for row in found.table()] == pytest.approx(logged, rel=1e-5)


def test_the_page_of_the_two_runs(runs, opened):
    from selenium.webdriver import Keys

    folder, *_ = runs
    page = opened(folder / "weak", folder / "strong")
    slider = page.find_element("id", "time")
    seen = [canvases(page)]
    for _ in range(3):
        slider.send_keys(Keys.ARROW_LEFT)
        seen.append(canvases(page))
    assert [[len(card) for card in one] for one in seen] == [[2] * 16] * 4
    for i in range(3):
        assert all(one[0] != two[0] for one, two in zip(seen[i], seen[i + 1], strict=True))
    assert page.find_element("id", "now").text == "epoch 11"


def last(folder, run, key):
    return events(folder / run).Scalars(f"gradcam/{key}")[-1].value


def test_the_maps_tell_weak_from_strong(runs):
    folder, *_ = runs
    assert last(folder, "weak", "mass_tag") >= 5 * last(folder, "strong", "mass_tag")
    assert last(folder, "weak", "mass_digit") <= last(folder, "strong", "mass_digit") / 3


def test_the_gaze_comes_back(runs):
    folder, *_ = runs
    mass = [scalar.value for scalar in events(folder / "recovered").Scalars("gradcam/mass_digit")]
    assert mass[-1] > 3 * mass[7]
    assert last(folder, "recovered", "mass_tag") < last(folder, "weak", "mass_tag") / 3


def test_the_alert_comes_when_the_tag_goes_and_only_then(runs):
    _, alerts, _ = runs
    assert alerts["weak"] == []
    assert alerts["strong"] == []
    assert len(alerts["recovered"]) == 1
    assert "in epoch 8" in alerts["recovered"][0] or "in epoch 9" in alerts["recovered"][0]


def test_the_shortcut_is_named_without_a_region(runs):
    folder, _, lines = runs
    assert last(folder, "weak", "positional_bias") >= 0.9
    assert last(folder, "strong", "positional_bias") <= 0.6
    (line,) = (one for one in lines["weak"] if "lie at one place" in one)
    assert "of 16" in line
    assert "have the cell lower left, " in line  # where the tag is
    assert not any("lie at one place" in one for one in lines["strong"])
