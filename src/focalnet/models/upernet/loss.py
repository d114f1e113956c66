"""The losses of UPerNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from focalnet.samples import IGNORED

if TYPE_CHECKING:
    from focalnet.models.upernet import UPerNetConfig, UPerNetTrainingOutputs


def losses(config: UPerNetConfig, outputs: UPerNetTrainingOutputs, labels_BHW: Tensor) -> dict[str, Tensor]:
    """Cross entropy of both heads, under mmseg's names.

    Args:
        config: gives the weight of the auxiliary loss.
        outputs: outputs of the network.
        labels_BHW: int64, at the size of the images; ``IGNORED`` for unlabeled pixels.
    """
    return {
        "decode.loss_ce": pixelwise_cross_entropy(outputs.logits, labels_BHW),
        "aux.loss_ce": config.auxiliary_weight * pixelwise_cross_entropy(outputs.auxiliary, labels_BHW),
    }


def pixelwise_cross_entropy(logits_BNhw: Tensor, labels_BHW: Tensor) -> Tensor:
    """Cross entropy of logits resized bilinearly to the labels' size, averaged over all pixels, ignored ones included.

    As in mmseg, ignored pixels have zero loss but count in the mean.
    """
    size = (labels_BHW.shape[1], labels_BHW.shape[2])
    logits_BNHW = F.interpolate(logits_BNhw.float(), size=size, mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits_BNHW, labels_BHW, ignore_index=IGNORED, reduction="sum")
    return total / max(labels_BHW.numel(), 1)
