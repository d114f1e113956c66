"""Objects as panoptic maps, so that instance segmentation is measured by panoptic quality, too."""

from __future__ import annotations

import torch
from torch import Tensor

from focalnet.errors import ConfigError
from focalnet.results import Detections, PanopticMap, Segment
from focalnet.samples import PanopticTarget

MIN_SCORE = 0.5  # both as in Panoptic FPN (arXiv 1901.02446) and panopticapi's way of combining results
MIN_SHARE = 0.5


def predicted_map(found: Detections, min_score: float = MIN_SCORE, min_share: float = MIN_SHARE) -> PanopticMap:
    """Lays objects side by side: each, best first, takes the pixels that no better one has.

    Args:
        found: objects with masks, best first.
        min_score: the others are left out.
        min_share: an object of which less remains than this share of its mask is left out, too.

    Raises:
        ConfigError: the objects have no masks.
    """
    if found.masks is None:
        raise ConfigError("panoptic quality needs masks; these detections have boxes only")
    found = found.above(min_score)
    masks = found.masks
    assert masks is not None
    segments: list[Segment] = []
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    for mask, label, score in zip(masks, found.labels.tolist(), found.scores.tolist(), strict=True):
        left = mask & (ids == 0)
        area = int(left.sum())
        if area and area >= min_share * int(mask.sum()):
            segments.append(Segment(id=len(segments) + 1, label=label, is_thing=True, score=score, area=area))
            ids[left] = len(segments)
    return PanopticMap(ids, tuple(segments), names=found.names, image=found.image, path=found.path)


def target_map(masks_NHW: Tensor, labels: Tensor, crowds: Tensor) -> PanopticTarget:
    """Lays annotated objects side by side: where two overlap, the smaller is in front; crowds are behind all.

    Args:
        masks_NHW: bool.
        labels: ``(N,)``, int64.
        crowds: ``(N,)``, bool.
    """
    areas = masks_NHW.flatten(1).sum(1)
    ids = torch.zeros(masks_NHW.shape[1:], dtype=torch.int32)
    for place in sorted(range(len(areas)), key=lambda i: (not crowds[i], -int(areas[i]))):
        ids[masks_NHW[place]] = place + 1
    seen = torch.bincount(ids.flatten(), minlength=len(areas) + 1)[1:] > 0  # an object may be covered altogether
    numbers = torch.cat([seen.new_zeros(1), seen]).cumsum(0, dtype=torch.int32)
    return PanopticTarget(ids=numbers[ids], labels=labels[seen], crowds=crowds[seen])
