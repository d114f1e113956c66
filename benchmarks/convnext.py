"""Trains a ConvNeXt of timm as the recipe ``classification/tiny_imagenet_nano`` trains FocalNet, and explains both.

    python benchmarks/convnext.py fit DATA/tiny_imagenet_100 --folder runs/convnext
    focalnet fit classification/tiny_imagenet_nano --data.root DATA/tiny_imagenet_100 --output runs/focalnet
    python benchmarks/convnext.py evaluate DATA/tiny_imagenet_100 --folder runs/convnext --images 1000
    focalnet explain --evaluate DATA/tiny_imagenet_100 --split val --model runs/focalnet/model.safetensors --images 1000

The ConvNeXt has 2.98 million parameters and 106 million multiplications, and ``focalnet_nano_patch4`` 2.92 and 115
million. Its first three stages are as wide, and a fourth one of one block keeps their stride of 16, so that the feature
map before the classifier has 4 x 4 cells in both. Optimizer, schedule, augmentation, mixup, smoothing and moving
average are those of the recipe, by the library's own task, data and optimizer; the learning rate was tuned for neither
network. Run the same command again to continue an interrupted training, from its last epoch. ``fit`` writes
``model.safetensors``, the last moving average, and ``results.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from focalnet.card import Preprocessing
from focalnet.cli.recipes import find_recipe, read_recipe
from focalnet.data import ClassificationData
from focalnet.explanations.evaluation import evaluate
from focalnet.explanations.page import write_page
from focalnet.models.classifier import best_classes
from focalnet.models.plain import from_plain
from focalnet.results import Classification
from focalnet.samples import Batch
from focalnet.training.options import OWN_TRAINER_OPTIONS, TASKS, Options
from focalnet.training.tasks.classification import ClassificationTask

RECIPE = "classification/tiny_imagenet_nano"
SHAPE: dict[str, Any] = {"depths": (2, 6, 2, 1), "dims": (64, 128, 256, 256), "output_stride": 16}


def create(num_classes: int, **options: Any) -> nn.Module:
    """The ConvNeXt with random weights."""
    model: nn.Module = timm.create_model("convnext_atto", num_classes=num_classes, **SHAPE, **options)
    return model


class Trainable(nn.Module):
    """What the task asks of a network, around one of timm.

    Args:
        model: gives logits.
        num_classes: their number.
    """

    card = None

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(num_classes=num_classes, size_divisor=1)

    @property
    def backbone(self) -> Trainable:
        return self

    @property
    def patch_embed(self) -> nn.Module:
        """The stem, which the task turns to channels-last order."""
        return self.model.get_submodule("stem")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        network: Any = self.model
        network.set_grad_checkpointing(enable)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.model(images_BCHW)
        return logits

    def loss(self, batch: Batch[int]) -> dict[str, Tensor]:
        """Cross entropy, as that of the classifier."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        return {"loss": F.cross_entropy(self(images).float(), torch.as_tensor(batch.targets))}

    def predict(self, images_BCHW: Tensor, sizes: Any = None, original_sizes: Any = None) -> list[Classification]:
        return best_classes(self(images_BCHW), ())


class ConvNeXtTask(ClassificationTask):
    """The task of the recipe with the ConvNeXt in the place of the FocalNet."""

    def build(self, num_classes: int, num_things: int | None = None) -> Any:
        return Trainable(create(num_classes, **self.options), num_classes).train()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out the description by which ``focalnet.load`` reads a checkpoint: it would not know the network."""


def fit(root: str, folder: Path, epochs: int | None) -> None:
    recipe = read_recipe(find_recipe(RECIPE))
    recipe["data"]["root"] = root
    if epochs is not None:
        recipe["trainer"]["max_epochs"] = epochs
    TASKS["classification"] = (ConvNeXtTask, ClassificationData)
    options = Options(recipe)
    pl.seed_everything(options.values.seed_everything, workers=True, verbose=False)
    task, data, arguments = options.build()
    for name in OWN_TRAINER_OPTIONS:
        arguments.pop(name)
    last = ModelCheckpoint(folder, filename="checkpoint", save_last=True, save_top_k=1, monitor=None)
    arguments |= {"callbacks": [last], "logger": False, "default_root_dir": folder}
    trainer = pl.Trainer(**arguments)
    stored = folder / "last.ckpt"
    trainer.fit(task, data, ckpt_path=stored if stored.exists() else None, weights_only=True)
    save_file({name: value.contiguous() for name, value in task.trained.model.state_dict().items()}, weights(folder))
    figures = {metric.name: metric.value for metric in task.metrics}
    results = {**figures, "epochs": trainer.current_epoch, "num_classes": data.num_classes}
    results["preprocessing"] = asdict(data.preprocessing)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def load(folder: Path) -> nn.Module:
    """The trained network, from what ``fit`` wrote."""
    described = json.loads((folder / "results.json").read_text())
    model: Any = create(described["num_classes"])
    how = from_plain(Preprocessing, described["preprocessing"])
    model.pretrained_cfg |= {"input_size": (3, *how.crop), "crop_pct": how.crop_pct, "mean": how.mean, "std": how.std}
    model.pretrained_cfg["interpolation"] = how.interpolation
    model.load_state_dict(load_file(weights(folder)))
    trained: nn.Module = model.eval()
    return trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "evaluate"))
    parser.add_argument("data")
    parser.add_argument("--folder", type=Path, default=Path("runs/convnext"))
    parser.add_argument("--epochs", type=int, help="of fit; default: those of the recipe")
    parser.add_argument("--images", type=int, default=1000, help="of evaluate")
    parser.add_argument("--method", action="append", help="of evaluate; default: all that need no modulator")
    parser.add_argument("--measure", action="append", help="of evaluate; default: all")
    options = parser.parse_args()
    if options.what == "fit":
        fit(options.data, options.folder, options.epochs)
        return
    out = options.folder / "evaluation"
    chosen = {"methods": options.method, "measured": options.measure, "images": options.images}
    found = evaluate(load(options.folder), options.data, out, split="val", say=print, **chosen)
    print(write_page(found, out / "evaluation.html"))


if __name__ == "__main__":
    main()
