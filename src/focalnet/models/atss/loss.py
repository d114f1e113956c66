"""The losses of ATSS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.ops import anchors, assign, boxes, vision
from focalnet.ops.counting import mean_over_processes
from focalnet.samples import ObjectTarget

if TYPE_CHECKING:
    from focalnet.models.atss import ATSSConfig, ATSSOutputs


def losses(config: ATSSConfig, outputs: ATSSOutputs, targets: Sequence[ObjectTarget]) -> dict[str, Tensor]:
    """Focal loss of the classes, GIoU loss of the boxes weighted by centerness, binary cross entropy of the centerness.

    The class and centerness losses are divided by the number of positive anchors, the box loss by their summed
    centerness.
    """
    priors = torch.cat(outputs.anchors)
    scores, deltas, centerness = (
        torch.cat([anchors.flatten(x, x.shape[1]) for x in values], 1)
        for values in (outputs.scores, outputs.deltas, outputs.centerness)
    )
    assigned = torch.stack([_assign(config, outputs, i, target) for i, target in enumerate(targets)])
    image, anchor = (assigned > 0).nonzero(as_tuple=True)
    offsets = torch.tensor([0, *(len(t.labels) for t in targets)], device=priors.device).cumsum(0)
    matched = assigned[image, anchor] - 1 + offsets[image]
    objects = torch.cat([target.boxes for target in targets]).to(priors)[matched]
    labels = torch.cat([target.labels for target in targets])[matched]

    expected = torch.zeros_like(scores)
    expected[image, anchor, labels] = 1.0
    focal = vision.sigmoid_focal_loss(scores, expected, 0.25, 2.0)[assigned >= 0].sum()
    center_targets = centerness_of(priors[anchor], objects)
    giou = vision.generalized_box_iou_loss(boxes.decode(priors[anchor], deltas[image, anchor], config.stds), objects)
    centerness_loss = F.binary_cross_entropy_with_logits(centerness[image, anchor, 0], center_targets, reduction="sum")
    count = mean_over_processes((assigned > 0).sum(1).clamp(min=1).sum())
    return {
        "loss_cls": focal / count,
        "loss_bbox": config.box_loss_weight * (giou * center_targets).sum() / mean_over_processes(center_targets.sum()),
        "loss_centerness": centerness_loss / count,
    }


def centerness_of(priors: Tensor, objects: Tensor) -> Tensor:
    """Centerness of each prior ``(N, 4)`` in its object ``(N, 4)``: 1 at the center, 0 at the border."""
    center = (priors[:, :2] + priors[:, 2:]) / 2
    low, high = center - objects[:, :2], objects[:, 2:] - center
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(1).clamp(min=0).sqrt()


def _assign(config: ATSSConfig, outputs: ATSSOutputs, image: int, target: ObjectTarget) -> Tensor:
    """Assigns objects to the anchors of an image as ``ops.assign`` does; anchors outside the image get -1."""
    inside = outputs.inside[image]
    levels = torch.split(inside, [len(level) for level in outputs.anchors])
    assigned_inside = assign.atss_assign(
        [level[mask] for level, mask in zip(outputs.anchors, levels, strict=True)],
        target.boxes.to(outputs.anchors[0]),
        target.ignored.to(outputs.anchors[0]),
        candidates=config.nearest,
        ignore=config.ignore,
    )
    assigned = torch.full_like(inside, -1, dtype=torch.long)
    assigned[inside] = assigned_inside
    return assigned
