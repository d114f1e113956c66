"""Converts objects to panoptic maps, to measure instance segmentation by panoptic quality."""

from __future__ import annotations

import torch
from torch import Tensor

from focalnet.errors import ConfigError
from focalnet.results import Detections, PanopticMap, Segment
from focalnet.samples import PanopticTarget

MIN_SCORE = 0.5  # both as in Panoptic FPN (arXiv 1901.02446) and in panopticapi
MIN_SHARE = 0.5


def predicted_map(predictions: Detections, min_score: float = MIN_SCORE, min_share: float = MIN_SHARE) -> PanopticMap:
    """Merges predicted objects into a map: each pixel belongs to the best object that covers it.

    Args:
        predictions: objects with masks, best first.
        min_score: objects with a lower score are dropped.
        min_share: an object that keeps a smaller share of its mask is dropped.

    Raises:
        ConfigError: the objects have no masks.
    """
    if predictions.masks is None:
        raise ConfigError("panoptic quality needs masks; these detections have boxes only")
    predictions = predictions.above(min_score)
    masks = predictions.masks
    assert masks is not None
    segments: list[Segment] = []
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    for mask, label, score in zip(masks, predictions.labels.tolist(), predictions.scores.tolist(), strict=True):
        visible = mask & (ids == 0)
        area = int(visible.sum())
        if area and area >= min_share * int(mask.sum()):
            segments.append(Segment(id=len(segments) + 1, label=label, is_thing=True, score=score, area=area))
            ids[visible] = len(segments)
    return PanopticMap(ids, tuple(segments), names=predictions.names, image=predictions.image, path=predictions.path)


def target_map(masks_NHW: Tensor, labels: Tensor, crowds: Tensor) -> PanopticTarget:
    """Merges annotated objects into a map: of overlapping objects the smaller is in front; crowds are behind all.

    Args:
        masks_NHW: bool.
        labels: ``(N,)``, int64.
        crowds: ``(N,)``, bool.
    """
    areas = masks_NHW.flatten(1).sum(1)
    ids = torch.zeros(masks_NHW.shape[1:], dtype=torch.int32)
    for index in sorted(range(len(areas)), key=lambda i: (not crowds[i], -int(areas[i]))):
        ids[masks_NHW[index]] = index + 1
    visible = torch.bincount(ids.flatten(), minlength=len(areas) + 1)[1:] > 0  # others may cover an object entirely
    numbers = torch.cat([visible.new_zeros(1), visible]).cumsum(0, dtype=torch.int32)
    return PanopticTarget(ids=numbers[ids], labels=labels[visible], crowds=crowds[visible])
