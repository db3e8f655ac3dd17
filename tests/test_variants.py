"""However a model is run, its map is that of the plain model."""

import copy

import peft
import pytest
import pytorch_lightning as pl
import torch
import torch.utils.checkpoint
from test_callback import Recorder
from tiny import Images, TinyModule, loader, tiny_net, trainer
from torch import nn
from torch.nn.utils import parametrizations

from lightning_gradcam import Batch, GradCAMCallback, gradcam

LAYER = "5"


@pytest.fixture
def net():
    torch.manual_seed(0)
    return tiny_net().eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def expected(net, images):
    maps = gradcam(net, images, LAYER, target=1)
    assert (maps != 0).flatten(1).any(1).all()
    return maps


def close(maps, expected, tolerance):
    torch.testing.assert_close(maps, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("layer", [LAYER, None])
@pytest.mark.parametrize("part", ["", "4", LAYER])
def test_compiled_whole_in_part_and_the_layer_itself(net, images, expected, layer, part):
    model = copy.deepcopy(net)
    if part:
        setattr(model, part, torch.compile(model.get_submodule(part), backend="eager"))
    else:
        model = torch.compile(model, backend="eager")
    with torch.no_grad():
        model(images)  # compiled before we come
    assert torch.equal(gradcam(model, images, layer, target=1), expected)


def test_batch_norm_of_several_processes(net, images, expected):
    """It trains on GPUs only; we run it as any BatchNorm, in eval mode, where processes exchange nothing."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net).train()
    assert isinstance(model[1], nn.SyncBatchNorm)
    assert torch.equal(gradcam(model, images, LAYER, target=1), expected)
    assert model.training


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("start", [4, 6])
def test_activation_checkpointing(net, images, expected, reentrant, start):
    class Checkpointed(nn.Sequential):
        """Everything from ``start`` on; a non-re-entrant one may lie around the layer itself."""

        def forward(self, images):  # type: ignore[reportIncompatibleMethodOverride]
            def rest(features):
                return self[start:].plain(features)

            return torch.utils.checkpoint.checkpoint(rest, self[:start].plain(images), use_reentrant=reentrant)

        def plain(self, features):
            return super().forward(features)

    model = Checkpointed(*net).eval()
    if reentrant and start == 4:
        with pytest.raises(ValueError, match=r"or a re-entrant checkpoint around it, ends the gradient"):
            gradcam(model, images, LAYER, target=1)
    else:
        assert torch.equal(gradcam(model, images, LAYER, target=1), expected)
        if not reentrant:
            assert torch.equal(gradcam(model, images, target=1), expected)


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrized_weights(net, images, wrap):
    wrap(net[4])
    plain = nn.Sequential(*net)
    plain[4] = nn.Conv2d(8, 8, 3, 1, 1)
    plain[4].load_state_dict({"weight": net.eval()[4].weight, "bias": net[4].bias})
    for layer in (LAYER, None):
        ours = gradcam(net, images, layer, target=1)
        assert (ours != 0).any()
        close(ours, gradcam(plain, images, LAYER, target=1), 1e-5)


def test_lora(net, images, expected):
    config = peft.LoraConfig(target_modules=["4", "8"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(net), config).eval()
    with_adapters = [gradcam(adapted, images, layer, target=1) for layer in (f"base_model.model.{LAYER}", None)]
    merged = gradcam(adapted.merge_and_unload(), images, LAYER, target=1)
    for maps in with_adapters:
        close(maps, merged, 1e-5)
    assert (merged - expected).abs().max() > 0.01 * expected.abs().max()


def test_channels_last_memory(net, images, expected):
    model = net.to(memory_format=torch.channels_last)
    for layer in (LAYER, None):
        close(gradcam(model, images.to(memory_format=torch.channels_last), layer, target=1), expected, 1e-5)


def test_double(net, images, expected):
    for layer in (LAYER, None):
        close(gradcam(copy.deepcopy(net).double(), images.double(), layer, target=1), expected, 1e-5)


def test_half_precision_weights(net, images, expected):
    model = copy.deepcopy(net).bfloat16()
    for layer in (LAYER, None):
        close(gradcam(model, images.bfloat16(), layer, target=1), expected, 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(net, images, expected, dtype):
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images):
            with torch.autocast("cpu", dtype):
                return self.net(images)

    for layer in (LAYER, None):
        close(gradcam(Cast().eval(), images, layer, target=1), expected, 0.05)


def test_frozen(net, images, expected):
    for layer in (LAYER, None):
        assert torch.equal(gradcam(net.requires_grad_(False), images, layer, target=1), expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions_of_a_trainer_agree(precision):
    def last_strength(precision):
        torch.manual_seed(0)
        module, logger = TinyModule(), Recorder()
        callback = GradCAMCallback(samples=4)
        run = trainer(callback, logger=logger, max_epochs=1, precision=precision)
        run.fit(module, loader(), loader())
        return logger.values("gradcam/strength")[0]

    plain = last_strength("32-true")
    assert last_strength(precision) == pytest.approx(plain, rel=0.1)


@pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="older than Lightning 2.6")
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_order_of_callbacks_says_which_weights_are_seen(first):
    """Lightning's averaging puts its weights in place for the validation, and takes them out at its end."""
    torch.manual_seed(0)
    module, logger, at_validation = TinyModule(), Recorder(), []
    module.on_validation_epoch_start = lambda: at_validation.append(copy.deepcopy(module.state_dict()))
    ours, theirs = GradCAMCallback("net.5", samples=4), pl.callbacks.EMAWeightAveraging(decay=0.9)
    callbacks = [ours, theirs] if first == "ours" else [theirs, ours]
    trained = copy.deepcopy(module)

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trained.load_state_dict(pl_module.state_dict())

    run = trainer(*callbacks, Keep(), logger=logger, max_epochs=1, num_sanity_val_steps=0)
    run.fit(module, loader(), loader())

    averaged = copy.deepcopy(trained)
    averaged.load_state_dict(at_validation[-1])
    labels, images = Images().labels[::6], Images().images[::6]

    def strength(module):
        maps = gradcam(module, images, "net.5", lambda output, _: output.gather(1, labels[:, None])[:, 0])
        return maps.sum((1, 2)).quantile(0.5).item()

    assert strength(averaged) != pytest.approx(strength(trained), rel=1e-3)
    seen = averaged if first == "ours" else trained
    assert logger.values("gradcam/strength")[1] == pytest.approx(strength(seen), rel=1e-5)


# What models take and return


class TwoInputs(TinyModule):
    """An image and a question in words; hands out a mapping."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 3)

    def forward(self, images, words):  # type: ignore[reportIncompatibleMethodOverride]
        return {"loss": None, "logits": self.net(images) + self.words(words).mean(1)}

    def training_step(self, batch, batch_idx):
        return self(batch["image"], batch["words"])["logits"].sum()

    def validation_step(self, batch, batch_idx):
        pass


class Questions(Images):
    def __getitem__(self, index):  # type: ignore[reportIncompatibleMethodOverride]
        image, label = super().__getitem__(index)
        return {"image": image, "answer": label, "words": torch.tensor([index % 7, 3])}


def test_image_and_text():
    logger = Recorder()
    callback = GradCAMCallback(
        samples=4,
        batch_fn=lambda batch: Batch(batch["image"], batch["answer"], inputs={"words": batch["words"]}),
        forward_fn=lambda module, batch: module(batch.images, batch.inputs["words"]),
    )
    data = loader(Questions())
    run = trainer(callback, logger=logger, max_epochs=1)
    run.fit(TwoInputs(), data, data)
    assert callback._probe.layers == {"gradcam": "net.5"}
    assert len(logger.values("gradcam/strength")) == 2
    assert logger.values("gradcam/prediction_flips")


@pytest.mark.parametrize("form", ["tuple", "list", "mapping", "object"])
def test_forms_of_output(net, images, expected, form):
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images):
            logits = self.net(images)
            forms = {"tuple": (logits, 1), "list": [logits], "mapping": {"logits": logits}, "object": Output(logits)}
            return forms[form]

    for layer in (LAYER, None):
        assert torch.equal(gradcam(Wrapped(), images, layer, target=1), expected)


def test_a_layer_that_returns_a_tuple(net, images, expected):
    class Block(nn.Module):
        """As transformer blocks do that hand out their attention too."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, features):
            return self.inner(features), None

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.rest = Block(net[:6]), net[6:]

        def forward(self, images):
            return self.rest(self.block(images)[0])

    assert torch.equal(gradcam(Chain(), images, "block", target=1), expected)
    assert torch.equal(gradcam(Chain(), images, target=1), expected)
