"""UPerNet (Xiao et al., ECCV 2018, arXiv 1807.10221)."""

from focalnet.models.upernet.config import UPerNetConfig
from focalnet.models.upernet.network import UPerNet, UPerNetOutputs, UPerNetTrainingOutputs

__all__ = ["UPerNet", "UPerNetConfig", "UPerNetOutputs", "UPerNetTrainingOutputs"]
