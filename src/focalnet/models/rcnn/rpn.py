"""The region proposal network (Ren et al., NeurIPS 2015, arXiv 1506.01497).

Shapes: B batch, A anchors per cell, H and W height and width of a feature map, N anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from focalnet.models.anchors import AnchorGrid
from focalnet.models.rcnn.config import RPNConfig
from focalnet.nn.feature_info import FeatureInfo
from focalnet.ops import anchors, boxes
from focalnet.samples import Size

STDS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class RPNOutputs:
    """Outputs for every anchor, one tensor per level.

    Args:
        scores: ``(B, A, H, W)``, objectness logits.
        deltas: ``(B, 4 A, H, W)``, the object's box relative to the anchor.
        anchors: ``(H W A, 4)``.
    """

    scores: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


@dataclass(frozen=True)
class Proposals:
    """Proposed boxes ``(n, 4)`` of one image and their scores ``(n,)``, best first."""

    boxes: Tensor
    scores: Tensor


class RPN(nn.Module):
    """Predicts objectness and box deltas of the anchors of a feature pyramid."""

    def __init__(self, config: RPNConfig, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        self.config = config
        self.grid = AnchorGrid(config.anchor_scale, config.anchor_ratios, tuple(m.stride for m in feature_info))
        channels, per_cell = feature_info[0].channels, len(config.anchor_ratios)
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, per_cell, 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * per_cell, 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> RPNOutputs:
        hidden = [self.rpn_conv(x).relu() for x in features]
        return RPNOutputs(
            scores=[self.rpn_cls(x).float() for x in hidden],
            deltas=[self.rpn_reg(x).float() for x in hidden],
            anchors=self.grid(features),
        )

    @torch.no_grad()
    def propose(self, outputs: RPNOutputs, sizes: Sequence[Size], *, training: bool) -> list[Proposals]:
        """Returns the proposals of each image: the best of each level after NMS within each level."""
        candidates = self.config.candidates_in_training if training else self.config.candidates
        limit = self.config.proposals_in_training if training else self.config.proposals
        picked: list[tuple[Tensor, ...]] = []
        for i, anchor in enumerate(outputs.anchors):
            score, best = anchors.flatten(outputs.scores[i], 1)[..., 0].sigmoid().topk(min(candidates, len(anchor)))
            delta = anchors.flatten(outputs.deltas[i], 4)
            delta = delta.gather(1, best[..., None].expand(-1, -1, 4))
            picked.append((score, delta, anchor[best], torch.full_like(best, i)))
        scores, deltas, priors, levels = (torch.cat(parts, 1) for parts in zip(*picked, strict=True))
        return [self._pick(scores[i], deltas[i], priors[i], levels[i], size, limit) for i, size in enumerate(sizes)]

    def propose_tensors(self, outputs: RPNOutputs, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """``propose`` for exported networks: boxes ``(B, P, 4)``, best first, and which are proposals ``(B, P)``."""
        picked: list[tuple[Tensor, ...]] = []
        for i, anchor in enumerate(outputs.anchors):
            score = anchors.flatten(outputs.scores[i], 1)[..., 0].sigmoid()
            score, best = score.topk(torch.sym_min(self.config.candidates, score.shape[1]))
            delta = anchors.flatten(outputs.deltas[i], 4).gather(1, best[..., None].expand(-1, -1, 4))
            picked.append((score, boxes.decode(anchor[best], delta, STDS, sizes_B2[:, None]), torch.full_like(best, i)))
        scores, candidates, levels = (torch.cat(parts, 1) for parts in zip(*picked, strict=True))
        valid = (candidates[..., 2:] > candidates[..., :2]).all(-1)
        groups = len(outputs.anchors)
        kept = boxes.nms_mask(candidates, scores, levels, valid, iou_threshold=self.config.nms_threshold, groups=groups)
        best_of = boxes.best_objects(candidates, scores, levels, kept, self.config.proposals)
        return best_of["boxes"], best_of["labels"] >= 0

    def inside(self, outputs: RPNOutputs, sizes: Sequence[Size], divisor: int) -> Tensor:
        """Which anchors to train on in each image: ``(B, N)``, bool."""
        inside = self.grid.on_image(outputs.scores, sizes, divisor)
        if self.config.inside_only:
            flat = torch.cat(outputs.anchors)
            height_width = torch.tensor(sizes, device=flat.device)[:, None]
            inside &= (flat[:, :2] >= 0).all(-1) & (flat[:, 2:] < height_width.flip(-1)).all(-1)
        return inside

    def _pick(
        self, scores: Tensor, deltas: Tensor, priors: Tensor, levels: Tensor, size: Size, limit: int
    ) -> Proposals:
        candidates = boxes.decode(priors, deltas, STDS, size)
        valid = (candidates[:, 2:] > candidates[:, :2]).all(1)
        kept, score, _ = boxes.best_per_class(
            candidates[valid], scores[valid], levels[valid], iou_threshold=self.config.nms_threshold, limit=limit
        )
        return Proposals(kept, score)
