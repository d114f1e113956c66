"""A detector outside the library, as a user would write it: it predicts a class and a box for every cell.

The library only gets ``FAMILIES``; docs/design/new-network.md explains this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from focalnet.card import Preprocessing
from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models.backbone import FocalNet, FocalNetConfig
from focalnet.models.base import DetectorConfig, Model, ModelFamily, StateDictLayout, check_sizes
from focalnet.models.variants import Variant
from focalnet.ops import boxes
from focalnet.results import Detections
from focalnet.samples import Batch, ObjectTarget, Size


@dataclass(frozen=True, kw_only=True)
class CellsConfig(DetectorConfig):
    """A box of side ``anchor`` cells is the prior of each cell of the backbone's coarsest feature map."""

    anchor: float = 2.0

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> CellsConfig:
        raise ConfigError("this network has no configuration in another library: build CellsConfig yourself")

    def build(self) -> Cells:
        return fuse(Cells(self))


@dataclass(frozen=True)
class CellsOutputs:
    """Logits ``(B, classes, H, W)`` and deltas ``(B, 4, H, W)`` of each cell; priors ``(H W, 4)`` in pixels."""

    logits: Tensor
    deltas: Tensor
    priors: Tensor


class Cells(Model[CellsConfig, CellsOutputs]):
    """One linear layer on a feature map."""

    takes_sizes = True

    def __init__(self, config: CellsConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FocalNet(config.backbone)
        coarsest = self.backbone.feature_info[-1]
        self.stride = coarsest.stride
        self.cells_head = nn.Conv2d(coarsest.channels, config.num_classes + 4, 1)
        nn.init.constant_(self.cells_head.bias[: config.num_classes], -2.0)

    def forward(self, images_BCHW: Tensor, sizes: Sequence[Size]) -> CellsOutputs:
        check_sizes(images_BCHW, sizes)
        *_, x = self.backbone(images_BCHW).values()
        logits, deltas = self.cells_head(x).split((self.config.num_classes, 4), 1)
        rows, columns = (torch.arange(n, device=x.device) * float(self.stride) for n in x.shape[2:])
        corner = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
        return CellsOutputs(logits, deltas, torch.cat([corner, corner + self.config.anchor * self.stride], 1))

    def loss(self, batch: Batch[ObjectTarget]) -> dict[str, Tensor]:
        outputs = self(batch.images, batch.sizes)
        classes, places = torch.zeros_like(outputs.logits).flatten(2), []
        for i, target in enumerate(batch.targets):
            if len(target.labels):
                cells = box_iou(outputs.priors, target.boxes).argmax(0)
                classes[i, target.labels, cells] = 1.0
                wanted = boxes.encode(outputs.priors[cells], target.boxes, (1.0,) * 4)
                places.append(F.l1_loss(outputs.deltas.flatten(2)[i, :, cells].T, wanted))
        nothing = outputs.deltas.sum() * 0  # every parameter has a gradient, also without objects
        return {
            "loss_cls": F.binary_cross_entropy_with_logits(outputs.logits.flatten(2), classes),
            "loss_bbox": torch.stack(places).mean() if places else nothing,
        }

    def postprocess(
        self, outputs: CellsOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        results = []
        for logits, deltas, size, original in zip(outputs.logits, outputs.deltas, sizes, original_sizes, strict=True):
            scores, labels = logits.flatten(1).sigmoid().max(0)
            kept = scores > self.config.score_threshold
            places = boxes.decode(outputs.priors[kept], deltas.flatten(1).T[kept], (1.0,) * 4, size)
            box, score, label = boxes.best_per_class(
                places, scores[kept], labels[kept], iou_threshold=0.5, limit=self.config.max_per_image
            )
            results.append(Detections(boxes.resize(box, size, original), score, label, self.class_names, size=original))
        return results


def _from_state_dict(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> CellsConfig:
    return CellsConfig(backbone=backbone, num_classes=tensors["cells_head.bias"].shape[0] - 4)


_NANO = {"depths": (1, 1, 1), "embed_dim": 8, "focal_levels": (1, 1, 1), "focal_windows": (3, 3, 3), "patch_size": 2}

FAMILIES = (
    ModelFamily(
        name="cells",
        file_kind="cells",
        tasks=("detection",),
        config=CellsConfig,
        variants={"cells_focalnet_pico": Variant(_NANO | {"pad_to_stride": True}, 2, None)},
        preprocessing=Preprocessing(image_size=64, max_size=96, crop_pct=1.0, interpolation="bilinear"),
        layout=StateDictLayout("cells_head.weight", _from_state_dict),
    ),
)
