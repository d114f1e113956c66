"""Sparse R-CNN (Sun et al., CVPR 2021, arXiv 2011.12450): learned boxes, refined stage by stage, without NMS.

Shapes: B batch, P proposals per image, C channels, F channels of the dynamic convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from focalnet.models.backbone import FocalNet
from focalnet.models.base import Model, check_sizes
from focalnet.models.sparse_rcnn.config import SparseRCNNConfig
from focalnet.models.sparse_rcnn.loss import losses
from focalnet.models.targets import checked_objects
from focalnet.nn.feed_forward import FeedForward
from focalnet.ops import boxes, rois
from focalnet.ops.derivatives import attention_of_any_order
from focalnet.results import Detections
from focalnet.samples import Batch, ObjectTarget, Size

GRID = 7  # side of the grid of a pooled region
SAMPLES = 2  # sampling points per bin and axis
_PRIOR = 0.01  # initial probability of an object, which sets the classifier's bias


@dataclass(frozen=True)
class SparseStage:
    """Outputs of a stage.

    Args:
        logits: ``(B, P, classes)``.
        boxes: ``(B, P, 4)``, in pixels of the input, not clipped to the image.
        objects: ``(B, P, C)``, object features of each proposal.
    """

    logits: Tensor
    boxes: Tensor
    objects: Tensor


@dataclass(frozen=True)
class SparseRCNNOutputs:
    """Outputs of the stages, in order, and sizes of the images ``(B, 2)``, height and width."""

    stages: list[SparseStage]
    sizes: Tensor


class Proposals(nn.Module):
    """The learned boxes, center and size in units of the image, and the learned initial object features."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.init_proposal_bboxes = nn.Embedding(count, 4)
        self.init_proposal_features = nn.Embedding(count, channels)
        with torch.no_grad():  # every proposal starts as the whole image
            self.init_proposal_bboxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(count, 4))

    def forward(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, P, 4)`` in images of ``sizes`` ``(B, 2)``, and features ``(B, P, C)``."""
        center, size = self.init_proposal_bboxes.weight.float().chunk(2, -1)
        relative = torch.cat([center - size / 2, center + size / 2], -1)
        scale = sizes.flip(-1).repeat(1, 2)[:, None]
        return relative * scale, self.init_proposal_features.weight.expand(sizes.shape[0], -1, -1)


class Attention(nn.Module):
    """Self-attention between the proposals of an image, with a residual sum."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BPC: Tensor) -> Tensor:
        with attention_of_any_order():
            attended, _ = self.attn(x_BPC, x_BPC, x_BPC, need_weights=False)
        out: Tensor = x_BPC + self.dropout(attended)
        return out


class DynamicConv(nn.Module):
    """Applies two 1x1 convolutions to a region, with weights predicted from the proposal's object features."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.shape = (channels, hidden)
        self.dynamic_layer = nn.Linear(channels, 2 * channels * hidden)
        self.norm_in = nn.LayerNorm(hidden)
        self.norm_out = nn.LayerNorm(channels)
        self.fc_layer = nn.Linear(channels * GRID**2, channels)
        self.fc_norm = nn.LayerNorm(channels)

    def forward(self, objects: Tensor, regions: Tensor) -> Tensor:
        """From ``(K, C)`` and regions ``(K, C, 7, 7)`` to ``(K, C)``."""
        channels, hidden = self.shape
        first_weight, second_weight = self.dynamic_layer(objects).chunk(2, 1)
        x = regions.flatten(2).transpose(1, 2)
        x = self.norm_in(x @ first_weight.reshape(-1, channels, hidden).to(x)).relu()
        x = self.norm_out(x @ second_weight.reshape(-1, hidden, channels).to(x)).relu()
        out: Tensor = self.fc_norm(self.fc_layer(x.flatten(1))).relu()
        return out


class Stage(nn.Module):
    """Self-attention between proposals, dynamic convolution on their regions, then prediction of classes and boxes."""

    def __init__(self, config: SparseRCNNConfig) -> None:
        super().__init__()
        channels = config.neck.channels
        self.attention = Attention(channels, config.heads, config.dropout)
        self.attention_norm = nn.LayerNorm(channels)
        self.instance_interactive_conv = DynamicConv(channels, config.dynamic_channels)
        self.instance_interactive_conv_dropout = nn.Dropout(config.dropout)
        self.instance_interactive_conv_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, config.feedforward_channels, config.dropout)
        self.ffn_norm = nn.LayerNorm(channels)
        self.cls_fcs = _layers(channels, config.class_layers)
        self.reg_fcs = _layers(channels, config.box_layers)
        self.fc_cls = nn.Linear(channels, config.num_classes)
        self.fc_reg = nn.Linear(channels, 4)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.fc_cls.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, objects: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From object features ``(B, P, C)`` and regions ``(B P, C, 7, 7)`` to logits, deltas, new object features."""
        objects = self.attention_norm(self.attention(objects))
        flat = objects.flatten(0, 1)
        interacted = self.instance_interactive_conv_dropout(self.instance_interactive_conv(flat, regions))
        flat = self.ffn_norm(self.ffn(self.instance_interactive_conv_norm(flat + interacted)))
        cls_features, reg_features = flat, flat
        for layer in self.cls_fcs:
            cls_features = layer(cls_features)
        for layer in self.reg_fcs:
            reg_features = layer(reg_features)
        shape = objects.shape[:2]
        logits, deltas = self.fc_cls(cls_features).float(), self.fc_reg(reg_features).float()
        return logits.unflatten(0, shape), deltas.unflatten(0, shape), flat.unflatten(0, shape)


class Stages(nn.Module):
    """Holds the stages under OpenMMLab's names."""

    def __init__(self, config: SparseRCNNConfig) -> None:
        super().__init__()
        self.bbox_head = nn.ModuleList(Stage(config) for _ in range(config.stages))


class SparseRCNN(Model[SparseRCNNConfig, SparseRCNNOutputs]):
    """Detector that refines learned proposals in a fixed number of stages."""

    takes_sizes = True

    def __init__(self, config: SparseRCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FocalNet(config.backbone)
        self.neck = config.neck.build(self.backbone.feature_info)
        self.strides = [m.stride for m in self.neck.feature_info]
        self.rpn_head = Proposals(config.proposals, config.neck.channels)
        self.roi_head = Stages(config)

    def forward(self, images_BCHW: Tensor, sizes: Sequence[Size] | Tensor) -> SparseRCNNOutputs:
        check_sizes(images_BCHW, sizes)
        pyramid = list(self.neck(self.backbone(images_BCHW)).values())
        extents = torch.as_tensor(sizes, device=images_BCHW.device, dtype=torch.float32)
        box, objects = self.rpn_head(extents)
        stages = []
        for stage in self.roi_head.bbox_head:
            regions = rois.pool(pyramid, self.strides, rois.batch_to_rois(box), GRID, SAMPLES)
            logits, deltas, objects = stage(objects, regions)
            box = boxes.decode(box, deltas, self.config.stds)
            stages.append(SparseStage(logits, box, objects))
            box = box.detach()  # no gradient flows through the boxes to earlier stages
        return SparseRCNNOutputs(stages, extents)

    def loss(self, batch: Batch[ObjectTarget]) -> dict[str, Tensor]:
        targets = checked_objects(batch, self.config.num_classes)
        return losses(self.config, self(batch.images, batch.sizes), targets)

    def postprocess(
        self, outputs: SparseRCNNOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        last, results = outputs.stages[-1], []
        for logits, box, size, original in zip(last.logits, last.boxes, sizes, original_sizes, strict=True):
            scores, best = logits.sigmoid().flatten().topk(min(self.config.max_per_image, logits.numel()))
            best = best[scores > self.config.score_threshold]
            kept = boxes.resize(box[best // logits.shape[1]], size, original)
            results.append(
                Detections(kept, scores[: len(best)], best % logits.shape[1], self.class_names, size=original)
            )
        return results

    def predict_tensors(self, images_BCHW: Tensor, sizes_B2: Tensor, original_sizes_B2: Tensor) -> dict[str, Tensor]:
        last = self(images_BCHW, sizes_B2).stages[-1]
        flat, classes = last.logits.sigmoid().flatten(1), last.logits.shape[2]
        scores, best = flat.topk(min(self.config.max_per_image, flat.shape[1]))
        box = last.boxes.gather(1, (best // classes)[..., None].expand(-1, -1, 4))
        box = boxes.resize_batch(box, sizes_B2, original_sizes_B2)
        return boxes.objects(box, scores, best % classes, scores > self.config.score_threshold)


def _layers(channels: int, count: int) -> nn.ModuleList:
    layers = ((nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()) for _ in range(count))
    return nn.ModuleList(chain.from_iterable(layers))
