"""The losses of DINO: each object is matched to one query after every layer, and restored by denoising queries.

B batch, Q queries, K matched queries. All in float32, also within autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from focalnet.models.dino.denoising import Objects
from focalnet.models.set_prediction import GIOU_WEIGHT, HIGHEST_COST, L1_WEIGHT, class_cost
from focalnet.ops import vision
from focalnet.ops.assign import hungarian_match
from focalnet.ops.counting import mean_over_processes
from focalnet.ops.precision import without_autocast
from focalnet.samples import ObjectTarget, Size

if TYPE_CHECKING:
    from focalnet.models.dino.network import DINOOutputs, TrainingOutputs

_EPS = 1e-6  # the published one: added to areas, in units of the image's
_AT_ONCE = 64  # objects that are compared with all predictions: it bounds what a crowd takes in between


def objects_of(targets: Sequence[ObjectTarget], sizes: Sequence[Size]) -> list[Objects]:
    """The objects of each image, in units of the image.

    Args:
        targets: in pixels.
        sizes: height and width of each image before padding.
    """
    objects = []
    for target, (height, width) in zip(targets, sizes, strict=True):
        scale = target.boxes.new_tensor([width, height, width, height])
        objects.append(Objects(target.labels, vision.box_convert(target.boxes / scale, "xyxy", "cxcywh").float()))
    return objects


def losses(
    outputs: TrainingOutputs, targets: Sequence[Objects], groups: int, denoised: Sequence[Objects] | None = None
) -> dict[str, Tensor]:
    """Focal, L1 and GIoU losses over the number of objects: of the layers, of the encoder, of denoising.

    Those of the last layer have no prefix, those of earlier ones ``d0.``, ``d1.``, ...

    Args:
        outputs: of ``training_outputs``.
        targets: the objects of each image.
        groups: of denoising queries.
        denoised: those objects of each image that have denoising queries; default: all.
    """
    device = outputs.encoder.logits.device
    denoised = targets if denoised is None else denoised
    count, denoised_count = (
        mean_over_processes(torch.tensor(sum(len(target.labels) for target in objects), device=device))
        for objects in (targets, denoised)
    )
    restored = _denoising_matches(denoised, outputs.denoising[0].logits.shape[1], groups, device)
    terms: dict[str, Tensor] = {}
    with without_autocast(device):
        for i, (layer, denoising) in enumerate(zip(outputs.layers, outputs.denoising, strict=True)):
            prefix = "" if i == len(outputs.layers) - 1 else f"d{i}."
            terms |= _named(prefix, _terms(layer, targets, matches(layer, targets), count))
            terms |= _named(f"{prefix}dn_", _terms(denoising, denoised, restored, denoised_count * groups))
        terms |= _named("enc_", _terms(outputs.encoder, targets, matches(outputs.encoder, targets), count))
    return terms


def matches(outputs: DINOOutputs, targets: Sequence[Objects]) -> Tensor:
    """The object of each query, ``(B, Q)``: ``k > 0`` for object ``k - 1`` of its image, 0 for none."""
    with torch.no_grad():
        costs = (
            matching_cost(logits.float(), boxes.float(), target)
            for logits, boxes, target in zip(outputs.logits, outputs.boxes, targets, strict=True)
        )
        return torch.stack(
            [hungarian_match(cost.nan_to_num(HIGHEST_COST, HIGHEST_COST, -HIGHEST_COST)) for cost in costs]
        )


def matching_cost(logits: Tensor, boxes: Tensor, target: Objects) -> Tensor:
    """Cost ``(Q, objects)``: focal loss of the class, L1 distance of center and size, generalized IoU.

    Args:
        logits: ``(Q, N)``.
        boxes: ``(Q, 4)``.
        target: the objects.
    """
    distance = torch.cdist(boxes, target.boxes, p=1)
    overlap = torch.cat([giou(boxes[:, None], part) for part in torch.split(target.boxes, _AT_ONCE)], 1)
    return class_cost(logits, target.labels) + L1_WEIGHT * distance - GIOU_WEIGHT * overlap


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalized IoU of boxes ``(..., 4)``, center and size in units of the image, with others that broadcast."""
    corners = (vision.box_convert(x, "cxcywh", "xyxy") for x in (boxes, others))
    (low, high), (other_low, other_high) = (x.split(2, -1) for x in corners)
    common = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    union = (high - low).prod(-1) + (other_high - other_low).prod(-1) - common
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1)
    value: Tensor = common / (union + _EPS) - (hull - union) / (hull + _EPS)
    return value


def _named(prefix: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in terms.items()}


def _terms(outputs: DINOOutputs, targets: Sequence[Objects], assigned: Tensor, count: Tensor) -> dict[str, Tensor]:
    image, query = (assigned > 0).nonzero(as_tuple=True)
    before = torch.tensor([0, *(len(target.labels) for target in targets)], device=assigned.device).cumsum(0)
    matched = assigned[image, query] - 1 + before[image]
    labels = torch.cat([target.labels for target in targets])[matched]
    wanted = torch.cat([target.boxes for target in targets])[matched]
    logits, boxes = outputs.logits.float(), outputs.boxes.float()[image, query]
    classes = torch.zeros_like(logits)
    classes[image, query, labels] = 1.0
    return {
        "loss_cls": vision.sigmoid_focal_loss(logits, classes, 0.25, 2.0, "sum") / count,
        "loss_bbox": L1_WEIGHT * (boxes - wanted).abs().sum() / count,
        "loss_iou": GIOU_WEIGHT * (1 - giou(boxes, wanted)).sum() / count,
    }


def _denoising_matches(targets: Sequence[Objects], queries: int, groups: int, device: torch.device) -> Tensor:
    """As ``matches``, of the positive denoising queries: the first half of each group, in the order of the objects."""
    most = queries // (2 * groups)
    place = torch.arange(queries, device=device) % max(2 * most, 1) + 1
    counts = torch.tensor([len(target.labels) for target in targets], device=device)
    return torch.where(place <= counts[:, None], place, 0)
