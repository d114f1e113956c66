"""From the queries of one image to a noun, in pixels of the original image.

Masks of that size are made a few at a time: a hundred of a photograph would fill the memory.
Q queries, N classes, H and W the size of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.ops.label_maps import label_map
from focalnet.ops.segments import boxes_around
from focalnet.results import Detections, PanopticMap, Segment, SemanticMap

_AT_ONCE = 2**24  # pixels of masks held in floating point: 64 MiB


@dataclass(frozen=True)
class Queries:
    """What was found in one image.

    Args:
        logits: ``(Q, N + 1)``.
        masks: ``(Q, h, w)``, logits for the padded input.
        padded: height and width of the input.
        size: of the image in it.
        original: of the image before it was resized.
    """

    logits: Tensor
    masks: Tensor
    padded: tuple[int, int]
    size: tuple[int, int]
    original: tuple[int, int]

    def seen(self, masks: Tensor) -> Tensor:
        """Masks at the size that the network saw, without padding."""
        height, width = self.size
        return F.interpolate(masks[None], self.padded, mode="bilinear")[0, :, :height, :width]

    def each(self, chosen: Tensor) -> Iterator[Tensor]:
        """The mask logits ``(H, W)`` of these queries, one after the other."""
        pixels = max(_pixels(self.padded), _pixels(self.original))
        for some in torch.split(chosen, max(_AT_ONCE // pixels, 1)) if len(chosen) else ():
            masks = self.seen(self.masks[some])
            if self.size != self.original:
                masks = F.interpolate(masks[None], self.original, mode="bilinear")[0]
            yield from masks


def class_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """The sum over queries of class probability times mask probability: ``(..., Q, N + 1)``, ``(..., Q, H, W)``."""
    return torch.einsum("...qn,...qhw->...nhw", logits.softmax(-1)[..., :-1], masks.sigmoid())


def semantic(queries: Queries, names: tuple[str, ...]) -> SemanticMap:
    """The class of each pixel; scores are resized, not masks, as in the original code."""
    scores = class_scores(queries.logits, queries.seen(queries.masks))
    return SemanticMap(label_map(scores, queries.original), names)


def instances(queries: Queries, things: int, most: int, names: tuple[str, ...]) -> Detections:
    """The best pairs of query and class that are things, by class probability times mean mask probability."""
    scores = queries.logits.softmax(-1)[:, :-1]
    scores, best = scores.flatten().topk(min(most, scores.numel()))
    query, label = best // (queries.logits.shape[1] - 1), best % (queries.logits.shape[1] - 1)
    scores, query, label = (x[label < things] for x in (scores, query, label))
    masks = torch.zeros((len(query), *queries.original), dtype=torch.bool, device=scores.device)
    sure = torch.zeros_like(scores)
    for i, mask in enumerate(queries.each(query)):
        torch.gt(mask, 0, out=masks[i])
        sure[i] = mask.sigmoid()[masks[i]].mean() if masks[i].any() else 0.0
    scores, order = (scores * sure).sort(descending=True, stable=True)
    masks = masks[order]
    return Detections(boxes_around(masks), scores, label[order], names, masks=masks, size=queries.original)


def panoptic(
    queries: Queries, things: int, object_threshold: float, overlap_threshold: float, names: tuple[str, ...]
) -> PanopticMap:
    """Each pixel goes to the query that is surest of it; a query that loses most of its mask makes no segment.

    All stuff of a class is one segment, which has the score of its best query.
    """
    scores, labels = queries.logits.softmax(-1).max(-1)
    kept = ((labels < queries.logits.shape[1] - 1) & (scores > object_threshold)).nonzero().flatten()
    owner, won, areas = _contest(queries, kept, scores[kept])
    left = owner.flatten().bincount(minlength=len(kept) + 1).tolist()
    number_of = [0] * (len(kept) + 1)  # of a query's segment
    stuff: dict[int, int] = {}  # number of a class's segment
    segments: list[Segment] = []
    for i, (score, label) in enumerate(zip(scores[kept].tolist(), labels[kept].tolist(), strict=True), start=1):
        if left[i] == 0 or won[i] < overlap_threshold * areas[i]:
            continue
        if label in stuff:
            number = stuff[label]
            same = segments[number - 1]
            segments[number - 1] = replace(same, score=max(same.score, score), area=same.area + left[i])
        else:
            number = len(segments) + 1
            segments.append(Segment(number, label, label < things, score, left[i]))
            if label >= things:
                stuff[label] = number
        number_of[i] = number
    ids = torch.tensor(number_of, dtype=torch.int32, device=owner.device)[owner]
    return PanopticMap(ids, tuple(segments), names)


def _contest(queries: Queries, kept: Tensor, scores: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """Who owns each pixel, from 1, 0 for nobody ``(H, W)``; pixels each query wins, and of its mask; both from 1.

    A pixel belongs to the query with the highest product of score and mask probability, if that is in its mask; it
    counts as won even if it is not (as in the original code).
    """
    size, device = queries.original, kept.device
    best = torch.full(size, -1.0, device=device)
    winner = torch.zeros(size, dtype=torch.long, device=device)
    inside = torch.zeros(size, dtype=torch.bool, device=device)
    areas = [0]
    for i, (mask, score) in enumerate(zip(queries.each(kept), scores, strict=True), start=1):
        probability = mask.sigmoid()
        mine, bid = probability >= 0.5, score * probability
        higher = bid > best
        best, winner = torch.where(higher, bid, best), winner.masked_fill(higher, i)
        inside = torch.where(higher, mine, inside)
        areas.append(int(mine.sum()))
    won: list[int] = winner.flatten().bincount(minlength=len(areas)).tolist()
    return winner * inside, won, areas


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]
