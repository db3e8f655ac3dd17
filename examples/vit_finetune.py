"""Watch a vision transformer, with no layer named: the callback finds where its class token reads the patches.

The pictures are those of `digits_on_photos.py`, handwriting on photos, without a tag to cheat by. By default a small
XCiT of timm is trained from random weights, since nothing shall be downloaded; with `--pretrained` any transformer of
timm that takes images of another size is fine-tuned instead.

    pip install "lightning-gradcam[examples]"
    python vit_finetune.py                                       # about a minute on two cores
    python vit_finetune.py --pretrained deit_tiny_patch16_224    # downloads its weights
    tensorboard --logdir runs --samples_per_plugin images=100
"""

import argparse

import timm
import torch
from digits_on_photos import SIZE, Classifier, DigitsOnPhotos, read_batch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradcam import GradCAMCallback


class Transformer(Classifier):
    learning_rate = 1e-3

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        del self.features, self.head
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", metavar="MODEL", help="fine-tune this model of timm")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()

    torch.set_num_threads(2)
    seed_everything(0)
    if args.pretrained:
        model = timm.create_model(args.pretrained, pretrained=True, img_size=SIZE, num_classes=10)
    else:
        model = timm.create_model("xcit_nano_12_p8_224", img_size=SIZE, depth=4, num_classes=10)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=args.epochs,
        logger=TensorBoardLogger("runs", name="", version=args.pretrained or "xcit"),
        log_every_n_steps=10,
        callbacks=[GradCAMCallback(batch_fn=read_batch)],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    train = DataLoader(
        DigitsOnPhotos("no", train=True), batch_size=64, shuffle=True, num_workers=1, persistent_workers=True
    )
    val = DataLoader(DigitsOnPhotos("no"), batch_size=400)
    trainer.fit(Transformer(model), train, val)
    shown = {key: f"{trainer.callback_metrics[key]:.2f}" for key in ("val/accuracy", "gradcam/mass_digit")}
    print(f"\n{shown}; a uniform map would have 0.17 of its mass on the digit.")
    print("Now look at it, under Images:  tensorboard --logdir runs --samples_per_plugin images=100")


if __name__ == "__main__":
    main()
