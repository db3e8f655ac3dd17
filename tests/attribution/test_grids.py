"""What has a grid's number of cells and is none, cells among other tokens, and maps that are summed down."""

import logging

import pytest
import torch
import transformers
from tiny import Images, TinyModule, loader, trainer
from torch import nn

from lightning_gradcam import Batch, GradCAMCallback, gradcam
from lightning_gradcam.attribution.choice import NoMapError, choose_layer
from lightning_gradcam.attribution.functional import attribute, summed_down
from lightning_gradcam.attribution.grids import _own_share
from lightning_gradcam.attribution.layout import Flattened, Tokens
from lightning_gradcam.attribution.methods import gradcam as weighted
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import predicted

SMALL = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96}


def chosen(model, batch, forward, target):
    def look(model):
        return dict(choose_layer(model, batch, lambda batch: forward(model, batch), target).layouts)

    return StandIn(model).look(look)


def on_images(model, batch):
    return model(batch.images)


def second_class(output, batch):
    """Of all that a detector has found."""
    return output.logits[..., 1].sum(1)


def by_gradient(model, module, images, cells, target):
    """Grad-CAM of some of the tokens that a module hands out, ``(n, h * w)``."""
    kept = {}
    handle = module.register_forward_hook(lambda module, args, output: kept.update(tokens=output))
    with torch.enable_grad():
        score = target(model(images), None).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept["tokens"])
    return (gradient[:, cells].mean(1, keepdim=True) * kept["tokens"][:, cells]).sum(2).detach()


def detr(queries):
    body = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=body,
        d_model=16,
        num_queries=queries,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_labels=3,
    )
    torch.manual_seed(0)
    return transformers.DetrForObjectDetection(config).eval()


@pytest.mark.parametrize("queries", [16, 20, 100, 300])  # the encoder has 4 x 4 cells, its backbone 16 x 16 before
def test_object_queries_are_no_cells(queries):
    model, images = detr(queries), torch.rand(2, 3, 128, 128)
    assert chosen(model, Batch(images), on_images, second_class) == {"model.encoder.layers.0": Tokens((4, 4))}
    message = rf"'model.decoder.layers.0' hands out \(2, {queries}, 16\); .* where it lies in the image. Name another"
    with pytest.raises(ValueError, match=message) as error:
        gradcam(model, images, "model.decoder.layers.0", second_class)
    assert not isinstance(error.value, NoMapError)
    assert "such as 'model.input_projection'" in str(error.value)


@pytest.mark.parametrize("detections", [10, 100])
def test_cells_before_detection_tokens(detections):
    config = transformers.YolosConfig(
        image_size=[64, 96], patch_size=16, num_detection_tokens=detections, **SMALL, num_labels=3
    )
    torch.manual_seed(0)
    model, images = transformers.YolosForObjectDetection(config).eval(), torch.rand(2, 3, 64, 96)
    layout = Tokens((4, 6), after=detections)
    name = "vit.encoder.layer.1.layernorm_before"
    assert chosen(model, Batch(images), on_images, second_class) == {name: layout}
    found = gradcam(model, images, target=second_class)
    expected = by_gradient(model, model.get_submodule(name), images, slice(1, 25), second_class)
    torch.testing.assert_close(found.flatten(1), expected)
    assert torch.equal(found, gradcam(model, images, name, second_class))


@pytest.mark.parametrize(("before", "after"), [(3, 4), (12, 2), (1, 40)])
def test_cells_among_words(before, after):
    text = transformers.LlamaConfig(vocab_size=100, **SMALL, num_key_value_heads=3)
    sight = transformers.CLIPVisionConfig(image_size=64, patch_size=16, projection_dim=32, **SMALL)
    config = transformers.LlavaConfig(vision_config=sight, text_config=text, image_token_id=99, vision_feature_layer=-1)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    words = torch.tensor([*range(1, 1 + before), *[99] * 16, *range(50, 50 + after)]).expand(2, -1).contiguous()
    batch = Batch(torch.rand(2, 3, 64, 64), inputs=words)
    found = chosen(
        model,
        batch,
        lambda model, batch: model(pixel_values=batch.images, input_ids=batch.inputs),
        lambda output, batch: output.logits[:, -1, 3],
    )
    assert found == {"model.language_model.layers.1.input_layernorm": Tokens((4, 4), after=after)}


class Flat(nn.Module):
    """A flattened map, as ``turn`` makes it of the map of a convolution."""

    def __init__(self, channels=8, turn=lambda features: features.flatten(2), stem=16):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1), nn.ReLU(), nn.Conv2d(stem, channels, 3, 2, 1))
        self.flat, self.fc, self.turn = nn.Identity(), nn.Linear(channels, 5), turn

    def forward(self, images):
        return self.fc(self.flat(self.turn(self.features(images))).mean(2))


@pytest.mark.parametrize("channels", [8, 32, 49, 50, 64, 196, 256])  # 7 x 7, 14 x 14 and more cells among them
def test_channels_are_no_cells(channels):
    torch.manual_seed(0)
    model, images = Flat(channels).eval(), torch.rand(2, 3, 28, 28)
    found = gradcam(model, images, "flat", 1)
    assert found.shape == (2, 7, 7)
    torch.testing.assert_close(found, gradcam(model, images, "features.2", 1))
    torch.testing.assert_close(found, gradcam(model, images, "flat", 1, grid=Flattened((7, 7))))


def test_cells_in_an_order_of_their_own_are_refused():
    torch.manual_seed(0)
    model, images = Flat(turn=lambda features: features.mT.flatten(2)).eval(), torch.rand(2, 3, 28, 28)
    with pytest.raises(ValueError, match=r"'flat' hands out \(2, 8, 49\); .* such as 'features'"):
        gradcam(model, images, "flat", 1)
    mixed = Flat(turn=lambda features: features.flatten(2) @ torch.full((49, 49), 1 / 49)).eval()
    with pytest.raises(ValueError, match=r"'flat' hands out \(2, 8, 49\); .* such as 'features'"):
        gradcam(mixed, images, "flat", 1)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 28, 28), torch.ones(1, 3, 28, 28), torch.rand(7, 3, 28, 28)])
def test_flat_images_and_any_number_of_them(images):
    torch.manual_seed(0)
    model = Flat().eval()
    torch.testing.assert_close(gradcam(model, images, "flat", 1), gradcam(model, images, "features.2", 1))


def test_a_model_that_takes_one_number_of_images_only():
    class Seven(Flat):
        def forward(self, images):
            return super().forward(images.reshape(7, 3, 28, 28))

    torch.manual_seed(0)
    model, images = Seven().eval(), torch.rand(7, 3, 28, 28)
    torch.testing.assert_close(gradcam(model, images, "flat", 1), gradcam(model, images, "features.2", 1))


@pytest.mark.parametrize("given", ["as inputs", "unseen"])
def test_images_that_reach_the_model_in_another_way(given):
    torch.manual_seed(0)
    model, images = Flat().eval(), torch.rand(2, 3, 28, 28)
    batch = Batch(torch.rand(2, 3, 28, 28), inputs=images)

    def look(model):
        def forward(batch):
            return model(batch.inputs if given == "as inputs" else images[:1].expand(len(batch.images), -1, -1, -1))

        return attribute(model, batch, {"flat": None}, forward, Question(predicted), weighted)

    assert StandIn(model).look(look).layouts == {"flat": Flattened((7, 7))}


def test_share_of_the_own_quarter_by_hand():
    """Four cells behind one other token: each quarter moves its own cell by 3 and all else by 1."""
    moved = torch.ones(4, 5, 1)
    for quarter in range(4):
        moved[quarter, 1 + quarter] = 3
    share, certain = _own_share(torch.cat([torch.zeros(1, 5, 1), moved]), (2, 2))
    # With the other token as first cell: 1/4 of what moves it is due to quarter 0, and 1/6 of what moves the cells
    # of quarters 0, 1 and 2 to 1, 2 and 3. Behind it: 3 / (3 + 1 + 1 + 1).
    assert share.tolist() == pytest.approx([(1 / 4 + 3 / 6) / 4, 1 / 2])
    assert certain.tolist() == [False, True]


def test_sums_stay_where_maps_are_summed_down():
    maps = torch.arange(24.0).reshape(1, 4, 6) - 7
    expected = maps.reshape(1, 2, 2, 2, 3).sum((2, 4))
    assert torch.equal(summed_down(maps[..., :4], 2), maps[..., :4].reshape(1, 2, 2, 2, 2).sum((2, 4)))
    assert torch.equal(summed_down(maps, 2), expected)
    assert torch.equal(summed_down(maps, 6), maps)
    assert torch.equal(summed_down(maps, None), maps)
    # Three cells to two: the middle one is halved. Five to three: 1 + 2/3, 1/3 + 1 + 1/3, 2/3 + 1.
    assert summed_down(torch.tensor([[[1.0, 2.0, 4.0]]]), 2).tolist() == [[[2, 5]]]
    five = torch.tensor([[[3.0, 6.0, 9.0, -12.0, 30.0]]])
    torch.testing.assert_close(summed_down(five, 3), torch.tensor([[[7.0, 2 + 9 - 4, -8 + 30.0]]]))
    many = torch.randn(3, 45, 70, dtype=torch.float64)
    small = summed_down(many, 32)
    assert small.shape == (3, 32, 32)
    torch.testing.assert_close(small.sum((1, 2)), many.sum((1, 2)))


@pytest.mark.parametrize("at_once", [None, 2])
def test_a_fine_layer_keeps_its_places_and_its_sum(at_once):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model.append(nn.Linear(4, 2))
    images = torch.rand(3, 3, 48, 80)

    def look(model):
        forward = lambda batch: model(batch.images)  # noqa: E731
        return attribute(model, Batch(images), {"1": None}, forward, Question(predicted), weighted, at_once, 8)

    seen, full = StandIn(model).look(look), gradcam(model, images, "1")
    assert full.shape == (3, 48, 80)
    assert seen.grids == {"1": (48, 80)}
    torch.testing.assert_close(seen.maps["1"], full.reshape(3, 8, 6, 8, 10).sum((2, 4)))


def test_a_run_on_a_fine_layer_keeps_small_maps_and_says_so_once(caplog, tmp_path):
    class Fine(TinyModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.net.append(nn.Linear(4, 3))

    data, callback = Images(16, size=96), GradCAMCallback(record=tmp_path / "record")
    with caplog.at_level(logging.INFO):
        trainer(callback).fit(Fine(), loader(data), loader(data))
    said = [record.getMessage() for record in caplog.records if "summed down" in record.getMessage()]
    (text,) = said
    assert text.startswith("GradCAMCallback: `net.1` has 96 x 96 cells; its maps are summed down to at most 32 a side")
    sizes = [file.stat().st_size for file in (tmp_path / "record").glob("observation*")]
    assert len(sizes) == 3
    assert max(sizes) < 100_000
