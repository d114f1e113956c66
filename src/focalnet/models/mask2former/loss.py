"""The losses of Mask2Former: after every layer, each segment is matched to one query and compared at random points.

B batch, Q queries, K matched queries, G segments, P points. All in float32, also within autocast.
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

Rand = Callable[..., Tensor]  # as torch.rand: numbers in [0, 1), of a shape, on a device

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0  # in the cost as in the loss
NO_OBJECT_WEIGHT = 0.1  # of queries without a segment, in the class loss
_HIGHEST_COST = 1e6  # stands for what is not a number, so that the loss, and not the matching, reports it


def losses(
    config: Mask2FormerConfig,
    outputs: Sequence[Mask2FormerOutputs],
    targets: Sequence[Segments],
    rand: Rand = torch.rand,
) -> dict[str, Tensor]:
    """Class, mask and dice losses of every layer, ``d0.`` before the first and without a prefix after the last.

    Args:
        config: of the network.
        outputs: of ``training_outputs``.
        targets: the segments of each image; their masks are of the size of the padded input.
        rand: where the random points come from.
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
    before = torch.tensor([0, *(len(t.labels) for t in targets)], device=assigned.device).cumsum(0)
    segment = assigned[image, query] - 1 + before[image]
    wanted = torch.full_like(assigned, config.num_classes)
    wanted[image, query] = torch.cat([target.labels for target in targets])[segment]
    weights = logits.new_ones(config.num_classes + 1)
    weights[-1] = NO_OBJECT_WEIGHT
    found = masks[image, query]
    truth = torch.cat([target.masks for target in targets])
    at_points, truth_at_points = _at_uncertain_points(config, found, truth, segment, rand)
    return {
        "loss_cls": CLASS_WEIGHT * F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weights),
        "loss_mask": MASK_WEIGHT
        * F.binary_cross_entropy_with_logits(at_points, truth_at_points, reduction="none").mean(1).sum()
        / count,
        "loss_dice": DICE_WEIGHT * _dice(at_points.sigmoid(), truth_at_points).sum() / count,
    }


@torch.no_grad()
def match(logits: Tensor, masks: Tensor, target: Segments, points: int, rand: Rand = torch.rand) -> Tensor:
    """The cheapest assignment of an image's segments to queries; see ``ops.assign`` for what it returns.

    Args:
        logits: ``(Q, classes + 1)``.
        masks: ``(Q, h, w)``, logits.
        target: its segments.
        points: at how many random points masks are compared, the same ones for all.
        rand: where they come from.
    """
    place = rand(1, points, 2, device=masks.device)
    count = len(target.labels)
    segments = torch.arange(count, device=masks.device)
    truth = sample_masks(target.masks, place.expand(count, -1, -1), segments)
    cost = matching_cost(logits, sample_logits(masks[None], place)[0], target.labels, truth)
    return hungarian_match(cost.nan_to_num(_HIGHEST_COST, _HIGHEST_COST, -_HIGHEST_COST))


def matching_cost(logits: Tensor, masks: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Cost ``(Q, G)``: class probability, binary cross entropy and dice loss of the masks.

    Args:
        logits: ``(Q, classes + 1)``.
        masks: ``(Q, P)``, logits at points.
        labels: ``(G,)``.
        truth: ``(G, P)``, 0 to 1.
    """
    # Of logits x and truth t the cross entropy is softplus(x) - x t: one matrix product for all pairs.
    entropy = (F.softplus(masks).sum(1)[:, None] - masks @ truth.T) / masks.shape[1]
    chance = masks.sigmoid()
    overlap = (2 * chance @ truth.T + 1) / (chance.sum(1)[:, None] + truth.sum(1) + 1)
    return MASK_WEIGHT * entropy + DICE_WEIGHT * (1 - overlap) - CLASS_WEIGHT * logits.softmax(-1)[:, labels]


def _at_uncertain_points(
    config: Mask2FormerConfig, masks_Khw: Tensor, truth_GHW: Tensor, segment: Tensor, rand: Rand
) -> tuple[Tensor, Tensor]:
    """Masks and their segments, both ``(K, P)``, at points most of which are near the edge of a mask (PointRend)."""
    if not len(masks_Khw):
        nothing = masks_Khw.flatten(1)
        return nothing, nothing.detach()
    device, total = masks_Khw.device, config.train_points
    certain = int(config.importance * total)
    with torch.no_grad():
        candidates = rand(len(masks_Khw), int(config.oversample * total), 2, device=device)
        doubt = -sample_logits(masks_Khw[:, None], candidates)[:, 0].abs()
        chosen = doubt.topk(certain, 1).indices[..., None].expand(-1, -1, 2)
        points = torch.cat([candidates.gather(1, chosen), rand(len(masks_Khw), total - certain, 2, device=device)], 1)
        truth = sample_masks(truth_GHW, points, segment)
    return sample_logits(masks_Khw[:, None], points)[:, 0], truth


def _dice(chance: Tensor, truth: Tensor) -> Tensor:
    """Of each row, one less twice what they share over what they have; 1 is added to both (``(K, P)`` to ``(K,)``)."""
    return 1 - (2 * (chance * truth).sum(1) + 1) / (chance.sum(1) + truth.sum(1) + 1)
