"""``postprocess`` for a whole batch, as operations of tensors alone, for exported networks.

Each function agrees with the one of its name in ``postprocess``. Masks are resized a few at a time.
Shapes: B batch, Q queries, N classes, H and W of the canvas that holds all original images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.models.mask2former.postprocess import class_scores
from focalnet.ops.boxes import objects
from focalnet.ops.resizing import OriginalSize

_QUERIES = 10  # whose masks are held at once at the original size


def semantic(logits: Tensor, masks: Tensor, original: OriginalSize) -> dict[str, Tensor]:
    """The class of each pixel.

    Args:
        logits: ``(B, Q, N + 1)``.
        masks: ``(B, Q, h, w)``, logits.
        original: the sizes of the images.
    """
    scores = class_scores(logits, F.interpolate(masks, original.padded, mode="bilinear"))
    return {"labels": original.label_maps(scores)}


def instances(
    logits: Tensor, masks: Tensor, original: OriginalSize, things: int, max_per_image: int
) -> dict[str, Tensor]:
    """The best pairs of query and thing class; arguments as for ``semantic`` and in ``postprocess.instances``."""
    probabilities = logits.softmax(-1)[..., :-1].flatten(1)
    classes = logits.shape[2] - 1
    scores, best = probabilities.topk(min(max_per_image, probabilities.shape[1]))
    labels = best % classes
    kept = labels < things
    bitmaps, quality = [], []
    for _, chunk in _original_masks(masks, best // classes, original):
        inside = (chunk > 0) & original.inside()[:, None]
        pixels = inside.sum((2, 3))
        quality.append((chunk.sigmoid() * inside).sum((2, 3)) / pixels.clamp(min=1))
        bitmaps.append(inside)
    scores, order = (scores * torch.cat(quality, 1)).masked_fill(~kept, -1.0).topk(scores.shape[1])
    bitmap = torch.cat(bitmaps, 1)
    bitmap = bitmap.gather(1, order[..., None, None].expand(-1, -1, *bitmap.shape[2:])) & (scores >= 0)[..., None, None]
    found = objects(_boxes_around(bitmap), scores, labels.gather(1, order), scores >= 0)
    return {**found, "masks": bitmap}


def panoptic(
    logits: Tensor,
    masks: Tensor,
    original: OriginalSize,
    things: int,
    object_threshold: float,
    overlap_threshold: float,
) -> dict[str, Tensor]:
    """The segment of each pixel; arguments as for ``semantic`` and in ``postprocess.panoptic``."""
    scores, labels = logits.softmax(-1).max(-1)
    queries = logits.shape[1]
    kept = (labels < logits.shape[2] - 1) & (scores > object_threshold)
    owner, won, areas = _assign_pixels(masks, scores.masked_fill(~kept, -1.0), original)
    owned = _counts(owner, original, queries)
    stays = kept & (owned > 0) & (won.double() >= overlap_threshold * areas.double())

    # All queries of a stuff class belong to the segment of the first of them.
    index = torch.arange(queries, device=logits.device)
    same = (labels[:, :, None] == labels[:, None]) & (labels >= things)[:, :, None] & stays[:, None] & stays[:, :, None]
    together = same | (index[:, None] == index)
    first = together.int().argmax(2)
    opens = stays & (first == index)
    number = opens.long().cumsum(1)
    number_of = number.gather(1, first).masked_fill(~stays, 0)
    highest = torch.where(together, scores[:, None], -1.0).amax(2)

    rank = torch.where(opens, -index, -queries).topk(queries).indices
    empty = index >= number[:, -1:]
    ids = F.pad(number_of, (1, 0)).gather(1, owner.flatten(1)).view(owner.shape)
    return {
        "ids": ids.int(),
        "segment_labels": labels.gather(1, rank).masked_fill(empty, -1),
        "segment_scores": highest.gather(1, rank).masked_fill(empty, 0.0),
    }


def _assign_pixels(masks: Tensor, scores: Tensor, original: OriginalSize) -> tuple[Tensor, Tensor, Tensor]:
    """The owner of each pixel ``(B, H, W)``, and of each query the pixels it wins and the area of its mask ``(B, Q)``.

    Args:
        masks: ``(B, Q, h, w)``, logits.
        scores: ``(B, Q)``; queries with -1 take no part.
        original: the sizes of the images.
    """
    inside = original.inside()
    best = torch.full_like(inside, -1.0, dtype=torch.float32)
    winner = torch.zeros_like(inside, dtype=torch.int64)
    in_winner, areas = torch.zeros_like(inside), []
    everyone = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    for start, chunk in _original_masks(masks, everyone, original):
        probability = chunk.sigmoid()
        in_mask = probability >= 0.5
        areas.append((in_mask & inside[:, None]).sum((2, 3)))
        of_chunk = scores[:, start : start + _QUERIES, None, None]
        product, place = torch.where(of_chunk >= 0, of_chunk * probability, -1.0).max(1)
        higher = product > best
        best, winner = torch.where(higher, product, best), torch.where(higher, place + start + 1, winner)
        in_winner = (higher & in_mask.gather(1, place[:, None])[:, 0]) | (
            ~higher & in_winner
        )  # no Where of bool in ONNX Runtime
    winner = winner * inside
    return winner * in_winner, _counts(winner, original, scores.shape[1]), torch.cat(areas, 1)


def _counts(owner: Tensor, original: OriginalSize, queries: int) -> Tensor:
    """Pixels of each query, ``(B, Q)``; 0 in ``owner`` is none."""
    flat = owner.flatten(1)
    empty = torch.zeros(flat.shape[0], queries + 1, dtype=torch.int64, device=flat.device)
    return empty.scatter_add(1, flat, torch.ones_like(flat))[:, 1:]


def _original_masks(masks: Tensor, queries: Tensor, original: OriginalSize) -> Iterator[tuple[int, Tensor]]:
    """Yields mask logits ``(B, n, H, W)`` of the queries ``(B, K)`` a few at a time, with the first one's index."""
    matrices = original.matrices((masks.shape[2], masks.shape[3]))
    for start in range(0, queries.shape[1], _QUERIES):
        index = queries[:, start : start + _QUERIES, None, None].expand(-1, -1, *masks.shape[2:])
        yield start, original.resize(masks.gather(1, index), matrices)


def _boxes_around(masks: Tensor) -> Tensor:
    """``ops.segments.boxes_around`` of masks ``(B, K, H, W)``: ``(B, K, 4)``."""
    (x1, x2), (y1, y2) = (_extent(masks.any(axis)) for axis in (2, 3))
    return torch.stack([x1, y1, x2, y2], -1).float()


def _extent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first true value in each row, and one more than the last; zeros if there is none."""
    index = torch.arange(x.shape[-1], device=x.device)
    first = torch.where(x, index, x.shape[-1]).amin(-1)
    return first * x.any(-1), torch.where(x, index + 1, 0).amax(-1)
