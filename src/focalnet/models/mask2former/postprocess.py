"""Converts the queries of one image to a result in pixels of the original image.

Masks are resized to the original size a few at a time: a hundred masks of a photograph would fill the memory.
Shapes: Q queries, N classes, H and W height and width of the original image.
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

_AT_ONCE = 2**24  # pixels of masks held at once in float32: 64 MiB


@dataclass(frozen=True)
class Queries:
    """The predictions for one image.

    Args:
        logits: ``(Q, N + 1)``, class logits.
        masks: ``(Q, h, w)``, mask logits of the padded input.
        padded: height and width of the padded input.
        size: height and width of the image before padding.
        original: height and width of the image before it was resized.
    """

    logits: Tensor
    masks: Tensor
    padded: tuple[int, int]
    size: tuple[int, int]
    original: tuple[int, int]

    def at_input_size(self, masks: Tensor) -> Tensor:
        """Mask logits resized to the network's input, without its padding."""
        height, width = self.size
        return F.interpolate(masks[None], self.padded, mode="bilinear")[0, :, :height, :width]

    def original_masks(self, queries: Tensor) -> Iterator[Tensor]:
        """Yields the mask logits ``(H, W)`` of the queries of these indices, at the original size."""
        pixels = max(_pixels(self.padded), _pixels(self.original))
        for indices in torch.split(queries, max(_AT_ONCE // pixels, 1)) if len(queries) else ():
            masks = self.at_input_size(self.masks[indices])
            if self.size != self.original:
                masks = F.interpolate(masks[None], self.original, mode="bilinear")[0]
            yield from masks


def class_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """The sum over queries of class probability times mask probability: ``(..., Q, N + 1)``, ``(..., Q, H, W)``."""
    return torch.einsum("...qn,...qhw->...nhw", logits.softmax(-1)[..., :-1], masks.sigmoid())


def semantic(queries: Queries, names: tuple[str, ...]) -> SemanticMap:
    """The class of each pixel. Scores are resized rather than masks, as in the original code."""
    scores = class_scores(queries.logits, queries.at_input_size(queries.masks))
    return SemanticMap(label_map(scores, queries.original), names)


def instances(queries: Queries, things: int, max_per_image: int, names: tuple[str, ...]) -> Detections:
    """The best pairs of query and thing class, scored by class probability times mean probability within the mask."""
    scores = queries.logits.softmax(-1)[:, :-1]
    scores, best = scores.flatten().topk(min(max_per_image, scores.numel()))
    query, label = best // (queries.logits.shape[1] - 1), best % (queries.logits.shape[1] - 1)
    scores, query, label = (x[label < things] for x in (scores, query, label))
    masks = torch.zeros((len(query), *queries.original), dtype=torch.bool, device=scores.device)
    mask_scores = torch.zeros_like(scores)
    for i, mask in enumerate(queries.original_masks(query)):
        inside = mask > 0  # not a view of masks, which changes before derivatives are taken
        masks[i] = inside
        mask_scores[i] = mask.sigmoid()[inside].mean() if inside.any() else 0.0
    scores, order = (scores * mask_scores).sort(descending=True, stable=True)
    masks = masks[order]
    return Detections(boxes_around(masks), scores, label[order], names, masks=masks, size=queries.original)


def panoptic(
    queries: Queries, things: int, object_threshold: float, overlap_threshold: float, names: tuple[str, ...]
) -> PanopticMap:
    """Assigns each pixel to the query with the highest score; queries that lose much of their mask are dropped.

    All queries of a stuff class form one segment, with the score of the best of them.
    """
    scores, labels = queries.logits.softmax(-1).max(-1)
    kept = ((labels < queries.logits.shape[1] - 1) & (scores > object_threshold)).nonzero().flatten()
    owner, won, areas = _assign_pixels(queries, kept, scores[kept])
    owned = owner.flatten().bincount(minlength=len(kept) + 1).tolist()
    number_of = [0] * (len(kept) + 1)  # segment number by query
    stuff: dict[int, int] = {}  # segment number by class
    segments: list[Segment] = []
    for i, (score, label) in enumerate(zip(scores[kept].tolist(), labels[kept].tolist(), strict=True), start=1):
        if owned[i] == 0 or won[i] < overlap_threshold * areas[i]:
            continue
        if label in stuff:
            number = stuff[label]
            segment = segments[number - 1]
            segments[number - 1] = replace(segment, score=max(segment.score, score), area=segment.area + owned[i])
        else:
            number = len(segments) + 1
            segments.append(Segment(number, label, label < things, score, owned[i]))
            if label >= things:
                stuff[label] = number
        number_of[i] = number
    ids = torch.tensor(number_of, dtype=torch.int32, device=owner.device)[owner]
    return PanopticMap(ids, tuple(segments), names)


def _assign_pixels(queries: Queries, kept: Tensor, scores: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """Assigns pixels to queries, which are numbered from 1.

    The winner of a pixel is the query with the highest product of score and mask probability. It owns the pixel only if
    the pixel is in its mask.

    Returns:
        The owner of each pixel ``(H, W)``, 0 for none; the number of pixels that each query wins, in its mask or not
        (as the original code counts); and the area of each query's mask.
    """
    size, device = queries.original, kept.device
    best = torch.full(size, -1.0, device=device)
    winner = torch.zeros(size, dtype=torch.long, device=device)
    in_winner = torch.zeros(size, dtype=torch.bool, device=device)
    areas = [0]
    for i, (mask, score) in enumerate(zip(queries.original_masks(kept), scores, strict=True), start=1):
        probability = mask.sigmoid()
        in_mask, product = probability >= 0.5, score * probability
        higher = product > best
        best, winner = torch.where(higher, product, best), winner.masked_fill(higher, i)
        in_winner = torch.where(higher, in_mask, in_winner)
        areas.append(int(in_mask.sum()))
    won: list[int] = winner.flatten().bincount(minlength=len(areas)).tolist()
    return winner * in_winner, won, areas


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]
