"""Names to modules, and the automatic choice on every kind of torchvision CNN."""

import fnmatch
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
import torchvision
import transformers
from tiny import Wrapper
from torch import nn

from lightning_gradcam import Batch, gradcam
from lightning_gradcam.attribution.choice import choose_layer, locate_layers
from lightning_gradcam.attribution.layers import check_layers, find_layer
from lightning_gradcam.attribution.layout import Tokens, channels_first
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import label, predicted


@pytest.fixture(scope="module")
def resnet():
    return Wrapper(torchvision.models.resnet18(weights=None))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("model.layer4", "model.layer4"),
        ("layer4", "model.layer4"),
        ("layer4[-1]", "model.layer4.1"),
        ("model.layer4[0].conv2", "model.layer4.0.conv2"),
        ("layer4.1.bn2", "model.layer4.1.bn2"),
    ],
)
def test_finds_by_name(resnet, layer, name):
    assert find_layer(resnet, layer) == (name, resnet.get_submodule(name))


def test_counts_the_children_of_a_container_with_names():
    blocks = nn.Sequential()
    for name in ("block_0", "block_1", "block_2"):
        blocks.add_module(name, nn.Sequential(nn.ReLU()))
    model = nn.ModuleDict({"blocks": blocks})
    assert find_layer(model, "blocks[-1]") == ("blocks.block_2", blocks[2])
    assert find_layer(model, "blocks[1][0]") == ("blocks.block_1.0", blocks[1][0])


def test_finds_a_module(resnet):
    assert find_layer(resnet, resnet.model.layer3) == ("model.layer3", resnet.model.layer3)


def test_finds_inside_a_compiled_model(resnet):
    compiled = Wrapper(torch.compile(resnet.model))
    assert find_layer(compiled, "model.layer4") == ("model.layer4", resnet.model.layer4)
    assert find_layer(compiled, "layer4[-1]") == ("model.layer4.1", resnet.model.layer4[1])
    assert find_layer(torch.compile(resnet), "layer4") == ("model.layer4", resnet.model.layer4)
    layer = nn.Sequential(torch.compile(resnet.model.layer4))
    assert find_layer(layer, layer[0]) == ("0", resnet.model.layer4)


def test_unknown_name_answers_with_the_three_closest(resnet):
    message = r"`target_layer` 'model.layer5' is not a layer of Wrapper; the closest names are '.*', '.*', '[^,]*'$"
    with pytest.raises(ValueError, match=message) as error:
        find_layer(resnet, "model.layer5")
    assert "'model.layer4'" in str(error.value)
    with pytest.raises(ValueError, match=r"'layer4.-7.' is not a layer of Wrapper"):
        find_layer(resnet, "layer4[-7]")


def test_foreign_module(resnet):
    with pytest.raises(ValueError, match="`target_layer` Conv2d is not a part of Wrapper; pass a module of the model"):
        find_layer(resnet, nn.Conv2d(1, 1, 1))


def test_ambiguous_name():
    model = nn.ModuleDict({"student": nn.Sequential(nn.ReLU()), "teacher": nn.Sequential(nn.ReLU())})
    with pytest.raises(ValueError, match=r"`target_layer` '0' may mean student.0 or teacher.0; give the full name"):
        find_layer(model, "0")


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (3, TypeError, "`target_layer` must be a name, a module or a sequence of these, got 3"),
        ("", TypeError, "`target_layer` must be a name, a module or a sequence of these, got ''"),
        (["layer4", 4], TypeError, "`target_layer` must be a name, a module or a sequence of these, got 4"),
        ([], ValueError, "`target_layer` must name at least one layer"),
        (["layer4", "layer4"], ValueError, "and none twice"),
    ],
)
def test_refuses_what_names_no_layer(layers, error, message):
    with pytest.raises(error, match=message):
        check_layers(layers)


# Small images, to save time, on which some networks have few cells.
few_cells = pytest.mark.filterwarnings("ignore:the . x . cells of .* tell little about places:UserWarning")

CNNS = {
    "alexnet": "features",
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_y_400mf": "trunk_output",
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "features",
    "vgg11": "features",
}


def choose(model, images, target=predicted):
    return choose_for(model, Batch(images), lambda model, batch: model(batch.images), target)


def choose_for(model, batch, forward, target):
    found = StandIn(model).look(lambda model: choose_layer(model, batch, partial(forward, model), target))
    ((name, layout),) = found.layouts.items()
    return name, layout, found.reason


@few_cells
@pytest.mark.parametrize("name", CNNS)
def test_chooses_in_every_kind_of_torchvision_cnn(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    images = torch.rand(2, 3, 160, 160) if name == "inception_v3" else torch.rand(2, 3, 96, 96)
    found, _, reason = choose(Wrapper(model), images)
    assert found == f"model.{CNNS[name]}"
    assert "the last layer that all paths from the image to the score cross" in reason
    assert torch.equal(gradcam(model, images, target=1), gradcam(model, images, CNNS[name], target=1))


EXPERTS = {
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5),
        64,
        "blocks.2.norm1",
    ),
    "vit with registers": (
        lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, depth=2, num_classes=5),
        56,
        "blocks.1.norm1",
    ),
    "vit that averages": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5, global_pool="avg"),
        64,
        "blocks.1",
    ),
    "deit with a distillation token": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=2, num_classes=5),
        64,
        "blocks.1.norm1",
    ),
    "beit": (
        lambda: timm.create_model("beit_base_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3),
        64,
        "blocks.1",
    ),
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1, 2), embed_dim=24, num_classes=5
        ),
        64,
        "norm",
    ),
    "swin of torchvision": (
        lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 2], [2, 4], [4, 4], num_classes=5),
        64,
        "norm",
    ),
    "convnext": (
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=5),
        64,
        "stages[-1]",
    ),
    "maxvit": (lambda: timm.create_model("maxvit_rmlp_pico_rw_256", img_size=128, num_classes=5), 128, "norm"),
    "mobilevit": (lambda: timm.create_model("mobilevit_xxs", num_classes=5), 64, "final_conv"),
    "efficientnet": (lambda: timm.create_model("efficientnet_lite0", num_classes=5), 64, "bn2"),
    "inception": (lambda: timm.create_model("inception_v3", num_classes=5), 128, "Mixed_7c"),
    "densenet": (lambda: timm.create_model("densenet121", num_classes=5), 64, "features.norm5"),
    "hrnet": (lambda: timm.create_model("hrnet_w18_small", num_classes=5), 64, "final_layer"),
    "hugging face vit": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**HUGGING_FACE)),
        64,
        "vit.*.layernorm_before",  # what is between them depends on the release
    ),
    "hugging face dinov2": (
        lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(patch_size=8, **HUGGING_FACE)),
        64,
        "dinov2.layernorm",
    ),
    "hugging face swin": (
        lambda: transformers.SwinForImageClassification(
            transformers.SwinConfig(image_size=64, embed_dim=24, depths=[1, 2], num_heads=[2, 4], window_size=4)
        ),
        64,
        "swin.layernorm",
    ),
}
HUGGING_FACE = {
    "image_size": 64,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}


@few_cells
@pytest.mark.parametrize("kind", EXPERTS)
def test_the_automatic_map_is_that_of_the_layer_an_expert_names(kind):
    build, side, named = EXPERTS[kind]
    torch.manual_seed(0)
    model, images = build(), torch.rand(2, 3, side, side)
    ours = gradcam(model, images)
    assert (ours != 0).any()
    assert ours.shape[1] * ours.shape[2] > 1
    layer = (fnmatch.filter([name for name, _ in model.named_modules()], named) or [named])[-1]
    assert torch.equal(ours, gradcam(model, images, layer))


def test_a_head_that_starts_at_zero_hides_nothing():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=3).eval()
    assert not model.heads.head.weight.any()
    assert choose(model, torch.rand(2, 3, 32, 32))[0] == "encoder.layers.encoder_layer_1.ln_1"


class Net(nn.Module):
    """A stem, then what ``build`` and ``run`` make of it."""

    def __init__(self, run, **layers):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU())
        self.run = run
        self.head = nn.Linear(4, 2)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images):
        return self.run(self, images)


def test_few_cells_and_the_layer_before_that_has_more():
    model, images = torchvision.models.resnet18(weights=None).eval(), torch.rand(2, 3, 64, 64)
    message = "the 2 x 2 cells of `layer4` tell little about places; `layer3` before it has 4 x 4, give it as"
    with pytest.warns(UserWarning, match=message):
        gradcam(model, images)
    stem = Net(lambda net, images: net.head(net.stem(images).mean((2, 3))))
    with pytest.warns(UserWarning, match=r"the 2 x 5 cells of `stem` tell little about places$"):
        gradcam(stem, torch.rand(2, 3, 8, 20))
    assert gradcam(stem, torch.rand(2, 3, 16, 20)).shape == (2, 4, 5)


def test_a_frame_of_padding_is_no_finer_grid():
    def run(net, images):
        return net.head(net.last(net.pad(net.coarse(net.stem(images)))).mean((2, 3)))

    model = Net(run, coarse=nn.Conv2d(4, 4, 3), pad=nn.ZeroPad2d(1), last=nn.Conv2d(4, 4, 3))
    with pytest.warns(UserWarning, match="the 3 x 3 cells of `last` tell little about places; `stem` before it has"):
        gradcam(model, torch.rand(2, 3, 20, 20))


def test_parallel_branches():
    def run(net, images):
        coarse = net.coarse(F.avg_pool2d(images, 2))
        return net.head(net.fine(images).mean((2, 3)) + coarse.mean((2, 3)))

    model = Net(run, fine=nn.Conv2d(3, 4, 2, 2), coarse=nn.Conv2d(3, 4, 4, 4))
    name, _, reason = choose(model, torch.rand(2, 3, 32, 32))
    assert name == "coarse"
    assert reason == "4 x 4 cells, the last layer of the smallest grid, since branches run side by side"


def test_branches_behind_a_common_stem():
    def run(net, images):
        features = net.stem(images)
        return net.head(net.coarse(features).mean((2, 3)) + features.mean((2, 3)))

    model = Net(run, coarse=nn.Conv2d(4, 4, 2, 2))
    assert choose(model, torch.rand(2, 3, 32, 32))[0] == "coarse"


def test_a_skip_around_a_layer_rules_it_out():
    def run(net, images):
        features = net.stem(images)
        return net.head((features + net.branch(features)).mean((2, 3)))

    model = Net(run, branch=nn.Conv2d(4, 4, 1))
    assert choose(model, torch.rand(2, 3, 32, 32))[0] == "stem"


def test_of_the_same_tensor_the_outermost_and_of_reordered_ones_the_first():
    model = nn.Sequential(
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU()), nn.Identity()),
        torchvision.ops.Permute([0, 2, 3, 1]),
        torchvision.ops.Permute([0, 3, 1, 2]),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    assert choose(model, torch.rand(2, 3, 32, 32))[0] == "0"


def test_adaptive_pools_and_maps_of_one_class_are_passed_over():
    def run(net, images):
        features = net.stem(images)
        for _ in range(2):
            features = net.again(features)
        return F.adaptive_avg_pool2d(net.classes(net.pool(features)), 1).flatten(1)

    model = Net(run, again=nn.Conv2d(4, 4, 1), pool=nn.AdaptiveAvgPool2d(6), classes=nn.Conv2d(4, 2, 1))
    assert choose(model, torch.rand(2, 3, 32, 32))[0] == "again#2"


def test_a_frozen_backbone_under_no_grad():
    def run(net, images):
        with torch.no_grad():
            features = net.stem(images)
        return net.head(features.mean((2, 3)))

    model = Net(run).requires_grad_(False)
    assert choose(model, torch.rand(2, 3, 32, 32))[0] == "stem"
    assert torch.equal(gradcam(model, torch.ones(2, 3, 32, 32)), gradcam(model, torch.ones(2, 3, 32, 32), "stem"))


def test_a_flattened_map_is_no_row_of_tokens():
    def run(net, images):
        return net.head(net.flat(net.maps(net.stem(images))).mean(2))

    model = Net(run, maps=nn.Conv2d(4, 4, 4, 4), flat=nn.Flatten(2))  # (n, 4, 4): 4 channels, 2 x 2 cells
    assert choose(model, torch.rand(2, 3, 32, 32))[0] == "maps"


def test_an_unpadded_functional_convolution():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, features):
            return F.conv2d(features, self.kernel)

    model = Net(lambda net, images: net.head(net.conv(net.stem(images)).mean((2, 3))), conv=Convolution())
    name, layout, _ = choose(model, torch.rand(2, 3, 36, 28))
    assert (name, layout) == ("conv", channels_first)


def test_a_transformer_with_the_sequence_first():
    class Sequence(Patches):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, norm_first=True) for _ in range(2))

        def forward(self, images):
            patches = F.unfold(images, 8, stride=8).permute(2, 0, 1)
            tokens = torch.cat([self.class_token.expand(1, len(images), 16), self.embed(patches)])
            for block in self.blocks:
                tokens = block(tokens)
            return self.head(tokens[0])

    name, layout, _ = choose(Sequence(), torch.rand(2, 3, 32, 48))
    assert (name, layout) == ("blocks.1.norm1", Tokens((4, 6), 1))


def test_a_transformer_whose_blocks_are_no_modules():
    class Sums(Patches):  # skip connections are added outside the modules, as in vit-pytorch
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
            self.values = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
            self.dropout, self.last = nn.Dropout(0.1), nn.LayerNorm(16)

        def forward(self, images):
            patches = F.unfold(images, 8, stride=8).mT
            tokens = torch.cat([self.class_token.expand(len(images), 1, 16), self.embed(patches)], 1)
            tokens = self.dropout(tokens)
            for norm, values in zip(self.norms, self.values, strict=True):
                normed = norm(tokens)
                tokens = tokens + (normed @ normed.mT).softmax(2) @ values(normed)
            return self.head(self.last(tokens)[:, 0])

    name, layout, reason = choose(Sums(), torch.rand(2, 3, 32, 48))
    assert (name, layout) == ("norms.2", Tokens((4, 6)))
    assert reason == "4 x 6 cells, through which the class token reads the patches for the last time"


@pytest.mark.parametrize("empty", [[0], [0, 1]])
def test_samples_without_a_score_do_not_hide_the_layer(empty):
    labels = torch.ones(2, 2)
    labels[empty] = 0
    model = Net(lambda net, images: net.head(net.stem(images).mean((2, 3))))
    batch = Batch(torch.rand(2, 3, 32, 32), labels)
    assert choose_for(model, batch, lambda model, batch: model(batch.images), label)[0] == "stem"


def test_a_wrapper_that_hands_on_attributes_of_a_compiled_model():
    class Delegating(Wrapper):
        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("model"), name)

    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    images = torch.rand(2, 3, 32, 32)
    model = Delegating(torch.compile(net, backend="eager"))
    assert choose(model, images)[0] == "model.1"
    assert torch.equal(gradcam(model, images), gradcam(net, images, "1"))


def test_one_layer_under_two_names(resnet):
    with pytest.raises(ValueError, match=r"`target_layer` \['layer4', 'model.layer4'\] names a layer twice"):
        locate_layers(resnet, ("layer4", "model.layer4"), None, Batch(torch.rand(1, 3, 32, 32)), len, predicted)


def test_image_and_text():
    def run(net, images):
        words = net.words(torch.arange(9).expand(len(images), 9))  # (n, 9, c): 3 x 3 cells, by chance
        return net.head(net.stem(images).mean((2, 3)) * words.mean(1))

    assert choose(Net(run, words=nn.Embedding(9, 4)), torch.rand(2, 3, 24, 24))[0] == "stem"


def test_images_among_the_inputs():
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    images = torch.rand(2, 3, 32, 32)
    batch = Batch(images / 2, torch.eye(2), inputs={"pixels": images, "words": torch.ones(2, dtype=torch.long)})
    name, _, reason = choose_for(model, batch, lambda model, batch: model(batch.inputs["pixels"]), label)
    assert name == "1"
    assert "all paths" in reason


class Patches(nn.Module):
    """A transformer whose patches are cut by hand, so that no convolution tells their grid."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * 64, 16)
        self.class_token = nn.Parameter(torch.rand(1, 1, 16))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 2)

    def forward(self, images):
        patches = F.unfold(images, 8, stride=8).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), 1, 16), self.embed(patches)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


def test_patches_that_no_convolution_cuts():
    name, layout, _ = choose(Patches(), torch.rand(2, 3, 32, 48))
    assert name == "blocks.0"  # the last block normalizes behind its attention, so it has no norm that reads patches
    assert layout == Tokens((4, 6))


def test_leaves_the_model_and_the_random_state_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator())
    choose(model, images)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not images.requires_grad


@pytest.mark.parametrize(("side", "samples"), [(16, 2), (1100, 1)])
def test_of_large_images_one_is_enough(side, samples):
    seen = []
    model = nn.Sequential(nn.Conv2d(1, 4, 16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    batch = Batch(torch.rand(4, 1, side, 2 * side))

    def look(model):
        def forward(batch):
            seen.append(len(batch.images))
            return model(batch.images)

        locate_layers(model, (), None, batch, forward, predicted)

    StandIn(model).look(look)
    assert seen == [samples]


def test_no_layer_no_guess():
    message = r"no layer of Sequential can be chosen, since none of its modules hands out maps or tokens on a grid"
    with pytest.raises(ValueError, match=message):
        gradcam(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.rand(1, 3, 4, 4))
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(model[0].weight, torch.nan)
    with pytest.raises(ValueError, match="gradient is zero or not finite in all 1 layers on a grid"):
        gradcam(nn.Sequential(model, nn.Softmax(1)), torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="no layer of Net can be chosen, since the score has no gradient"):
        gradcam(Net(lambda net, images: net.head(net.stem(images).mean((2, 3)).detach())), torch.rand(1, 3, 8, 8))


def test_a_reentrant_checkpoint_asks_for_a_name():
    def run(net, images, reentrant=True):
        pooled = net.stem(images).mean((2, 3))
        return torch.utils.checkpoint.checkpoint(net.head, pooled, use_reentrant=reentrant)

    with pytest.raises(ValueError, match=r"re-entrant checkpoint hides.*name a layer by `target_layer"):
        choose(Net(run), torch.rand(2, 3, 8, 8))
    model = Net(lambda net, images: run(net, images, reentrant=False))
    assert choose(model, torch.rand(2, 3, 8, 8))[0] == "stem"


def test_a_target_that_knows_a_whole_batch_only():
    model = Net(lambda net, images: net.head(net.stem(images).mean((2, 3))))
    labels = torch.zeros(4, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="`target` failed on the 2 samples with which a layer is chosen"):
        gradcam(model, torch.rand(4, 3, 8, 8), target=lambda output, batch: output.gather(1, labels)[:, 0])


def test_layer_without_a_spatial_map():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    for layer, shape in (("1", r"\(1, 4, 1, 1\)"), ("2", r"\(1, 4\)")):
        with pytest.raises(ValueError, match=rf"`target_layer` '{layer}' hands out {shape}; expected maps or tokens"):
            gradcam(model, torch.rand(1, 3, 8, 8), layer, 0)
