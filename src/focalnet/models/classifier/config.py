"""Configuration of the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import ModelConfig, Output

if TYPE_CHECKING:
    from focalnet.models.classifier.network import Classifier


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(ModelConfig):
    """Configuration of the backbone and number of classes (0: the classifier returns pooled features)."""

    backbone: FocalNetConfig
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ConfigError(f"num_classes={self.num_classes} must be 0 (pooled features) or more")

    @property
    def output(self) -> Output:
        return "classification"

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        """Converts the official constructor arguments or parsed YAML; see ``FocalNetConfig.from_official``."""
        classes = model["MODEL"].get("NUM_CLASSES", 1000) if "MODEL" in model else model.get("num_classes", 1000)
        return cls(backbone=FocalNetConfig.from_official(model), num_classes=classes)

    def build(self) -> Classifier:
        """Builds the classifier with random weights and fused operations; ``Classifier(config)`` builds it unfused."""
        from focalnet.models.classifier.network import Classifier  # built from this configuration

        return fuse(Classifier(self))
