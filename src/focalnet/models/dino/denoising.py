"""Contrastive denoising: objects with wrong labels and moved boxes as further queries that training restores.

B batch, G groups, M objects of the image that has most, P = 2 G M denoising queries, Q queries that are matched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from focalnet.models.dino.heads import inverse_sigmoid
from focalnet.ops import vision

if TYPE_CHECKING:
    from focalnet.models.dino.config import DINOConfig

Sample = Callable[..., Tensor]  # as torch.rand: numbers in [0, 1), of a shape, on a device


@dataclass(frozen=True)
class Objects:
    """The objects of an image: labels ``(N,)``; boxes ``(N, 4)``, center and size in units of the image."""

    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class DenoisingQueries:
    """Queries that are no guesses: a group has a positive and then a negative query for each of M objects.

    Args:
        content: ``(B, P, C)``, embedded labels; zero where an image has fewer objects.
        boxes: ``(B, P, 4)``, logits of the references.
        groups: G.
    """

    content: Tensor
    boxes: Tensor
    groups: int

    @property
    def objects(self) -> int:
        """M."""
        return self.content.shape[1] // (2 * self.groups)

    def hidden(self, queries: int) -> Tensor:
        """``(P + Q, P + Q)``, true where a query must not look: at denoising queries, but those of its own group."""
        device, count = self.content.device, self.content.shape[1]
        group = torch.arange(count, device=device) // max(2 * self.objects, 1)
        group = torch.cat([group, group.new_full((queries,), self.groups)])
        return (group[:, None] != group) & (group < self.groups)


def sampled(targets: Sequence[Objects], most: int) -> list[Objects]:
    """At most so many objects of each image, chosen at random: denoising queries then take bounded memory.

    Every object has two queries in each group, so that even a single group grows with the objects. None of the official
    codes bounds it; images with fewer objects are as there.
    """
    kept = []
    for target in targets:
        if len(target.labels) > most:
            chosen = torch.randperm(len(target.labels), device=target.labels.device)[:most]
            target = Objects(target.labels[chosen], target.boxes[chosen])
        kept.append(target)
    return kept


class DenoisingGenerator(nn.Module):
    """Makes denoising queries; its label embedding is all it learns."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.config = config
        self.label_embedding = nn.Embedding(config.num_classes + config.spare_labels, config.channels)

    def forward(self, targets: Sequence[Objects], sample: Sample = torch.rand) -> DenoisingQueries:
        """The queries of a batch.

        Args:
            targets: one for each image.
            sample: where random numbers come from, in this order: which labels change, to which class, whether each
                coordinate moves up (from 0.5 on) or down, and how far.
        """
        if not self.config.denoising_queries:
            targets = [Objects(target.labels[:0], target.boxes[:0]) for target in targets]
        counts = [len(target.labels) for target in targets]
        most = max(counts, default=0)
        groups = self.config.denoising_groups(most)
        copies = 2 * groups
        device = self.label_embedding.weight.device
        labels = torch.cat([target.labels for target in targets]).repeat(copies)
        boxes = torch.cat([target.boxes for target in targets]).repeat(copies, 1)
        labels, boxes = self._with_noise(labels, boxes, groups, sample)
        image = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        number = torch.cat([torch.arange(count, device=device) for count in counts])
        place = (number + most * torch.arange(copies, device=device)[:, None]).flatten()
        image = image.repeat(copies)
        embedded = self.label_embedding(labels)
        content = embedded.new_zeros(len(counts), copies * most, embedded.shape[1])
        logits = boxes.new_zeros(len(counts), copies * most, 4)
        return DenoisingQueries(
            content=content.index_put((image, place), embedded),
            boxes=logits.index_put((image, place), inverse_sigmoid(boxes)),
            groups=groups,
        )

    def _with_noise(self, labels: Tensor, boxes: Tensor, groups: int, sample: Sample) -> tuple[Tensor, Tensor]:
        config, count, device = self.config, len(labels), labels.device
        changed = sample(count, device=device) < config.label_noise / 2
        others = (sample(count, device=device) * config.num_classes).long().clamp(max=config.num_classes - 1)
        labels = torch.where(changed, others, labels)
        sign = torch.where(sample(count, 4, device=device) < 0.5, -1.0, 1.0)
        negative = torch.arange(2 * groups, device=device).repeat_interleave(count // (2 * groups)) % 2
        distance = sample(count, 4, device=device) + negative[:, None]
        half = boxes[:, 2:].repeat(1, 2) / 2
        corners = vision.box_convert(boxes, "cxcywh", "xyxy") + sign * distance * half * config.box_noise
        return labels, vision.box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")
