"""The one backbone of every task, and the shapes the paper published."""

from focalnet.backbones.focalnet import FeatureInfo, FocalNet, FocalNetConfig, FocalNetTrunk
from focalnet.backbones.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "FeatureInfo", "FocalNet", "FocalNetConfig", "FocalNetTrunk", "Variant"]
