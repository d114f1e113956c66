"""The losses of Mask2Former: in every layer, each segment is matched to one query and compared at random points.

Shapes: B batch, Q queries, K matched queries, G segments, P points. Computed in float32, also within autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.ops.assign import hungarian_match
from focalnet.ops.counting import mean_over_processes
from focalnet.ops.precision import without_autocast
from focalnet.ops.segments import sample_logits, sample_masks
from focalnet.samples import Segments

if TYPE_CHECKING:
    from focalnet.models.mask2former import Mask2FormerConfig, Mask2FormerOutputs

Rand = Callable[..., Tensor]  # signature of torch.rand: uniform in [0, 1)

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0  # in both cost and loss
NO_OBJECT_WEIGHT = 0.1  # class loss of queries without a segment
_HIGHEST_COST = 1e6  # replaces NaN and infinity, so that the loss reports them rather than the matching failing


def losses(
    config: Mask2FormerConfig,
    outputs: Sequence[Mask2FormerOutputs],
    targets: Sequence[Segments],
    rand: Rand = torch.rand,
) -> dict[str, Tensor]:
    """Class, mask and dice losses of every layer, ``d0.`` before the first and without a prefix after the last.

    Args:
        config: configuration of the network.
        outputs: return value of ``training_outputs``.
        targets: segments of each image; their masks have the size of the padded input.
        rand: generator of random points.
    """
    count = sum(len(target.labels) for target in targets)
    shared = mean_over_processes(torch.tensor(count, device=outputs[0].masks.device))
    losses: dict[str, Tensor] = {}
    for i, layer in enumerate(outputs):
        prefix = "" if i == len(outputs) - 1 else f"d{i}."
        with without_autocast(layer.masks.device):
            terms = _layer(config, layer.logits.float(), layer.masks.float(), targets, shared, rand)
        losses |= {f"{prefix}{name}": value for name, value in terms.items()}
    return losses


def _layer(
    config: Mask2FormerConfig, logits: Tensor, masks: Tensor, targets: Sequence[Segments], count: Tensor, rand: Rand
) -> dict[str, Tensor]:
    assigned = torch.stack(
        [match(logits[i], masks[i], target, config.train_points, rand) for i, target in enumerate(targets)]
    )
    image, query = (assigned > 0).nonzero(as_tuple=True)
    offsets = torch.tensor([0, *(len(t.labels) for t in targets)], device=assigned.device).cumsum(0)
    segment = assigned[image, query] - 1 + offsets[image]
    labels = torch.full_like(assigned, config.num_classes)
    labels[image, query] = torch.cat([target.labels for target in targets])[segment]
    weights = logits.new_ones(config.num_classes + 1)
    weights[-1] = NO_OBJECT_WEIGHT
    matched_masks = masks[image, query]
    target_masks = torch.cat([target.masks for target in targets])
    at_points, targets_at_points = _at_uncertain_points(config, matched_masks, target_masks, segment, rand)
    return {
        "loss_cls": CLASS_WEIGHT * F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights),
        "loss_mask": MASK_WEIGHT
        * F.binary_cross_entropy_with_logits(at_points, targets_at_points, reduction="none").mean(1).sum()
        / count,
        "loss_dice": DICE_WEIGHT * _dice(at_points.sigmoid(), targets_at_points).sum() / count,
    }


@torch.no_grad()
def match(logits: Tensor, masks: Tensor, target: Segments, points: int, rand: Rand = torch.rand) -> Tensor:
    """Matches an image's segments to queries at the lowest cost; for the return value see ``ops.assign``.

    Args:
        logits: ``(Q, classes + 1)``.
        masks: ``(Q, h, w)``, logits.
        target: segments of the image.
        points: number of random points at which masks are compared, the same ones for all pairs.
        rand: generator of random points.
    """
    locations = rand(1, points, 2, device=masks.device)
    count = len(target.labels)
    segments = torch.arange(count, device=masks.device)
    target_points = sample_masks(target.masks, locations.expand(count, -1, -1), segments)
    cost = matching_cost(logits, sample_logits(masks[None], locations)[0], target.labels, target_points)
    return hungarian_match(cost.nan_to_num(_HIGHEST_COST, _HIGHEST_COST, -_HIGHEST_COST))


def matching_cost(logits: Tensor, masks: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Cost ``(Q, G)``: class probability, binary cross entropy and dice loss of the masks.

    Args:
        logits: ``(Q, classes + 1)``.
        masks: ``(Q, P)``, mask logits at points.
        labels: ``(G,)``.
        targets: ``(G, P)``, target masks at the same points, 0 to 1.
    """
    # The cross entropy of logit x and target t is softplus(x) - x t: one matrix product for all pairs.
    entropy = (F.softplus(masks).sum(1)[:, None] - masks @ targets.T) / masks.shape[1]
    probability = masks.sigmoid()
    overlap = (2 * probability @ targets.T + 1) / (probability.sum(1)[:, None] + targets.sum(1) + 1)
    return MASK_WEIGHT * entropy + DICE_WEIGHT * (1 - overlap) - CLASS_WEIGHT * logits.softmax(-1)[:, labels]


def _at_uncertain_points(
    config: Mask2FormerConfig, masks_Khw: Tensor, targets_GHW: Tensor, segment: Tensor, rand: Rand
) -> tuple[Tensor, Tensor]:
    """Mask logits and targets ``(K, P)`` at points sampled mostly where the masks are uncertain (PointRend)."""
    if not len(masks_Khw):
        empty = masks_Khw.flatten(1)
        return empty, empty.detach()
    device, total = masks_Khw.device, config.train_points
    num_uncertain = int(config.importance * total)
    with torch.no_grad():
        candidates = rand(len(masks_Khw), int(config.oversample * total), 2, device=device)
        uncertainty = -sample_logits(masks_Khw[:, None], candidates)[:, 0].abs()
        most_uncertain = uncertainty.topk(num_uncertain, 1).indices[..., None].expand(-1, -1, 2)
        points = torch.cat(
            [candidates.gather(1, most_uncertain), rand(len(masks_Khw), total - num_uncertain, 2, device=device)], 1
        )
        targets = sample_masks(targets_GHW, points, segment)
    return sample_logits(masks_Khw[:, None], points)[:, 0], targets


def _dice(probability: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each row, from ``(K, P)`` to ``(K,)``, smoothed by adding 1 to numerator and denominator."""
    return 1 - (2 * (probability * targets).sum(1) + 1) / (probability.sum(1) + targets.sum(1) + 1)
