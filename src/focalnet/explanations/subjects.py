"""What an evaluation explains: images, objects and segments of a data set that the network predicts as annotated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from focalnet.errors import ConfigError, DataError, require
from focalnet.explanations.attribution import Request
from focalnet.explanations.preparing import Prepared, forward, prepare
from focalnet.explanations.targets import (
    BoxTarget,
    ClassTarget,
    MaskTarget,
    PixelsTarget,
    Target,
    class_probabilities,
    logits_of,
    predict,
)
from focalnet.models import Model
from focalnet.results import Detections, PanopticMap, SemanticMap
from focalnet.results.base import class_name

if TYPE_CHECKING:
    from focalnet.data.augment import ImageWithObjects
    from focalnet.data.dataset import DetectionDataset
    from focalnet.data.formats.coco_panoptic import PanopticFile

BATCH = 16  # images of a classifier that are evaluated together
OBJECTS = 3  # of an image, that are explained at most
MATCH = 0.5  # least intersection over union of a detection and an annotated object


@dataclass(frozen=True, eq=False)
class Subjects:
    """Images of one size with what is explained of each.

    Args:
        model: in evaluation mode.
        prepared: of each image.
        targets: of each image.
        others: of each image, a target of another class, for the random logit; None where there is no such.
        inside: bool ``(B, H, W)``, where the annotated objects are; None for whole images.
        seed: of the control "random" for the first image; the others follow, so that no two have the same noise.
    """

    model: nn.Module
    prepared: Sequence[Prepared]
    targets: Sequence[Target]
    others: Sequence[Target | None]
    inside: Tensor | None = None
    seed: int = 0

    @property
    def pixels(self) -> Tensor:
        """``(B, C, H, W)``."""
        return torch.cat([one.pixels for one in self.prepared])

    def request(self, blocks: Sequence[str], *, others: bool = False, model: nn.Module | None = None) -> Request:
        """What a method computes the maps of."""
        targets = [t for t in self.others if t is not None] if others else self.targets
        network = model or self.model
        score = partial(self._scores, network, targets, probabilities=False)
        return Request(network, self.pixels, self.prepared[0].size, score, tuple(blocks), self.seed)

    @torch.inference_mode()
    def probability(self, pixels: Tensor, index: Tensor) -> Tensor:
        """See ``measures.Probability``; pixels come without padding."""
        height, width = self.prepared[0].size
        padded = self.pixels[index]
        padded[..., :height, :width] = pixels
        return self._scores(self.model, self.targets, padded, index, probabilities=True)

    def _scores(
        self, model: nn.Module, targets: Sequence[Target], pixels: Tensor, index: Tensor, *, probabilities: bool
    ) -> Tensor:
        if all(isinstance(target, ClassTarget) for target in targets):
            logits = logits_of(forward(model, pixels, self.prepared[0].size))
            values = class_probabilities(model, logits) if probabilities else logits
            labels = torch.tensor([target.label for target in targets], device=pixels.device)
            return values.gather(1, labels[index.to(pixels.device)][:, None])[:, 0]
        (target,), (prepared,) = targets, self.prepared
        return (target.probabilities if probabilities else target.scores)(model, pixels, prepared)


def output_of(model: nn.Module) -> str:
    """The type of a network's results; what is not of this library classifies."""
    return model.config.output if isinstance(model, Model) else "classification"


def find_subjects(model: nn.Module, root: Path, images: int, split: str) -> Iterator[Subjects]:
    """Yields what is explained of a data set, a few images of a classifier or one object or segment at a time.

    Args:
        model: in evaluation mode.
        root: of the data set, or the ``config.yaml`` of a run.
        images: how many are looked at, chosen at random, the same in every run.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        ConfigError: no such split, or the network has other classes than the annotations.
        DataError: the data cannot be read.
    """
    require("lightning", "train")  # of the data modules
    from focalnet.training.data_of_run import open_data, options_in_a_file

    output = output_of(model)
    if output == "multilabel":
        raise ConfigError("evaluate: multi-label classifiers are not evaluated: each image has several targets or none")
    if split not in ("train", "val", "test"):
        raise ConfigError(f'split="{split}" must be train, val or test')
    options: dict[str, Any] = {"batch_size": 1, "num_workers": 0}
    if isinstance(model, Model) and output in ("detection", "instance"):
        options["masks"] = True  # of objects that have them, whatever a run was trained with
    data = open_data(root, output, **options)
    data.class_order = _class_names(model)
    with options_in_a_file(root):
        data.setup("fit" if split in ("train", "val") else "test")
    samples = data.samples[split]
    if not hasattr(samples, "read"):
        raise DataError(f"{root}: WebDataset shards are read in order only; evaluate on folders, tar or Parquet files")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:images].tolist()
    if output == "classification":
        for start in range(0, len(order), BATCH):
            prepared = [prepare(model, samples.read(i)) for i in order[start : start + BATCH]]
            yield _classes(model, prepared)
        return
    assert isinstance(model, Model)
    _check_classes(model, samples.class_names, root)
    for i in order:
        read = samples.read(i)
        image = prepare(model, _as_image(read.image))
        if output == "panoptic":
            yield from _panoptic_segments(model, image, read.labels, samples.annotated, i)
        elif output == "semantic":
            yield from _segments(model, image, read)
        else:
            yield from _objects(model, image, read, _annotated_masks(samples, i) if data.masks else None)


def _check_classes(model: Model[Any, Any], names: Sequence[str], root: Path) -> None:
    """Predictions are matched with annotations by class, so both must number the classes alike."""
    known = model.class_names or names
    if len(names) != model.config.num_classes:
        raise ConfigError(
            f"{root}: has {len(names)} classes, and the network {model.config.num_classes}: evaluate on data with the "
            "classes that the network was trained on"
        )
    for label, (own, other) in enumerate(zip(known, names, strict=True)):
        if own != other:
            raise ConfigError(
                f'{root}: its class {label} is "{other}", and that of the network "{own}": evaluate on data with the '
                "names and order of classes that the network was trained on"
            )


def _as_image(pixels: Any) -> Image.Image:
    if isinstance(pixels, Image.Image):
        return pixels
    return Image.fromarray(pixels.as_subclass(Tensor).permute(1, 2, 0).numpy())


def _class_names(model: nn.Module) -> tuple[str, ...]:
    """Names of a network's classes; none for those of other libraries, which do not say them in a common way."""
    return model.class_names if isinstance(model, Model) else ()


def _classes(model: nn.Module, prepared: Sequence[Prepared]) -> Subjects:
    with torch.inference_mode():
        logits = forward(model, torch.cat([one.pixels for one in prepared]), prepared[0].size)
    names, best = _class_names(model), logits.argmax(1).tolist()
    generator = torch.Generator().manual_seed(0)
    shifts = torch.randint(1, max(logits.shape[1], 2), (len(best),), generator=generator).tolist()
    others = [(label + shift) % logits.shape[1] for label, shift in zip(best, shifts, strict=True)]
    return Subjects(
        model,
        prepared,
        [ClassTarget(label, class_name(names, label)) for label in best],
        [ClassTarget(label, class_name(names, label)) if len(names) != 1 else None for label in others],
    )


def _annotated_masks(samples: DetectionDataset, index: int) -> Tensor:
    """Masks ``(N, H, W)`` of an image's objects, without crowds; evaluation samples do not carry them."""
    masks, _, crowds = samples.annotated_masks(samples.images[index].image_id)
    return masks[~crowds]


def _objects(
    model: Model[Any, Any], prepared: Prepared, read: ImageWithObjects, masks: Tensor | None
) -> Iterator[Subjects]:
    """The best detections that match annotated objects, each once; ``masks`` of these are None if they are boxes."""
    found = predict(model, prepared)
    assert isinstance(found, Detections)
    if not len(found) or not len(read.boxes):
        return
    truth = read.boxes.as_subclass(Tensor).float()
    labels = read.labels
    overlap = box_iou(found.boxes.float().cpu(), truth)
    overlap[found.labels.cpu()[:, None] != labels[None]] = 0
    taken: set[int] = set()
    for i in range(len(found)):
        match = int(overlap[i].argmax())
        if overlap[i, match] < MATCH or match in taken:
            continue
        taken.add(match)
        label, name = int(labels[match]), found.name(int(labels[match]))
        left, top, right, bottom = truth[match].tolist()
        place: Target = BoxTarget(label, name, box=(left, top, right, bottom))
        target: Target = BoxTarget(label, name, box=tuple(found.boxes[i].tolist()))
        if found.masks is not None:
            target = MaskTarget(label, name, mask=found.masks[i].cpu())
            if masks is not None:
                place = MaskTarget(label, name, mask=masks[match].as_subclass(Tensor).bool())
        inside = place.inside(prepared)
        assert inside is not None
        if inside.any():
            yield Subjects(model, [prepared], [target], [None], inside[None])
        if len(taken) == OBJECTS:
            return


def _segments(model: Model[Any, Any], prepared: Prepared, read: Any) -> Iterator[Subjects]:
    """The largest classes that are annotated and predicted."""
    found = predict(model, prepared)
    assert isinstance(found, SemanticMap)
    truth = read.labels.as_subclass(Tensor).reshape(found.labels.shape)
    explained = 0
    for label in found.shares():
        annotated = truth == label
        if not annotated.any():
            continue
        target = PixelsTarget(label, found.name(label), mask=(found.labels == label).cpu())
        inside = PixelsTarget(label, mask=annotated).inside(prepared)
        others = [other for other in found.shares() if other != label]
        other = PixelsTarget(others[0], mask=target.mask) if others else None
        yield Subjects(model, [prepared], [target], [other], inside[None])
        explained += 1
        if explained == OBJECTS:
            return


def _panoptic_segments(
    model: Model[Any, Any], prepared: Prepared, ids: Tensor, annotated: PanopticFile, index: int
) -> Iterator[Subjects]:
    """The largest segments that match annotated ones: the same class, IoU above a half, as panoptic quality counts.

    Args:
        model: in evaluation mode.
        prepared: the image.
        ids: ``(H, W)`` of the original image, ``i + 1`` for its ``i``-th annotated segment.
        annotated: the annotations of all images.
        index: of the image in them.
    """
    found = predict(model, prepared)
    assert isinstance(found, PanopticMap)
    label_of = annotated.label_of()
    numbers = ids.as_subclass(Tensor)
    masks = [
        (label_of[segment["category_id"]], numbers == number)
        for number, segment in enumerate(annotated.images[index].annotations, start=1)
        if not segment["iscrowd"]
    ]
    segments = sorted(found.segments, key=lambda segment: -segment.area)
    explained = 0
    for segment in segments:
        own = found.mask(segment).cpu()
        for label, mask in masks:
            overlap = float((own & mask).sum() / (own | mask).sum().clamp(min=1))
            if label == segment.label and overlap > MATCH:
                break
        else:
            continue
        target = PixelsTarget(label, found.name(label), mask=own)
        inside = PixelsTarget(label, mask=mask).inside(prepared)
        others = [other.label for other in segments if other.label != label]
        other_class = PixelsTarget(others[0], mask=own) if others else None
        yield Subjects(model, [prepared], [target], [other_class], inside[None])
        explained += 1
        if explained == OBJECTS:
            return
