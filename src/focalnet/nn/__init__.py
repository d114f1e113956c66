"""The modules of FocalNets, written as in the papers, from PyTorch's own layers.

Feature maps are channels-last, (B, H, W, C), from the stem to the last stage. Nothing here is optimized for speed:
``focalnet.kernels`` has fused versions of these modules.
"""

from focalnet.nn.block import FocalNetBlock
from focalnet.nn.mlp import Mlp
from focalnet.nn.modulation import FocalModulation
from focalnet.nn.patch_embed import PatchEmbed

__all__ = ["FocalModulation", "FocalNetBlock", "Mlp", "PatchEmbed"]
