"""The losses of Faster, Mask and Cascade R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import DataError
from focalnet.ops import anchors, assign, boxes, rois, vision
from focalnet.samples import ObjectTarget

if TYPE_CHECKING:
    from focalnet.models.rcnn import RCNNConfig, RCNNTrainingOutputs, RPNConfig, StageConfig
    from focalnet.models.rcnn.network import StageOutputs
    from focalnet.models.rcnn.rpn import RPNOutputs

_RPN_STDS = (1.0, 1.0, 1.0, 1.0)


def losses(config: RCNNConfig, outputs: RCNNTrainingOutputs, targets: Sequence[ObjectTarget]) -> dict[str, Tensor]:
    """All loss terms under OpenMMLab's names; those of a cascade's stages begin with ``s0.``, ``s1.``, ...

    Raises:
        DataError: the network predicts masks but a target has none.
    """
    if config.masks and any(target.masks is None for target in targets):
        raise DataError("this network learns masks, but the data has only boxes: build it with masks=False")
    losses = proposal_losses(config.rpn, outputs.rpn, outputs.inside, targets)
    for i, (stage, stage_outputs) in enumerate(zip(config.stages, outputs.stages, strict=True)):
        prefix = f"s{i}." if config.indexed else ""
        terms = stage_losses(stage, stage_outputs, targets)
        losses |= {prefix + name: stage.loss_weight * value for name, value in terms.items()}
    return losses


def proposal_losses(
    config: RPNConfig, outputs: RPNOutputs, inside: Tensor, targets: Sequence[ObjectTarget]
) -> dict[str, Tensor]:
    """Objectness and box loss of the sampled anchors, divided by the number sampled in the batch."""
    priors = torch.cat(outputs.anchors)
    logits = torch.cat([anchors.flatten(x, 1) for x in outputs.scores], 1)[..., 0]
    deltas = torch.cat([anchors.flatten(x, 4) for x in outputs.deltas], 1)
    score_loss, box_loss, sampled = logits.new_zeros(()), logits.new_zeros(()), 0
    for i, target in enumerate(targets):
        positive, negative, matched = _sample_anchors(config, priors, inside[i], target)
        score_loss = score_loss + F.softplus(-logits[i, positive]).sum() + F.softplus(logits[i, negative]).sum()
        expected = boxes.encode(priors[positive], target.boxes.to(priors)[matched], _RPN_STDS)
        box_loss = box_loss + _smooth_l1(deltas[i, positive], expected, config.smooth_l1_beta)
        sampled += max(len(positive), 1) + max(len(negative), 1)
    return {"loss_rpn_cls": score_loss / sampled, "loss_rpn_bbox": box_loss / sampled}


def stage_losses(config: StageConfig, outputs: StageOutputs, targets: Sequence[ObjectTarget]) -> dict[str, Tensor]:
    """Class loss of the sampled regions; box and mask losses of the positive ones."""
    labels = torch.cat([target.labels for target in targets])
    objects = torch.cat([target.boxes for target in targets]).to(outputs.regions)
    positive = (outputs.matched >= 0).nonzero().flatten()
    matched, count = outputs.matched[positive], max(len(outputs.matched), 1)
    expected = torch.full_like(outputs.matched, outputs.logits.shape[1] - 1)
    expected[positive] = labels[matched]
    index = expected[positive] if outputs.deltas.shape[1] > 1 else torch.zeros_like(matched)
    deltas, priors = outputs.deltas[positive, index], outputs.regions[positive, 1:]
    losses = {
        "loss_cls": F.cross_entropy(outputs.logits, expected, reduction="sum") / count,
        "loss_bbox": config.box_loss_weight * _box_loss(config, priors, deltas, objects[matched]) / count,
    }
    if outputs.mask_logits is not None:
        losses["loss_mask"] = _mask_loss(outputs.mask_logits, priors, matched, expected[positive], targets)
    return losses


def _sample_anchors(
    config: RPNConfig, priors: Tensor, inside: Tensor, target: ObjectTarget
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the sampled positive and negative anchors, and the object of each positive anchor."""
    candidates, sampling = inside.nonzero().flatten(), config.sampling
    assigned = assign.max_iou_assign(
        priors[candidates],
        target.boxes.to(priors),
        target.ignored.to(priors),
        positive=sampling.positive,
        negative=sampling.negative,
        low_quality=sampling.rescue,
        ignore=sampling.ignore,
    )
    positive, negative = assign.sample(assigned, sampling.samples, sampling.positive_share)
    return candidates[positive], candidates[negative], assigned[positive] - 1


def _box_loss(config: StageConfig, priors: Tensor, deltas: Tensor, objects: Tensor) -> Tensor:
    if config.box_loss == "giou":
        decoded = boxes.decode(priors, deltas, config.stds)
        giou: Tensor = vision.generalized_box_iou_loss(decoded, objects, reduction="sum")
        return giou
    return _smooth_l1(deltas, boxes.encode(priors, objects, config.stds), config.smooth_l1_beta)


def _mask_loss(
    logits: Tensor, priors: Tensor, matched: Tensor, labels: Tensor, targets: Sequence[ObjectTarget]
) -> Tensor:
    own_logits = logits[torch.arange(len(labels), device=logits.device), labels]
    expected, offset = torch.zeros_like(own_logits), 0
    for target in targets:  # image by image, which avoids a copy of all masks
        masks = target.masks
        assert masks is not None
        of_image = (matched >= offset) & (matched < offset + len(masks))
        expected[of_image] = rois.mask_targets(masks, matched[of_image] - offset, priors[of_image], logits.shape[-1])
        offset += len(masks)
    return F.binary_cross_entropy_with_logits(own_logits, expected, reduction="sum") / max(own_logits.numel(), 1)


def _smooth_l1(predicted: Tensor, expected: Tensor, beta: float) -> Tensor:
    return F.smooth_l1_loss(predicted, expected, beta=beta, reduction="sum")
