"""DINO (Zhang et al., ICLR 2023, arXiv 2203.03605): queries that start from proposals and learn from denoising.

B batch, C channels, S cells of all levels, Q queries, P denoising queries, N classes. Boxes within the network are
center x and y, width and height in units of the image before padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from focalnet.models.backbone import FocalNet
from focalnet.models.base import Model, check_sizes
from focalnet.models.dino.config import DINOConfig
from focalnet.models.dino.decoder import Decoder
from focalnet.models.dino.denoising import DenoisingGenerator, DenoisingQueries, sampled
from focalnet.models.dino.encoder import Encoder, Levels, Projections
from focalnet.models.dino.heads import Heads, inverse_sigmoid
from focalnet.models.dino.loss import losses, objects_of
from focalnet.models.dino.proposals import best, gather, proposals
from focalnet.models.targets import checked_objects
from focalnet.nn.deformable import DeformableAttention
from focalnet.nn.positions import masked_sine_positions
from focalnet.ops import boxes
from focalnet.results import Detections
from focalnet.samples import Batch, ObjectTarget, Size


@dataclass(frozen=True)
class DINOOutputs:
    """What is predicted of each query: logits ``(B, Q, N)`` and boxes ``(B, Q, 4)``, center and size, 0 to 1."""

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class TrainingOutputs:
    """Everything that has a loss.

    Args:
        layers: of each decoder layer, the Q matched queries.
        encoder: of the cells that queries start from.
        denoising: of each decoder layer, the P denoising queries.
    """

    layers: list[DINOOutputs]
    encoder: DINOOutputs
    denoising: list[DINOOutputs]


class DINO(Model[DINOConfig, DINOOutputs]):
    """Boxes and classes of queries. State dicts have mmdet's names, as those of every dense network here.

    Heads that all decoder layers share are there once, before the encoder's.
    """

    takes_sizes = True

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.backbone = FocalNet(config.backbone)
        self.neck = Projections(config, self.backbone.feature_info)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.level_embed = nn.Parameter(torch.randn(config.scales, channels))
        self.memory_trans_fc = nn.Linear(channels, channels)
        self.memory_trans_norm = nn.LayerNorm(channels)
        self.query_embedding = nn.Embedding(config.num_queries, channels) if config.learned_queries else None
        for part in (self.encoder, self.decoder, self.memory_trans_fc):
            _initialize(part)
        self.bbox_head = Heads(config)
        self.dn_query_generator = DenoisingGenerator(config)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks of the backbone and the layers of the encoder in the backward pass."""
        super().set_grad_checkpointing(enable)
        self.encoder.grad_checkpointing = enable

    def forward(self, images_BCHW: Tensor, sizes: Sequence[Size] | Tensor) -> DINOOutputs:
        return self.training_outputs(images_BCHW, sizes).layers[-1]

    def training_outputs(
        self, images_BCHW: Tensor, sizes: Sequence[Size] | Tensor, denoising: DenoisingQueries | None = None
    ) -> TrainingOutputs:
        """What every layer says of the queries, and of denoising queries if there are any."""
        memory, levels = self.encode(images_BCHW, sizes)
        content, logits, encoder = self.select(memory, levels)
        queries, hidden, first = content.shape[1], None, 0
        if denoising is not None:
            first = denoising.content.shape[1]
            hidden = denoising.hidden(queries)
            content = torch.cat([denoising.content.to(content), content], 1)
            logits = torch.cat([denoising.boxes.to(logits), logits], 1)
        outputs, references = self.decoder(content, logits.sigmoid(), memory, levels, self.bbox_head, hidden)
        layers = []
        for i, (x, reference) in enumerate(zip(outputs, references[:-1], strict=True)):
            refined = (self.bbox_head.boxes(x, i) + inverse_sigmoid(reference)).sigmoid()
            layers.append(DINOOutputs(self.bbox_head.classes(x, i), refined))
        return TrainingOutputs(
            layers=[DINOOutputs(layer.logits[:, first:], layer.boxes[:, first:]) for layer in layers],
            encoder=encoder,
            denoising=[DINOOutputs(layer.logits[:, :first], layer.boxes[:, :first]) for layer in layers],
        )

    def encode(self, images_BCHW: Tensor, sizes: Sequence[Size] | Tensor) -> tuple[Tensor, Levels]:
        """The memory ``(B, S, C)``, and its levels."""
        check_sizes(images_BCHW, sizes)
        features = self.neck(list(self.backbone(images_BCHW).values()))
        batch = (images_BCHW.shape[2], images_BCHW.shape[3])
        levels = Levels.of(sizes, batch, [(x.shape[2], x.shape[3]) for x in features], images_BCHW.device)
        cells = torch.cat([x.flatten(2) for x in features], 2).transpose(1, 2)
        return self.encoder(cells, self.positions(levels).to(cells), levels), levels

    def positions(self, levels: Levels) -> Tensor:
        """Of every cell, with what tells its level apart from others: ``(B, S, C)``."""
        rows, columns = self.config.position_temperatures
        channels, offset = self.config.channels, self.config.position_offset
        encoded = [
            masked_sine_positions(padding, channels, temperatures=(rows, columns), offset=offset) + level
            for padding, level in zip(levels.paddings, self.level_embed, strict=True)
        ]
        return torch.cat(encoded, 1)

    def select(self, memory_BSC: Tensor, levels: Levels) -> tuple[Tensor, Tensor, DINOOutputs]:
        """Queries ``(B, Q, C)``, logits of their boxes ``(B, Q, 4)``, and what the encoder says of these cells."""
        prior, kept = proposals(memory_BSC, levels)
        cells = self.memory_trans_norm(self.memory_trans_fc(kept))
        logits = self.bbox_head.classes(cells, -1)
        chosen = best(logits, self.config.num_queries)
        features = gather(cells, chosen)
        refined = self.bbox_head.boxes(features, -1) + gather(prior, chosen)
        encoder = DINOOutputs(gather(logits, chosen), refined.sigmoid())
        if self.query_embedding is None:
            return features.detach(), refined.detach(), encoder
        content = self.query_embedding.weight[: chosen.shape[1]].expand(chosen.shape[0], -1, -1)
        return content, refined.detach(), encoder

    def loss(self, batch: Batch[ObjectTarget]) -> dict[str, Tensor]:
        targets = objects_of(checked_objects(batch, self.config.num_classes), batch.sizes)
        denoised = sampled(targets, self.config.most_denoised)
        denoising: DenoisingQueries = self.dn_query_generator(denoised)
        outputs = self.training_outputs(batch.images, batch.sizes, denoising)
        return losses(outputs, targets, denoising.groups, denoised)

    def postprocess(
        self, outputs: DINOOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        results = []
        for logits, places, (height, width) in zip(outputs.logits, outputs.boxes, original_sizes, strict=True):
            scores = logits.sigmoid().flatten()
            score, index = scores.topk(min(self.config.max_per_image, len(scores)))
            kept = score >= self.config.score_threshold
            score, index = score[kept], index[kept]
            queries = index.div(logits.shape[1], rounding_mode="floor")
            corners = boxes.corners(places[queries]) * places.new_tensor([width, height, width, height])
            box = boxes.clip(corners, (height, width))
            names = self.class_names
            results.append(Detections(box, score, index % logits.shape[1], names, size=(height, width)))
        return results

    def predict_tensors(self, images_BCHW: Tensor, sizes_B2: Tensor, original_sizes_B2: Tensor) -> dict[str, Tensor]:
        outputs = self(images_BCHW, sizes_B2)
        flat = outputs.logits.sigmoid().flatten(1)
        scores, index = flat.topk(torch.sym_min(self.config.max_per_image, flat.shape[1]))
        classes = outputs.logits.shape[2]
        corners = boxes.corners(gather(outputs.boxes, index // classes))
        height_width = original_sizes_B2[:, None].to(corners)
        extent = height_width.flip(-1).repeat(1, 1, 2)
        box = boxes.clip(corners * extent, height_width)
        return boxes.objects(box, scores, index % classes, scores >= self.config.score_threshold)


def _initialize(part: nn.Module) -> None:
    """Xavier for every matrix, as in the original; deformable attention has its own start."""
    for parameter in part.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for module in part.modules():
        if isinstance(module, DeformableAttention):
            module.reset_parameters()
