"""A dict of maps to a dict of maps: what stands between a backbone and a dense head."""

from focalnet.necks.fpn import FPN, FPNConfig
from focalnet.necks.pyramid_pooling import PyramidPooling

__all__ = ["FPN", "FPNConfig", "PyramidPooling"]
