"""How much results differ that a network in float32 and the same one with int8 layers give for an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, Result, SemanticMap


def change(expected: Sequence[Result], actual: Sequence[Result]) -> float:
    """The difference of two lists of results, 0 where they are equal.

    Of a classifier: the norm of the differences of logits over that of the logits (without their mean, where
    an image has one class). Of a detector:
    the share of the scores that is lost, where an object keeps of its score the best product of IoU, mask IoU and 1
    minus the difference of scores that an object of the same class gives. Of label maps: the share of the pixels that
    change their class.

    Args:
        expected: of the network in float32, one result for each image.
        actual: in the same order.
    """
    pairs = [_compare(one, other) for one, other in zip(expected, actual, strict=True)]
    changed, whole = (sum(values) for values in zip(*pairs, strict=True))
    ratio = changed / whole if whole else 0.0
    return ratio**0.5 if isinstance(expected[0], Classification | MultiLabel) else ratio


def _compare(expected: Result, actual: Result) -> tuple[float, float]:
    """What differs of an image, and of how much: a sum of squares, of scores, or a number of pixels."""
    if isinstance(expected, Classification | MultiLabel):
        assert isinstance(actual, Classification | MultiLabel)
        assert expected.logits is not None
        assert actual.logits is not None
        logits = expected.logits.double()
        size = logits - logits.mean() if isinstance(expected, Classification) else logits  # a softmax ignores the mean
        return float((logits - actual.logits).square().sum()), float(size.square().sum())
    if isinstance(expected, Detections):
        assert isinstance(actual, Detections)
        whole = float(expected.scores.sum())
        return whole - _kept(expected, actual), whole
    assert isinstance(expected, (SemanticMap, PanopticMap))
    assert isinstance(actual, (SemanticMap, PanopticMap))
    first, second = classes(expected), classes(actual)
    return float((first != second).sum()), float(first.numel())


def _kept(expected: Detections, actual: Detections) -> float:
    """The sum of what the objects keep of their scores."""
    if not len(expected) or not len(actual):
        return 0.0
    alike = box_iou(expected.boxes, actual.boxes).nan_to_num(1.0)  # of two boxes without an area
    alike = alike * (1 - (expected.scores[:, None] - actual.scores[None]).abs())
    alike[expected.labels[:, None] != actual.labels[None]] = 0
    best, partner = alike.max(1)
    if expected.masks is not None and actual.masks is not None:
        masks, others = expected.masks, actual.masks[partner]
        union = (masks | others).flatten(1).sum(1)
        best = best * ((masks & others).flatten(1).sum(1) / union.clamp(min=1)).where(union > 0, 1.0)
    return float((best * expected.scores).sum())


def classes(result: SemanticMap | PanopticMap) -> Tensor:
    """The class of each pixel, ``(H, W)``, -1 for none."""
    if isinstance(result, SemanticMap):
        return result.labels
    labels = [-1, *(segment.label for segment in sorted(result.segments, key=lambda segment: segment.id))]
    return torch.tensor(labels)[result.ids.long()]
