"""What Lightning trains: one module per task, which joins a network, a loss and metrics and decides nothing else."""

from focalnet.tasks.classification import ClassificationTask
from focalnet.tasks.detection import DetectionTask
from focalnet.tasks.mix import MixConfig
from focalnet.tasks.optim import OptimizerConfig, ScheduleConfig
from focalnet.tasks.panoptic import PanopticTask
from focalnet.tasks.semantic import SemanticTask, SlideConfig

__all__ = [
    "ClassificationTask",
    "DetectionTask",
    "MixConfig",
    "OptimizerConfig",
    "PanopticTask",
    "ScheduleConfig",
    "SemanticTask",
    "SlideConfig",
]
