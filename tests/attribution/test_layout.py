"""Outputs to maps: by hand, and against a transformer's own order of patches."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_gradcam import gradcam
from lightning_gradcam.attribution.layout import (
    Flattened,
    Tokens,
    as_layout,
    channels_first,
    channels_last,
    infer_layout,
    to_map,
)

IMAGE = (224, 160)


@pytest.mark.parametrize(
    ("shape", "seen", "expected"),
    [
        ((2, 8, 7, 5), [], (channels_first, (7, 5))),
        ((2, 7, 5, 8), [], (channels_last, (7, 5))),
        ((2, 5, 5, 5), [(5, 5)], (channels_first, (5, 5))),
        ((2, 8, 9, 9), [], None),  # no patch size gives 9 x 9
        ((2, 8, 9, 9), [(9, 9)], (channels_first, (9, 9))),  # but a convolution has
        ((2, 8, 1, 1), [(1, 1)], None),
        ((2, 140, 8), [], (Tokens((14, 10)), (14, 10))),
        ((2, 141, 8), [], None),  # how many are prefix?
        ((2, 141, 8), [(56, 40), (14, 10)], (Tokens((14, 10)), (14, 10))),
        ((2, 145, 8), [(14, 10), (7, 5)], (Tokens((14, 10)), (14, 10))),
        ((2, 49 + 8, 8), [(14, 10), (7, 7)], (Tokens((7, 7)), (7, 7))),
        ((2, 35, 8), [(14, 10)], (Tokens((7, 5)), (7, 5))),  # merged by two
        ((2, 4 + 5, 8), [(2, 2)], (Tokens((2, 2)), (2, 2))),  # and not 3 x 3
        ((2, 512, 140), [(14, 10)], None),  # channels, with cells behind them
        ((141, 2, 8), [(14, 10)], (Tokens((14, 10), 1), (14, 10))),
        ((3, 140, 8), [], None),  # another number of samples
        ((2, 16, 32, 64), [(16, 32)], (channels_last, (16, 32))),
        ((2, 8), [], None),
        ((2, 8, 3, 7, 5), [(7, 5)], None),
    ],
)
def test_infers(shape, seen, expected):
    assert infer_layout(shape, 2, IMAGE, seen) == expected


def test_padded_images_have_a_last_patch_in_part():
    assert infer_layout((2, 8, 4, 3), 2, (50, 33), []) == (channels_first, (4, 3))  # 50 / 16 and 33 / 16, rounded up
    assert infer_layout((2, 8, 3, 2), 2, (50, 33), []) == (channels_first, (3, 2))  # and down


def test_layouts_by_hand():
    cells = torch.arange(12.0).reshape(1, 2, 2, 3)  # 2 channels on 2 x 3 cells
    prefix = torch.full((1, 2, 2), -1.0)
    tokens = torch.cat([prefix, cells.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(Tokens((2, 3))(tokens), cells)
    assert torch.equal(channels_last(cells.permute(0, 2, 3, 1)), cells)
    for output in (cells, cells.permute(0, 2, 3, 1), tokens, tokens[:, 2:], cells.flatten(2)):
        assert torch.equal(as_layout((2, 3))(output), cells)
    assert torch.equal(Tokens((2, 3), 1)(tokens.transpose(0, 1)), cells)
    assert torch.equal(Tokens((2, 3), after=2)(torch.cat([tokens, prefix], 1)), cells)
    assert torch.equal(Flattened((2, 3))(cells.flatten(2)), cells)
    assert as_layout(channels_last) is channels_last


@pytest.mark.parametrize("grid", [3, (), (3, 0), (3, 2.5), "3x3", (2, 3, 4, 5)])
def test_refuses_what_is_no_grid(grid):
    with pytest.raises(ValueError, match=r"`grid` must be \(h, w\) in cells, .* or a function"):
        as_layout(grid)


def test_mismatch_shows_the_shapes():
    with pytest.raises(ValueError, match=r"`grid` \(4, 4\) does not fit the layer's output \(2, 9, 8\); expected"):
        as_layout((4, 4))(torch.rand(2, 9, 8))
    with pytest.raises(
        ValueError, match=r"`grid` \(2, 3\) fits the layer's output \(1, 7, 6\) in two ways, .* function"
    ):
        as_layout((2, 3))(torch.rand(1, 7, 6))
    with pytest.raises(ValueError, match=r"'fc' hands out \(2, 8\); expected maps or tokens of 2 samples .* `grid=\("):
        to_map("fc", torch.rand(2, 8), channels_first, 2)
    with pytest.raises(ValueError, match=r"'b' hands out \(2, 8, 9\), which the grid turns into \(2, 72\); expected"):
        to_map("b", torch.rand(2, 8, 9), lambda output: output.flatten(1), 2)
    with pytest.raises(ValueError, match=r"'b' hands out \(2, 8, 9\), which the grid turns into list; expected"):
        to_map("b", torch.rand(2, 8, 9), lambda output: output.tolist(), 2)


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_tokens_behind_a_prefix_by_formula(size):
    model = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=size, patch_size=16, depth=2, num_classes=5)
    nn.init.normal_(model.head.weight)
    model.eval().pos_drop = nn.Identity()
    images = torch.rand(2, 3, *size)
    ours = gradcam(model, images, "pos_drop", 1)  # (n, 1 + 4 + h * w, c): class token and four registers
    assert ours.shape == (2, size[0] // 16, size[1] // 16)
    embedded = {}
    handle = model.pos_drop.register_forward_hook(lambda module, args, output: embedded.update(tokens=output))
    with torch.enable_grad():
        score = model(images)[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, embedded["tokens"])
    weights = gradient[:, 5:].mean(1, keepdim=True)
    expected = (weights * embedded["tokens"][:, 5:]).sum(2).reshape(ours.shape)
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-4, atol=1e-6)


def test_channels_last_equals_the_same_tensor_channels_first():
    model = torchvision.models.SwinTransformer([4, 4], 24, [1, 2], [2, 4], [4, 4], num_classes=5).eval()
    images = torch.rand(2, 3, 64, 96)
    last, first = (gradcam(model, images, layer, 1) for layer in ("norm", "permute"))
    assert last.shape == (2, 8, 12)
    torch.testing.assert_close(last, first, rtol=1e-5, atol=1e-7)


class Mixed(nn.Module):
    """Hands its map on in an order of cells that no shape tells."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)
        self.turned = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        turned = self.turned(self.conv(images).relu().mT.flatten(2))  # (n, c, cells), column by column
        return self.head(turned.mean(2))


def test_a_function_reads_what_nothing_else_can():
    model, images = Mixed().eval(), torch.rand(3, 3, 32, 48)
    with pytest.raises(ValueError, match=r"'turned' hands out \(3, 4, 24\); expected maps or tokens of 3 samples"):
        gradcam(model, images, "turned", 1)
    found = gradcam(model, images, "turned", 1, grid=lambda output: output.unflatten(2, (6, 4)).mT)
    plain = gradcam(
        nn.Sequential(model.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head), images, "1", 1
    )
    torch.testing.assert_close(found, plain)


def test_an_explicit_grid():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(
        gradcam(model, images, "blocks.1.norm1", 1, grid=(4, 4)), gradcam(model, images, "blocks.1.norm1", 1)
    )
    assert gradcam(model, images, "blocks.1.norm1", 1, grid=(2, 8)).shape == (2, 2, 8)
    with pytest.raises(ValueError, match=r"`grid` \(5, 5\) does not fit the layer's output \(2, 17, 192\)"):
        gradcam(model, images, "blocks.1.norm1", 1, grid=(5, 5))
