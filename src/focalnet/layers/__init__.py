"""Modules shared by every network. Maps are channels-last, (B, H, W, C), from the stem to the last stage."""

from focalnet.layers.block import FocalNetBlock
from focalnet.layers.modulation import FocalModulation
from focalnet.layers.norm import LayerNorm
from focalnet.layers.patch import PatchEmbed
from focalnet.layers.straight import StraightBlocks

__all__ = ["FocalModulation", "FocalNetBlock", "LayerNorm", "PatchEmbed", "StraightBlocks"]
