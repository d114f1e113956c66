"""Checks of what a network is trained on: a loss that is silently wrong is worse than none.

A label of -1 indexes the last class, a label one too high is background, masks of 0 and 255 are not those of 0 and 1,
and boxes of another format are boxes, too. Each family calls one of these functions first in ``loss``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from focalnet.errors import ConfigError, InputError
from focalnet.models.base import check_sizes
from focalnet.samples import IGNORED, Batch, LabelMapTarget, ObjectTarget, PanopticTarget, Segments, Size

_SUM_TOLERANCE = 0.01  # of class probabilities, which may come from a network in half precision


def checked_objects(batch: Batch[ObjectTarget], num_classes: int, *, masks: bool = False) -> list[ObjectTarget]:
    """The targets of a detector, with int64 labels and floating-point boxes.

    Args:
        batch: for training.
        num_classes: of the network.
        masks: whether the network learns masks; without, those of the targets are left as they are.

    Raises:
        InputError: a target has another type, shape or device than documented, or a label or box that cannot be.
    """
    given = _targets(batch, ObjectTarget, by_size=True)
    targets = [_object_target(i, target, batch, masks) for i, target in enumerate(given)]
    _check_labels([target.labels for target in targets], num_classes)
    _check_boxes([target.boxes for target in targets], batch.sizes)
    return targets


def checked_label_maps(batch: Batch[LabelMapTarget], num_classes: int) -> Tensor:
    """The labels of a semantic segmenter, padded like the batch: ``(B, H, W)``, int64.

    Raises:
        InputError: as for ``checked_objects``.
    """
    targets = [_label_map_target(i, target, batch) for i, target in enumerate(_targets(batch, LabelMapTarget))]
    labels = torch.stack([target.padded(_size(batch)).labels for target in targets])
    _check_labels([labels.masked_fill(labels == IGNORED, 0)], num_classes, f", or {IGNORED} where nothing is labeled")
    return labels


def checked_segments(batch: Batch[ObjectTarget | LabelMapTarget | PanopticTarget], num_classes: int) -> list[Segments]:
    """The mask targets of a network that learns segments of any type, padded like the batch.

    Raises:
        InputError: as for ``checked_objects``.
        DataError: there are only boxes.
    """
    found: list[Segments] = []
    for i, target in enumerate(_targets(batch, ObjectTarget, LabelMapTarget, PanopticTarget)):
        if isinstance(target, ObjectTarget):
            target = _object_target(i, target, batch, masks=True)
        elif isinstance(target, LabelMapTarget):
            target = _label_map_target(i, target, batch)
        else:
            target = _panoptic_target(i, target, batch)
        found.append(target.padded(_size(batch)).segments())
    allowed = f", or {IGNORED} in label maps where nothing is labeled"
    _check_labels([one.labels for one in found], num_classes, allowed)
    return found


def checked_classes(batch: Batch[Any], num_classes: int, *, multi_label: bool) -> Tensor:
    """The targets of a classifier: class indices ``(B,)``, int64, or shares of the classes ``(B, num_classes)``.

    Raises:
        ConfigError: the network has no head.
        InputError: the targets have another type or shape, an index is no class, or shares are no probabilities.
    """
    if num_classes < 1:
        raise ConfigError("a network with num_classes=0 has no loss: reset_classifier(n) gives it a head of n classes")
    count = _check_images(batch)
    try:
        targets = torch.as_tensor(batch.targets, device=batch.images.device)
    except (ValueError, TypeError, RuntimeError) as error:  # of names, of lists of unequal length
        raise InputError(
            f"targets must be a tensor or a list of integers, not a {type(batch.targets).__name__}"
        ) from error
    shape, dtype = tuple(targets.shape), str(targets.dtype).removeprefix("torch.")
    if shape == (count, num_classes) and (targets.is_floating_point() or multi_label):
        if not targets.is_meta and not ((targets >= 0) & (targets <= 1)).all():
            raise InputError("class targets must be between 0 and 1")
        sums = targets.float().sum(1)
        if not multi_label and not targets.is_meta and not ((sums - 1).abs() <= _SUM_TOLERANCE).all():
            raise InputError(
                "the class probabilities of an image must sum to 1; images of several classes need a network with "
                "multi_label=True"
            )
        return targets
    if multi_label:
        raise InputError(
            f"targets of a multi-label network are 0 or 1 for each image and class, ({count}, {num_classes}), not "
            f"{shape}"
        )
    if shape != (count,) or not _is_integer(targets):
        raise InputError(
            f"targets are integer class indices ({count},) or class probabilities ({count}, {num_classes}), not "
            f"{dtype} {shape}"
        )
    _check_labels([targets], num_classes)
    return targets.long()


def _targets(batch: Batch[Any], *types: type, by_size: bool = False) -> list[Any]:
    count = _check_images(batch)
    if by_size or len(batch.sizes):  # networks that score pixels need no sizes
        check_sizes(batch.images, batch.sizes)
    if isinstance(batch.targets, Tensor) or len(batch.targets) != count:
        raise InputError(f"a batch of {count} images needs a list of {count} targets, one for each image")
    for i, target in enumerate(batch.targets):
        if not isinstance(target, types):
            names = " or ".join(one.__name__ for one in types)
            raise InputError(
                f"targets[{i}] is a {type(target).__name__}: this network learns from {names} of focalnet.samples"
            )
    return list(batch.targets)


def _check_images(batch: Batch[Any]) -> int:
    if batch.images.ndim != 4 or not len(batch.images):
        raise InputError(
            f"a batch for training holds images (B, C, H, W), at least one, not {tuple(batch.images.shape)}"
        )
    return len(batch.images)


def _size(batch: Batch[Any]) -> Size:
    return batch.images.shape[2], batch.images.shape[3]


def _object_target(i: int, target: ObjectTarget, batch: Batch[Any], masks: bool) -> ObjectTarget:
    name = f"targets[{i}]"
    boxes = _boxes(f"{name}.boxes", target.boxes, batch)
    ignored = boxes[:0] if target.ignored is None else _boxes(f"{name}.ignored", target.ignored, batch)
    labels = _labels(f"{name}.labels", target.labels, batch, len(boxes))
    if not masks or target.masks is None:
        return replace(target, boxes=boxes, labels=labels, ignored=ignored)
    bitmaps = _tensor(f"{name}.masks", target.masks, batch)
    if not len(boxes) and not bitmaps.numel():
        bitmaps = torch.zeros((0, *_size(batch)), dtype=torch.bool, device=bitmaps.device)
    if bitmaps.ndim != 3 or len(bitmaps) != len(boxes):
        raise InputError(f"{name} has {len(boxes)} boxes, but masks {tuple(bitmaps.shape)}: one (H, W) for each box")
    _check_size(f"{name}.masks", i, bitmaps, batch)
    return replace(target, boxes=boxes, labels=labels, ignored=ignored, masks=_bool(f"{name}.masks", bitmaps))


def _label_map_target(i: int, target: LabelMapTarget, batch: Batch[Any]) -> LabelMapTarget:
    labels = _tensor(f"targets[{i}].labels", target.labels, batch)
    if labels.ndim != 2 or not _is_integer(labels):
        raise InputError(f"targets[{i}].labels must be integers (H, W), not {labels.dtype} {tuple(labels.shape)}")
    _check_size(f"targets[{i}].labels", i, labels, batch)
    return LabelMapTarget(labels.long())


def _panoptic_target(i: int, target: PanopticTarget, batch: Batch[Any]) -> PanopticTarget:
    name = f"targets[{i}]"
    ids = _tensor(f"{name}.ids", target.ids, batch)
    if ids.ndim != 2 or not _is_integer(ids):
        raise InputError(f"{name}.ids must be integers (H, W), not {ids.dtype} {tuple(ids.shape)}")
    _check_size(f"{name}.ids", i, ids, batch)
    crowds = _tensor(f"{name}.crowds", target.crowds, batch)
    labels = _labels(f"{name}.labels", target.labels, batch, len(crowds))
    if not ids.is_meta and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) <= len(labels):
        raise InputError(
            f"{name}.ids must be 0 or the number of one of the {len(labels)} segments, from 1, not "
            f"{int(ids.min())}..{int(ids.max())}"
        )
    return PanopticTarget(ids=ids, labels=labels, crowds=_bool(f"{name}.crowds", crowds))


def _tensor(name: str, value: Any, batch: Batch[Any]) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a tensor, not a {type(value).__name__}")
    if value.device != batch.images.device:
        raise InputError(f"{name} is on {value.device}, the images are on {batch.images.device}: move one of them")
    return value


def _boxes(name: str, value: Any, batch: Batch[Any]) -> Tensor:
    boxes = _tensor(name, value, batch)
    if boxes.ndim == 1 and not len(boxes):
        boxes = boxes.view(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.is_complex():
        raise InputError(f"{name} must be (N, 4): x1, y1, x2, y2 in pixels, not {tuple(boxes.shape)}")
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def _labels(name: str, value: Any, batch: Batch[Any], count: int) -> Tensor:
    labels = _tensor(name, value, batch)
    if labels.shape != (count,):
        raise InputError(f"{name} must be ({count},), one for each object, not {tuple(labels.shape)}")
    if count and not _is_integer(labels):
        raise InputError(f"{name} must be integers, not {str(labels.dtype).removeprefix('torch.')}")
    return labels.long()


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _bool(name: str, values: Tensor) -> Tensor:
    if values.dtype != torch.bool and not values.is_meta and not ((values == 0) | (values == 1)).all():
        raise InputError(f"{name} must be bool, or numbers of only 0 and 1: {name} > 0 makes them")
    return values.bool()


def _check_size(name: str, i: int, values: Tensor, batch: Batch[Any]) -> None:
    height, width = values.shape[-2:]
    batched = _size(batch)
    own = tuple(int(side) for side in batch.sizes[i]) if len(batch.sizes) else batched
    if height > batched[0] or width > batched[1]:
        reason = f"{height} x {width} pixels of {name} do not fit into {batched[0]} x {batched[1]}"
    elif (height, width) not in (batched, own):
        reason = f"{name} has {height} x {width} pixels, but its image {own[0]} x {own[1]}"
    else:
        return
    raise InputError(f"{reason}: targets of training have the size of their image as the network sees it")


def _check_labels(labels: Sequence[Tensor], num_classes: int, or_else: str = "") -> None:
    every = torch.cat([one.flatten() for one in labels])
    if every.is_meta or not len(every):
        return
    low, high = int(every.min()), int(every.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        allowed = f"0..{num_classes - 1}{or_else}"
        raise InputError(f"label {wrong} is none of the {num_classes} classes of this network: labels are {allowed}")


def _check_boxes(boxes: Sequence[Tensor], sizes: Sequence[Size]) -> None:
    """Raises InputError for boxes that are empty, outside their image, or in other units than pixels.

    Relative ones are told from what a crop has left at a corner of the image, which begins at 0.
    """
    every = torch.cat(list(boxes))
    if every.is_meta or not len(every):
        return
    low, high = every[:, :2], every[:, 2:]
    of_box = [(int(h), int(w)) for one, (h, w) in zip(boxes, sizes, strict=True) for _ in range(len(one))]
    extent = every.new_tensor([[width, height] for height, width in of_box])
    empty = ~((high > low) & low.isfinite() & high.isfinite()).all(1)
    outside = ((high <= 0) | (low >= extent)).any(1)
    relative = (high <= 1).all() & (low > 0).all(1).any() & (extent > 1).all()
    faults = {
        "must have finite corners x1, y1, x2, y2 and a width and height above 0": empty,
        "lies outside its image: boxes are in pixels of the image as the network sees it": outside,
        "lies in the first pixel of its image, as all do: boxes are in pixels, not relative to the image": relative,
    }
    if not torch.stack([fault.any() for fault in faults.values()]).any():  # one question to a GPU
        return
    reason, fault = next((reason, fault) for reason, fault in faults.items() if fault.any())
    box = ", ".join(f"{value:g}" for value in every[fault.expand(len(every))][0].tolist())
    raise InputError(f"box [{box}] of a target {reason}")
