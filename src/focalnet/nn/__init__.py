"""The modules of FocalNets, written as the papers have them.

Feature maps are channels-last, (B, H, W, C), from the stem to the last stage. Nothing in here is about speed:
``focalnet.kernels`` makes the same modules fast. The leaves are PyTorch's own layers.
"""

from focalnet.nn.block import FocalNetBlock
from focalnet.nn.mlp import Mlp
from focalnet.nn.modulation import FocalModulation
from focalnet.nn.patch_embed import PatchEmbed

__all__ = ["FocalModulation", "FocalNetBlock", "Mlp", "PatchEmbed"]
