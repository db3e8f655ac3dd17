"""The published protocols in a run."""

import sys

import pytest
import torch
from tiny import TinyModule, boxed, loader, trainer

from lightning_gradcam import Batch, GradCAMCallback, Record, TopTarget, compare


def half(activations, gradients):
    """The upper half of every map."""
    cells = torch.zeros(len(activations), *activations.shape[2:])
    cells[:, : cells.shape[1] // 2] = 1
    return cells


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("label", {"localization_error_known": 0}),
        ("predicted", {"classification_error_top1": 2 / 3, "localization_error_top1": 2 / 3}),
        (
            TopTarget(2),
            {
                "classification_error_top1": 2 / 3,
                "localization_error_top1": 2 / 3,
                "classification_error_top2": 1 / 3,
                "localization_error_top2": 1 / 3,
            },
        ),
    ],
)
def test_a_run_logs_the_protocols(target, expected):
    module = TinyModule()
    with torch.no_grad():
        module.net[8].weight.zero_()
        module.net[8].bias.copy_(torch.tensor([3.0, 2, 1]))  # it says 0, then 1, to each of the labels 0, 1, 2
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    callback = GradCAMCallback(
        "net.4", samples=6, target=target, method=half, batch_fn=boxed, localization="object", record=False
    )
    run = trainer(callback, max_epochs=1)
    run.fit(module, loader(), loader())
    found = {key.removeprefix("gradcam/"): value.item() for key, value in run.callback_metrics.items()}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value)
    assert found["max_box_acc_v2"] == 1
    for key in ("pxap", "roc_auc", "rank_accuracy"):
        assert found[key] == pytest.approx(1, abs=0.02)
    assert {key for key in found if "_error_" in key} == expected.keys()


def test_a_run_logs_them_for_every_group_and_of_the_same_part_of_a_soft_mask():
    def soft(batch):
        images, labels = batch
        masks = torch.full((len(images), 16, 16), 0.1)  # as a mask that was scaled has it outside
        masks[:, :8] = 0.9
        return Batch(images, labels, {"object": masks}, groups=["one", "two"] * 3)

    found = []
    for batch_fn in (soft, lambda batch: Batch(*batch, boxed(batch).regions, groups=["one", "two"] * 3)):
        callback = GradCAMCallback(
            "net.4", samples=6, target=TopTarget(2), batch_fn=batch_fn, localization="object", record=False
        )
        run = trainer(callback, max_epochs=1)
        torch.manual_seed(0)
        run.fit(TinyModule(), loader(), loader())
        found.append(
            {key: float(value) for key, value in run.callback_metrics.items() if "/one" in key or "/two" in key}
        )
        kinds = {key.split("/")[1] for key in found[-1]}
        assert {"localization_error_top1", "classification_error_top2", "max_box_acc_v2", "pxap", "roc_auc"} <= kinds
    for key in found[0]:
        if "mass" not in key and "lift" not in key:  # which do weigh by the mask
            assert found[0][key] == found[1][key], key


def test_any_of_several_boxes_counts_and_the_region_is_their_union(tmp_path):
    def several(batch):
        images, labels = batch
        upper, corner, none = [0, 0, 16, 8], [12, 12, 16, 16], [0, 0, 0, 0]
        rows = [[corner, upper], [upper, none], [corner, none], [none, none], [none, upper], [upper, upper]]
        return Batch(images, labels, {"object": torch.tensor(rows, dtype=torch.float32)})

    callback = GradCAMCallback(
        "net.4", samples=6, method=half, batch_fn=several, localization="object", record=tmp_path / "seen"
    )
    run = trainer(callback, max_epochs=1)
    run.fit(TinyModule(), loader(), loader())
    found = {key.removeprefix("gradcam/"): value.item() for key, value in run.callback_metrics.items()}
    assert found["localization_error_known"] == pytest.approx(1 / 5)
    assert found["max_box_acc_v2"] == pytest.approx(4 / 5)
    assert found["mass_object"] == pytest.approx(4 / 5)
    record = Record.open(tmp_path / "seen")
    assert record.regions["object"].shape == (6, 2, 4)
    (compared,) = compare(record).runs
    assert compared.values["mass_object"][-1].tolist() == pytest.approx([1, 1, 0, float("nan"), 1, 1], nan_ok=True)


def test_a_region_that_is_not_there_is_refused_before_training():
    callback = GradCAMCallback(batch_fn=boxed, localization="cat")
    with pytest.raises(ValueError, match=r"`localization` names the region 'cat', the batch has \['object'\]"):
        trainer(callback).fit(TinyModule(), loader(), loader())
    with pytest.raises(TypeError, match="`localization` must be the name of a region, got bool"):
        GradCAMCallback(localization=True)


def test_without_scipy_it_is_asked_for_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)  # an import of it fails
    run = trainer(GradCAMCallback(batch_fn=boxed, localization="object"))
    with pytest.raises(ImportError, match=r'scipy, which is not installed: pip install "lightning-gradcam\[localiz'):
        run.fit(TinyModule(), loader(), loader())
    assert run.global_step == 0
