"""What a detector found in the validation images: figures, confusions, and pictures of hits and misses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.metrics.coco import CocoResult, summary
from focalnet.metrics.confusion import DetectionConfusion
from focalnet.metrics.panoptic import PanopticResult
from focalnet.structures import DetectionBatch, Detections, Preprocessing, Target
from focalnet.tasks.callbacks import Inspector

if TYPE_CHECKING:
    from focalnet.metrics.coco import Kind

MIN_SCORE = 0.5  # of what is counted and drawn


@dataclass(frozen=True)
class Inspected:
    """A validation image as the network saw it: what there is, what was found, and how many of both do not agree."""

    mistakes: int
    true: Detections
    found: Detections


class DetectionPredictions(Inspector):
    """What the network found in every validation image.

    After ``trainer.validate``: ``results`` by kind, ``segmented`` where masks are found, ``confusion``, ``images`` of
    all processes; ``best`` and ``worst``, images of this process with the most objects and no mistake, and with the
    most mistakes; ``seconds``.
    """

    def __init__(self, pictures: int = 6) -> None:
        self.pictures = pictures

    def summary(self) -> dict[str, Any]:
        """``box_ap``, ``box_ap50``, ..., of masks also ``pq_things``, ... in percent, ``images``, ``images_per_s``."""
        figures = summary(self.results)
        if self.segmented is not None:
            figures |= {name: value for name, value in self.segmented.summary().items() if name.endswith("_things")}
        figures = {name: round(value, 6) for name, value in figures.items()}
        return {**figures, "images": self.images, "images_per_s": round(self.images / self.seconds, 1)}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.names, self.preprocessing = data.class_names, data.preprocessing
        self.confusion = DetectionConfusion(len(self.names), min_score=MIN_SCORE)
        self.inspected: list[Inspected] = []
        self.images = 0
        self.started = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: DetectionBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for i, found in enumerate(outputs["found"]):
            size = batch["sizes"][i]
            image = batch["images"][i, :, : size[0], : size[1]].cpu()
            seen = _resized(_on_cpu(found), size).above(MIN_SCORE)
            target = _target_on_cpu(batch["targets"][i])
            before = self.confusion.matrix.clone()
            self.confusion.update(seen, target)
            counted = self.confusion.matrix - before
            mistakes = int(counted.sum() - counted.diagonal().sum())
            picture = picture_of(image, self.preprocessing)
            true = Detections(
                target["boxes"],
                torch.ones(len(target["boxes"])),
                target["labels"],
                self.names,
                size=size,
                image=picture,
            )
            self.inspected.append(Inspected(mistakes, true, replace(seen, names=self.names, image=picture)))
        self.images += len(outputs["found"])
        # Only as many as are drawn at the end are kept: pictures are large.
        self.inspected = list({id(one): one for one in (*self.best, *self.worst)}.values())

    @property
    def best(self) -> list[Inspected]:
        """Without mistakes, those with the most objects first."""
        right = [one for one in self.inspected if not one.mistakes and len(one.true)]
        return sorted(right, key=lambda one: -len(one.true))[: self.pictures]

    @property
    def worst(self) -> list[Inspected]:
        """Those with the most mistakes first."""
        wrong = [one for one in self.inspected if one.mistakes]
        return sorted(wrong, key=lambda one: -one.mistakes)[: self.pictures]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.monotonic() - self.started
        self.results: Mapping[Kind, CocoResult] = pl_module.found  # type: ignore[assignment]
        self.segmented: PanopticResult | None = pl_module.segmented  # type: ignore[assignment]
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, (self.images, self.confusion.matrix))
            self.images = sum(images for images, _ in parts)
            self.confusion.matrix = torch.stack([matrix for _, matrix in parts]).sum(0)


def _on_cpu(found: Detections) -> Detections:
    masks = None if found.masks is None else found.masks.cpu()
    return replace(
        found,
        boxes=found.boxes.float().cpu(),
        scores=found.scores.float().cpu(),
        labels=found.labels.cpu(),
        masks=masks,
    )


def _target_on_cpu(target: Target) -> Target:
    return Target(
        boxes=target["boxes"].cpu(), labels=target["labels"].cpu(), masks=None, ignored=target["ignored"].cpu()
    )


def _resized(found: Detections, size: tuple[int, int]) -> Detections:
    """In pixels of another size of the image."""
    height, width = size
    scale = torch.tensor([width / found.size[1], height / found.size[0]] * 2)
    masks = found.masks
    if masks is not None:
        masks = F.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0].bool()
    return replace(found, boxes=found.boxes * scale, masks=masks, size=size)


def picture_of(image_CHW: Tensor, preprocessing: Preprocessing) -> Any:
    """The picture before normalisation."""
    from PIL import Image

    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    pixels = ((image_CHW.float() * std + mean).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
