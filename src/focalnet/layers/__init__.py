"""Deprecated name of ``focalnet.nn``."""

import warnings

from focalnet.nn import FocalModulation, FocalNetBlock, PatchEmbed

__all__ = ["FocalModulation", "FocalNetBlock", "PatchEmbed"]

warnings.warn("focalnet.layers is called focalnet.nn now", DeprecationWarning, stacklevel=2)
