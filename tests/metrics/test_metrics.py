"""Numbers worked out by hand."""

import numpy as np
import pytest
import torch

from lightning_gradcam.attribution.regions import box_masks
from lightning_gradcam.metrics.evidence import empty, explain_empty_maps, strength
from lightning_gradcam.metrics.localization import mass


def test_strength_and_empty():
    maps = torch.tensor([[[1.0, -3.0], [0.0, 0.5]], [[0.0, -1.0], [-2.0, 0.0]], [[0.0, 0.0], [torch.nan, 0.0]]])
    assert strength(maps)[:2].tolist() == [-1.5, -3]
    assert empty(maps).tolist() == [False, True, False]


def test_mass_by_hand():
    maps = torch.tensor([[[3.0, -5.0], [1.0, 4.0]]])
    left = box_masks(torch.tensor([[0, 0, 4, 8]]), (8, 8))
    assert mass(maps, left).tolist() == [0.5]  # 3 + 1 of 8
    # The box covers a quarter of the upper left cell: 3 / 4 of 8.
    quarter = box_masks(torch.tensor([[0, 0, 2, 2]]), (8, 8))
    assert mass(maps, quarter).item() == pytest.approx(0.75 / 8)


def test_mass_against_numpy_at_full_resolution():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(5, 4, 4)).astype(np.float32)
    masks = (generator.random((5, 32, 32)) > 0.7).astype(np.float32)
    positive = np.maximum(maps, 0).repeat(8, 1).repeat(8, 2)
    expected = (positive * masks).sum((1, 2)) / positive.sum((1, 2))
    torch.testing.assert_close(mass(torch.from_numpy(maps), torch.from_numpy(masks)), torch.from_numpy(expected))


def test_mass_of_everything_and_its_invariance():
    maps = torch.rand(4, 5, 7)
    masks = (torch.rand(4, 50, 70) > 0.5).float()
    torch.testing.assert_close(mass(maps, torch.ones(4, 50, 70)), torch.ones(4))
    torch.testing.assert_close(mass(maps, masks) + mass(maps, 1 - masks), torch.ones(4))
    torch.testing.assert_close(mass(9 * maps, masks), mass(maps, masks))


def test_mass_is_undefined_without_map_or_region():
    maps, masks = torch.tensor([[[-1.0, 0.0]], [[1.0, 2.0]]]), torch.zeros(2, 4, 4)
    masks[0] = 1
    assert mass(maps, masks).isnan().all()


def test_complaints():
    fine = torch.tensor([[1.0, -1.0]])
    assert explain_empty_maps(torch.stack([fine])) == {}
    maps = torch.stack([fine, fine * torch.nan, fine * 0, -fine.abs(), fine.abs()])
    said = explain_empty_maps(maps)
    assert set(said) == {"not finite", "zero", "negative", "constant"}
    assert all(text.startswith("the maps of 1 of 5 samples are") for text in said.values())
