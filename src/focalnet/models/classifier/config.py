"""Configuration of the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import ModelConfig, Output, TaskName
from focalnet.models.plain import check_types

if TYPE_CHECKING:
    from focalnet.models.classifier.network import Classifier


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(ModelConfig):
    """Configuration of a classifier.

    Args:
        backbone: configuration of the backbone.
        num_classes: number of classes; 0: the classifier returns pooled features.
        multi_label: whether an image can have any number of the classes, each with a sigmoid of its own, instead of
            exactly one, by a softmax.
    """

    backbone: FocalNetConfig
    num_classes: int = 1000
    multi_label: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_classes < 0:
            raise ConfigError(f"num_classes={self.num_classes} must be 0 (pooled features) or more")

    @property
    def output(self) -> Output:
        return "multilabel" if self.multi_label else "classification"

    def for_task(self, task: TaskName, num_things: int | None = None) -> Self:
        return replace(self, multi_label=task == "multilabel")

    def is_trained_for(self, task: TaskName) -> bool:
        return self.multi_label == (task == "multilabel")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without ``multi_label`` where it is not set, so that earlier versions read the file, too."""
        plain = super().to_dict()
        if not self.multi_label:
            del plain["multi_label"]
        return plain

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        """Converts the official constructor arguments or parsed YAML; see ``FocalNetConfig.from_official``."""
        classes = model["MODEL"].get("NUM_CLASSES", 1000) if "MODEL" in model else model.get("num_classes", 1000)
        return cls(backbone=FocalNetConfig.from_official(model), num_classes=classes)

    def build(self) -> Classifier:
        """Builds the classifier with random weights and fused operations; ``Classifier(config)`` builds it unfused."""
        from focalnet.models.classifier.network import Classifier  # built from this configuration

        return fuse(Classifier(self))
