"""Nothing that data or a model call themselves breaks out of a file name, a tag, a picture or a text."""

import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tiny import HOSTILE, Images, Recorder, TinyModule, events, loader, pictures, trainer
from torch import nn

from lightning_gradcam import Batch, Display, GradCAMCallback
from lightning_gradcam.picture.grid import captions, tiles

hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())


class Hostile(Images):
    def __init__(self, name):
        super().__init__()
        self.classes = (name, name, name)


class Heads(TinyModule):
    """Its layers are named by the data."""

    def __init__(self, name):
        super().__init__()
        net = self.net
        self.net = nn.ModuleDict({"stem": net[:3], name.replace(".", "_"): net[3:6], "head": net[6:]})

    def forward(self, images):
        for part in self.net.values():
            images = part(images)
        return images


def named(text):
    return lambda batch: Batch(*batch, regions={"left": torch.ones(len(batch[0]), 16, 16)}, ids=[text, text])


def run(text, *callbacks, **options):
    module = Heads(text)
    late = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)][1]
    callback = GradCAMCallback(
        ["net.stem.0", late], samples=2, batch_fn=named(text), display=Display(per_sample=True, tile=64)
    )
    data = loader(Hostile(text))
    trainer(callback, *callbacks, **options).fit(module, data, data)
    return callback


@hostile
@pytest.mark.filterwarnings("ignore:the font has no glyph")
def test_files_stay_in_their_folder(text, tmp_path, monkeypatch):
    Path("deep/down/below").mkdir(parents=True)
    monkeypatch.chdir("deep/down/below")  # three steps up are seen
    before = set(tmp_path.resolve().rglob("*"))
    run(text, logger=Recorder(), default_root_dir="here")
    written = {path.relative_to(Path.cwd()) for path in set(tmp_path.resolve().rglob("*")) - before}
    assert len([path for path in written if path.suffix == ".jpg"]) == 3 * 2 * 3
    for path in written:
        assert path.parts[0] == "here"
        assert re.fullmatch(r"[\w.=-]{1,250}", path.name)
    pictures()  # all of them can be read


@hostile
@pytest.mark.filterwarnings("ignore:the font has no glyph", "ignore:html5lib:DeprecationWarning")
def test_tensorboard_gets_plain_tags_and_no_markup(text):
    from tensorboard.plugin_util import markdown_to_safe_html

    logger = TensorBoardLogger("logs", name="a", version="b")
    run(text, logger=logger, max_epochs=1)
    found = events(logger.log_dir)
    for tag in [*found.Tags()["images"], *found.Tags()["scalars"], *found.Tags()["tensors"]]:
        assert re.fullmatch(r"[\w./-]+", tag)
    (card,) = found.Tensors("gradcam/probe/text_summary")
    shown = markdown_to_safe_html(card.tensor_proto.string_val[0].decode())
    assert set(re.findall(r"<(\w+)", shown)) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert shown.count("<tr>") == 1 + 7


@hostile
def test_captions_are_one_short_line_of_text(text):
    batch = Batch(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), ids=[text, text])
    under = captions(batch, torch.rand(2, 4, 4), None, [text, text])
    _, lines = tiles(torch.rand(2, 8, 8), torch.rand(2, 4, 4), under, 32, "turbo")
    for line in lines:
        assert line.isprintable()
        assert len(line) <= 200


@hostile
@pytest.mark.filterwarnings("ignore:the font has no glyph")
def test_a_checkpoint_holds_nothing_but_data(text):
    if "\ud800" in text:
        text = text.replace("\ud800", "")  # torch cannot save it, with or without us
    callback = run(text, ModelCheckpoint("saved", save_last=True), enable_checkpointing=True, max_epochs=1)
    state = torch.load("saved/last.ckpt", weights_only=True)["callbacks"][callback.state_key]
    assert state["layers"][0] == "net.stem.0"


@hostile
def test_a_region_becomes_a_key_and_must_have_a_plain_name(text):
    with pytest.raises(ValueError, match="the name of a region must be up to 64 letters, digits"):
        Batch(torch.rand(2, 3, 8, 8), regions={text: torch.ones(2, 8, 8)})


@pytest.mark.parametrize("prefix", ["..", ".hidden", "-x", "a" * 65, "a b", "a\n", "a/b", "a\\b", "é|"])
def test_a_prefix_becomes_a_folder_and_must_be_plain(prefix):
    with pytest.raises(ValueError, match="`prefix` must be up to 64 letters, digits"):
        GradCAMCallback(prefix=prefix)
