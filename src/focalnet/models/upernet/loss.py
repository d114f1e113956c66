"""The losses of UPerNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from focalnet.samples import IGNORED

if TYPE_CHECKING:
    from focalnet.models.upernet import UPerNetConfig, UPerNetTrainingOutputs


def losses(config: UPerNetConfig, outputs: UPerNetTrainingOutputs, labels_BHW: Tensor) -> dict[str, Tensor]:
    """Cross entropy of the classes of both heads, by mmseg's names.

    Args:
        config: for the weight of the auxiliary head's.
        outputs: of the network.
        labels_BHW: int64, ``IGNORED`` where nothing is known; of the size of the images.
    """
    return {
        "decode.loss_ce": pixelwise_cross_entropy(outputs.logits, labels_BHW),
        "aux.loss_ce": config.auxiliary_weight * pixelwise_cross_entropy(outputs.auxiliary, labels_BHW),
    }


def pixelwise_cross_entropy(logits_BNhw: Tensor, labels_BHW: Tensor) -> Tensor:
    """Cross entropy of logits resized bilinearly to the labels; ignored pixels add nothing, but count.

    mmseg divides by all pixels, so that a batch with little to learn from changes the network little.
    """
    size = (labels_BHW.shape[1], labels_BHW.shape[2])
    logits_BNHW = F.interpolate(logits_BNhw.float(), size=size, mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits_BNHW, labels_BHW, ignore_index=IGNORED, reduction="sum")
    return total / max(labels_BHW.numel(), 1)
