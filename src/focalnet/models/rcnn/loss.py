"""The losses of Faster, Mask and Cascade R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from focalnet.errors import DataError
from focalnet.ops import anchors, assign, boxes, rois
from focalnet.samples import ObjectTarget

if TYPE_CHECKING:
    from focalnet.models.rcnn import RCNNConfig, RCNNTrainingOutputs, RPNConfig, StageConfig
    from focalnet.models.rcnn.network import StageOutputs
    from focalnet.models.rcnn.rpn import RPNOutputs

_RPN_STDS = (1.0, 1.0, 1.0, 1.0)


def losses(config: RCNNConfig, outputs: RCNNTrainingOutputs, targets: Sequence[ObjectTarget]) -> dict[str, Tensor]:
    """Every term by the name OpenMMLab gives it; those of the stages of a cascade begin with ``s0.``, ``s1.``, ...

    Raises:
        DataError: the network predicts masks and a target has none.
    """
    if config.masks and any(target.masks is None for target in targets):
        raise DataError("this network learns masks, but the data has boxes only: build it with masks=False")
    losses = proposal_losses(config.rpn, outputs.rpn, outputs.inside, targets)
    for i, (stage, said) in enumerate(zip(config.stages, outputs.stages, strict=True)):
        prefix = f"s{i}." if config.indexed else ""
        terms = stage_losses(stage, said, targets)
        losses |= {prefix + name: stage.loss_weight * value for name, value in terms.items()}
    return losses


def proposal_losses(
    config: RPNConfig, outputs: RPNOutputs, inside: Tensor, targets: Sequence[ObjectTarget]
) -> dict[str, Tensor]:
    """Is there an object, and where, of the anchors sampled; over the number sampled from the batch."""
    priors = torch.cat(outputs.anchors)
    logits = torch.cat([anchors.flatten(x, 1) for x in outputs.scores], 1)[..., 0]
    deltas = torch.cat([anchors.flatten(x, 4) for x in outputs.deltas], 1)
    score_loss, box_loss, sampled = logits.new_zeros(()), logits.new_zeros(()), 0
    for i, target in enumerate(targets):
        positive, negative, matched = _sample_anchors(config, priors, inside[i], target)
        score_loss = score_loss + F.softplus(-logits[i, positive]).sum() + F.softplus(logits[i, negative]).sum()
        wanted = boxes.encode(priors[positive], target.boxes.to(priors)[matched], _RPN_STDS)
        box_loss = box_loss + _smooth_l1(deltas[i, positive], wanted, config.smooth_l1_beta)
        sampled += max(len(positive), 1) + max(len(negative), 1)
    return {"loss_rpn_cls": score_loss / sampled, "loss_rpn_bbox": box_loss / sampled}


def stage_losses(config: StageConfig, outputs: StageOutputs, targets: Sequence[ObjectTarget]) -> dict[str, Tensor]:
    """Class, box and mask of the regions sampled; boxes and masks of those with an object."""
    labels = torch.cat([target.labels for target in targets])
    objects = torch.cat([target.boxes for target in targets]).to(outputs.regions)
    positive = (outputs.matched >= 0).nonzero().flatten()
    matched, count = outputs.matched[positive], max(len(outputs.matched), 1)
    wanted = torch.full_like(outputs.matched, outputs.logits.shape[1] - 1)
    wanted[positive] = labels[matched]
    own = wanted[positive] if outputs.deltas.shape[1] > 1 else torch.zeros_like(matched)
    deltas, priors = outputs.deltas[positive, own], outputs.regions[positive, 1:]
    losses = {
        "loss_cls": F.cross_entropy(outputs.logits, wanted, reduction="sum") / count,
        "loss_bbox": config.box_loss_weight * _box_loss(config, priors, deltas, objects[matched]) / count,
    }
    if outputs.mask_logits is not None:
        losses["loss_mask"] = _mask_loss(outputs.mask_logits, priors, matched, wanted[positive], targets)
    return losses


def _sample_anchors(
    config: RPNConfig, priors: Tensor, inside: Tensor, target: ObjectTarget
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the anchors sampled as positive and as negative, and the object of each positive."""
    here, sampling = inside.nonzero().flatten(), config.sampling
    assigned = assign.max_iou_assign(
        priors[here],
        target.boxes.to(priors),
        target.ignored.to(priors),
        positive=sampling.positive,
        negative=sampling.negative,
        low_quality=sampling.rescue,
        ignore=sampling.ignore,
    )
    positive, negative = assign.sample(assigned, sampling.samples, sampling.positive_share)
    return here[positive], here[negative], assigned[positive] - 1


def _box_loss(config: StageConfig, priors: Tensor, deltas: Tensor, objects: Tensor) -> Tensor:
    if config.box_loss == "giou":
        giou: Tensor = generalized_box_iou_loss(boxes.decode(priors, deltas, config.stds), objects, reduction="sum")
        return giou
    return _smooth_l1(deltas, boxes.encode(priors, objects, config.stds), config.smooth_l1_beta)


def _mask_loss(
    logits: Tensor, priors: Tensor, matched: Tensor, labels: Tensor, targets: Sequence[ObjectTarget]
) -> Tensor:
    own = logits[torch.arange(len(labels), device=logits.device), labels]
    wanted, before = torch.zeros_like(own), 0
    for target in targets:  # image by image: their masks have no common number, and need not be copied together
        masks = target.masks
        assert masks is not None
        mine = (matched >= before) & (matched < before + len(masks))
        wanted[mine] = rois.mask_targets(masks, matched[mine] - before, priors[mine], logits.shape[-1])
        before += len(masks)
    return F.binary_cross_entropy_with_logits(own, wanted, reduction="sum") / max(own.numel(), 1)


def _smooth_l1(predicted: Tensor, wanted: Tensor, beta: float) -> Tensor:
    return F.smooth_l1_loss(predicted, wanted, beta=beta, reduction="sum")
