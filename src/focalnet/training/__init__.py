"""What Lightning trains: one module per task, which joins a network, a loss and metrics and decides nothing else."""

from focalnet.training.optimizer import OptimizerConfig, ScheduleConfig
from focalnet.training.tasks.classification import ClassificationTask, MixConfig
from focalnet.training.tasks.detection import DetectionTask
from focalnet.training.tasks.multilabel import MultiLabelTask
from focalnet.training.tasks.panoptic import PanopticTask
from focalnet.training.tasks.semantic import SemanticTask, SlideConfig

__all__ = [
    "ClassificationTask",
    "DetectionTask",
    "MixConfig",
    "MultiLabelTask",
    "OptimizerConfig",
    "PanopticTask",
    "ScheduleConfig",
    "SemanticTask",
    "SlideConfig",
]
