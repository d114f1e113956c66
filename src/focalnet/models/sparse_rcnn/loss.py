"""The losses of Sparse R-CNN: each object is matched to one proposal, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.models.set_prediction import CLASS_WEIGHT, GIOU_WEIGHT, L1_WEIGHT, match
from focalnet.ops import vision
from focalnet.ops.counting import mean_over_processes
from focalnet.samples import ObjectTarget

if TYPE_CHECKING:
    from focalnet.models.sparse_rcnn import SparseRCNNConfig, SparseRCNNOutputs, SparseStage


def losses(config: SparseRCNNConfig, outputs: SparseRCNNOutputs, targets: Sequence[ObjectTarget]) -> dict[str, Tensor]:
    """Focal, L1 and GIoU losses of each stage, divided by the number of objects in the batch."""
    losses: dict[str, Tensor] = {}
    for i, stage in enumerate(outputs.stages):
        losses |= {f"s{i}.{name}": value for name, value in _stage(stage, outputs.sizes, targets).items()}
    return losses


def _stage(stage: SparseStage, sizes: Tensor, targets: Sequence[ObjectTarget]) -> dict[str, Tensor]:
    assigned = torch.stack(
        [
            match(stage.logits[i].detach(), stage.boxes[i].detach(), target, sizes[i].tolist())
            for i, target in enumerate(targets)
        ]
    )
    image, proposal = (assigned > 0).nonzero(as_tuple=True)
    offsets = torch.tensor([0, *(len(t.labels) for t in targets)], device=assigned.device).cumsum(0)
    matched = assigned[image, proposal] - 1 + offsets[image]
    objects = torch.cat([target.boxes for target in targets]).to(stage.boxes)[matched]
    labels = torch.cat([target.labels for target in targets])[matched]
    predicted, scale = stage.boxes[image, proposal], sizes.flip(-1).repeat(1, 2)[image]
    expected = torch.zeros_like(stage.logits)
    expected[image, proposal, labels] = 1.0
    count = mean_over_processes(assigned.new_tensor(len(matched)))
    return {
        "loss_cls": CLASS_WEIGHT * vision.sigmoid_focal_loss(stage.logits, expected, 0.25, 2.0, "sum") / count,
        "loss_bbox": L1_WEIGHT * F.l1_loss(predicted / scale, objects / scale, reduction="sum") / count,
        "loss_iou": GIOU_WEIGHT * vision.generalized_box_iou_loss(predicted, objects, reduction="sum") / count,
    }
