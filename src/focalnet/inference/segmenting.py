"""The old place of ``slide``, which is in ``focalnet.inference.tta``."""

import warnings

from focalnet.inference.tta import slide

__all__ = ["slide"]

warnings.warn(
    "focalnet.inference.segmenting.slide is focalnet.inference.tta.slide now", DeprecationWarning, stacklevel=2
)
