"""What comes out of a model: one class for each task, in pixels of the original image."""

from focalnet.results.base import Result
from focalnet.results.classification import Classification
from focalnet.results.detections import Detections
from focalnet.results.panoptic_map import PanopticMap, Segment
from focalnet.results.semantic_map import SemanticMap

__all__ = ["Classification", "Detections", "PanopticMap", "Result", "Segment", "SemanticMap"]
