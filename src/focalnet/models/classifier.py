"""A FocalNet that names what an image shows: pool the last map, one linear layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models.backbone import FocalNetConfig, FocalNetTrunk, init_weights
from focalnet.results import Classification


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A backbone's shape and the number of classes (0: the classifier returns pooled features)."""

    backbone: FocalNetConfig
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ConfigError(f"num_classes={self.num_classes} must be 0 (pooled features) or more")

    @classmethod
    def from_official(cls, mapping: Mapping[str, Any]) -> Self:
        """From the official classifier's constructor arguments or parsed YAML; see ``FocalNetConfig.from_official``."""
        classes = mapping["MODEL"].get("NUM_CLASSES", 1000) if "MODEL" in mapping else mapping.get("num_classes", 1000)
        return cls(backbone=FocalNetConfig.from_official(mapping), num_classes=classes)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(backbone=FocalNetConfig.from_dict(mapping["backbone"]), num_classes=mapping["num_classes"])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists: what a weights file stores."""
        return dataclasses.asdict(self)

    def build(self) -> Classifier:
        """Builds the classifier with random weights, its operations fused (``Classifier(config)`` is the plain one)."""
        return fuse(Classifier(self))


class Classifier(FocalNetTrunk):
    """Logits of an image. Its state dict is the official classification release's, key for key."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config.backbone)
        self.num_classes = config.num_classes
        self.num_features = config.backbone.channels[-1]
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self._new_head()
        init_weights(self)

    @property
    def classifier_config(self) -> ClassifierConfig:
        return ClassifierConfig(backbone=self.config, num_classes=self.num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns logits ``(B, num_classes)``, or pooled features ``(B, num_features)`` with ``num_classes=0``."""
        logits: torch.Tensor = self.head(self.forward_features(images_BCHW).mean((1, 2)))
        return logits

    def forward_features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns the last map with the final norm, ``(B, H, W, num_features)``."""
        *_, last = self.forward_stages(images_BCHW)
        normed: torch.Tensor = self.norm(last)
        return normed

    def macs(self, height: int, width: int) -> int:
        head = self.num_features * self.num_classes
        return super().macs(height, width) + head

    def get_classifier(self) -> nn.Module:
        """The head (timm's protocol)."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head by a new one, as for finetuning; 0 removes it."""
        self.num_classes = ClassifierConfig(backbone=self.config, num_classes=num_classes).num_classes
        self.head = self._new_head().to(self.norm.weight)
        init_weights(self.head)

    def _new_head(self) -> nn.Module:
        return nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()


def postprocess(logits: torch.Tensor, class_names: Sequence[str], top_k: int = 5) -> list[Classification]:
    """Turns logits ``(B, N)`` into one ``Classification`` an image: the ``top_k`` best, softmax scores."""
    scores, labels = logits.float().softmax(1).topk(min(top_k, logits.shape[1]))
    return [
        Classification(labels=tuple(row), scores=tuple(values), names=tuple(class_names[i] for i in row))
        for row, values in zip(labels.tolist(), scores.tolist(), strict=True)
    ]
