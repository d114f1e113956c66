"""UPerNet (Xiao et al., ECCV 2018, arXiv 1807.10221) as in ``segmentation/configs`` of microsoft/FocalNet."""

from focalnet.card import Preprocessing
from focalnet.models.base import ModelFamily
from focalnet.models.upernet.config import UPerNetConfig
from focalnet.models.upernet.layouts import OPENMMLAB
from focalnet.models.upernet.network import UPerNet, UPerNetOutputs, UPerNetTrainingOutputs
from focalnet.models.variants import dense_shape, dense_variants

__all__ = ["FAMILIES", "UPerNet", "UPerNetConfig", "UPerNetOutputs", "UPerNetTrainingOutputs"]

FAMILIES = (
    ModelFamily(
        name="upernet",
        file_kind="upernet",
        tasks=("semantic",),
        config=UPerNetConfig,
        variants=dense_variants("upernet", dense_shape),
        preprocessing=Preprocessing(image_size=512, max_size=2048, crop_pct=1.0, interpolation="bilinear"),
        labels="ade20k",
        layout=OPENMMLAB,
    ),
)
