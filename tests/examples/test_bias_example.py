"""The example of biased and balanced data, as a user runs it; by `pytest -m slow`, since it takes a minute."""

import pytest
import torch
from tiny import events

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def example(imported):
    return imported("bias")


@pytest.fixture(scope="module")
def runs(example, tmp_path_factory):
    """Both runs of seed 0: by name the events of each, and what its accuracy and maps are for each group."""
    folder = tmp_path_factory.mktemp("bias")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for run in example.RUNS:
            example.seed_everything(0)
            model = example.Classifier()
            example.fit(model, run, example.make_logger("tensorboard", run), epochs=20)
            rows = {group: example.measure(model, digits) for group, digits in example.GROUPS.items()}
            found[run] = events(folder / "runs" / run), rows
    torch.set_num_threads(1)
    return found


def last(runs, run, key):
    return runs[run][0].Scalars(key)[-1].value


@pytest.mark.parametrize(("region", "wide"), [("tag", 0.1), ("digit", 0.2)])
def test_the_gap_between_groups_closes_with_the_data_balanced(runs, region, wide):
    gaps = {
        run: last(runs, run, f"gradcam/mass_{region}/0-4") - last(runs, run, f"gradcam/mass_{region}/5-9")
        for run in runs
    }
    assert gaps["biased"] * (1 if region == "tag" else -1) > wide
    assert abs(gaps["balanced"]) < abs(gaps["biased"]) / 3


def test_the_accuracy_in_validation_does_not_tell(runs):
    assert last(runs, "biased", "val/accuracy") > 0.9
    assert abs(last(runs, "biased", "val/accuracy") - last(runs, "balanced", "val/accuracy")) < 0.05


def test_balanced_data_make_the_tag_needless(runs):
    (_, biased), (_, balanced) = runs["biased"], runs["balanced"]
    for tag in ("no tag", "wrong tag"):
        assert biased["0-4"][tag] < 0.3
        assert min(balanced[group][tag] for group in balanced) > 0.9


def test_every_picture_of_the_grid_stands_in_a_row_of_its_group(example):
    labels = example.DigitsOnPhotos("right").labels
    assert [labels[index] for index in example.watched()] == [*range(10)] * 2
