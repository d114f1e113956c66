"""What the observers of all dense tasks share: images are counted and timed, the best and worst pictures are kept."""

from __future__ import annotations

import time
from abc import abstractmethod
from bisect import insort
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import lightning.pytorch as pl
import torch
from PIL import Image

from focalnet.training.callbacks import Inspector

K = TypeVar("K")  # what is kept of an image: what there is, and what was found
T = TypeVar("T")


class DensePredictions(Inspector, Generic[K]):
    """What a dense network found in every validation image.

    After ``trainer.validate``: ``images`` of all processes; ``best`` and ``worst`` of this process's, best and worst
    first; ``seconds``.

    Args:
        pictures: how many of the best and of the worst images are kept.
    """

    def __init__(self, pictures: int = 6) -> None:
        self.pictures = pictures

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """What the metrics say, most in percent."""

    @abstractmethod
    def inspect(self, task: Any, found: Any, batch: Any, i: int) -> None:
        """Looks at what was found in image ``i`` of a batch, and offers it to ``keep``."""

    @property
    def best(self) -> list[K]:
        return [one for _, one in self._best]

    @property
    def worst(self) -> list[K]:
        return [one for _, one in self._worst]

    def keep(self, make: Callable[[], K], *, good: float | None = None, bad: float | None = None) -> None:
        """Keeps an image that is among the best or the worst so far; of equal ones, those that came first.

        Args:
            make: what to keep. Not called for the others: pictures are large.
            good: how good it is, if it may be shown as one of the best.
            bad: how bad, if as one of the worst.
        """
        one = None
        for kept, rank in ((self._best, good), (self._worst, bad)):
            if rank is not None and (len(kept) < self.pictures or rank > kept[-1][0]):
                one = make() if one is None else one
                insort(kept, (rank, one), key=lambda pair: -pair[0])
                del kept[self.pictures :]

    def picture(self, batch: Any, i: int) -> Image.Image:
        """Image ``i`` of a batch as the network saw it, before normalisation and padding."""
        height, width = batch.sizes[i]
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std))
        image_CHW = batch.images[i, :, :height, :width].cpu().float() * std + mean
        return Image.fromarray((image_CHW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())

    def summary(self) -> dict[str, Any]:
        """The figures, with ``images`` and ``images_per_s``."""
        figures = {name: round(value, 6) for name, value in self.figures().items()}
        return {**figures, "images": self.images, "images_per_s": round(self.images / self.seconds, 1)}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.names, self.preprocessing = data.class_names, data.preprocessing
        self._best: list[tuple[float, K]] = []
        self._worst: list[tuple[float, K]] = []
        self.images = 0
        self.started = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for i, found in enumerate(outputs["found"]):
            self.inspect(pl_module, found, batch, i)
        self.images += len(outputs["found"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.monotonic() - self.started
        self.images = sum(gathered(trainer, self.images))


def gathered(trainer: pl.Trainer, part: T) -> list[T]:
    """What each process has."""
    parts: list[Any] = [part]
    if trainer.world_size > 1:
        parts = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, part)
    return parts
