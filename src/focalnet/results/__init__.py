"""What comes out of a network: one class for each kind of result, in pixels of the original image."""

from focalnet.results.classification import Classification
from focalnet.results.detections import Detections
from focalnet.results.panoptic_map import PanopticMap, Segment
from focalnet.results.semantic_map import SemanticMap

__all__ = ["Classification", "Detections", "PanopticMap", "Segment", "SemanticMap"]
