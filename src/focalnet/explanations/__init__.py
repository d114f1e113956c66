"""What a FocalNet attends to: gates, modulators, kernels, and where its answers come from."""

from focalnet.explanations.attribution import CONTROLS, DEFAULT_METHOD, METHODS, HeatMap, attribute
from focalnet.explanations.explaining import explain
from focalnet.explanations.explanation import BlockMaps, Explanation
from focalnet.explanations.fields import KernelProfile, kernel_profiles, receptive_field
from focalnet.explanations.preparing import Prepared, prepare
from focalnet.explanations.recording import BlockRecord, block_names, kernels, record
from focalnet.explanations.targets import BoxTarget, ClassTarget, MaskTarget, PixelsTarget, Target, targets_of

__all__ = [
    "CONTROLS",
    "DEFAULT_METHOD",
    "METHODS",
    "BlockMaps",
    "BlockRecord",
    "BoxTarget",
    "ClassTarget",
    "Explanation",
    "HeatMap",
    "KernelProfile",
    "MaskTarget",
    "PixelsTarget",
    "Prepared",
    "Target",
    "attribute",
    "block_names",
    "explain",
    "kernel_profiles",
    "kernels",
    "prepare",
    "receptive_field",
    "record",
    "targets_of",
]
