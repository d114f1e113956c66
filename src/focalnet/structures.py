"""The old name of ``focalnet.results``, ``focalnet.samples`` and ``focalnet.card``."""

import warnings

from focalnet.card import ModelCard, Preprocessing
from focalnet.results import Classification, Detections, PanopticMap, Segment, SemanticMap
from focalnet.samples import IGNORED

__all__ = [
    "IGNORED",
    "Classification",
    "Detections",
    "ModelCard",
    "PanopticMap",
    "Preprocessing",
    "Segment",
    "SemanticMap",
]

warnings.warn(
    "focalnet.structures is divided: results are in focalnet.results, ModelCard and Preprocessing in focalnet.card, "
    "samples and batches in focalnet.samples",
    DeprecationWarning,
    stacklevel=2,
)
