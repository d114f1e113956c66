"""What comes out of a model: one class for each task, in pixels of the original image."""

from focalnet.results.base import Result
from focalnet.results.classification import Classification, MultiLabel, RankedClass
from focalnet.results.detections import DetectedObject, Detections
from focalnet.results.panoptic_map import PanopticMap, Segment
from focalnet.results.semantic_map import ClassShare, SemanticMap

__all__ = [
    "ClassShare",
    "Classification",
    "DetectedObject",
    "Detections",
    "MultiLabel",
    "PanopticMap",
    "RankedClass",
    "Result",
    "Segment",
    "SemanticMap",
]
