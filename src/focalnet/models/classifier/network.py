"""Image classifier: a FocalNet whose last feature map is pooled and fed to a linear layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from focalnet.card import Preprocessing
from focalnet.errors import ConfigError
from focalnet.models.backbone import FocalNetBase, init_weights
from focalnet.models.base import Model, enough_memory
from focalnet.models.classifier.config import ClassifierConfig
from focalnet.models.targets import checked_classes
from focalnet.results import Classification, MultiLabel
from focalnet.results.base import class_name
from focalnet.results.classification import THRESHOLD
from focalnet.samples import Batch, Size


class Classifier(FocalNetBase, Model[ClassifierConfig, torch.Tensor]):
    """Image classifier. It is its own backbone, so that its state dict is that of the official release."""

    output_fmt = "NHWC"  # of forward_features (timm's protocol)

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config.backbone)
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = config.backbone.channels[-1]
        self.norm = nn.LayerNorm(self.num_features)
        self.head = _new_head(config)
        init_weights(self)

    @property
    def backbone(self) -> FocalNetBase:  # type: ignore[override]  # an attribute in other networks
        """The classifier itself."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Finds ``classifier_config``, the old name of ``config``; a property would be read by ``torch.jit.trace``."""
        if name == "classifier_config":
            warnings.warn("classifier_config is called config now", DeprecationWarning, stacklevel=2)
            return self.config
        return super().__getattr__(name)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns logits ``(B, num_classes)``, or pooled features ``(B, num_features)`` with ``num_classes=0``."""
        logits: torch.Tensor = self.head(self.forward_features(images_BCHW).mean((1, 2)))
        return logits

    def postprocess(self, outputs: torch.Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[Any]:
        """The five best classes of each image; of a multi-label classifier all with a score of 0.5 or more."""
        if self.config.multi_label:
            return likely_classes(outputs, self.class_names)
        return best_classes(outputs, self.class_names)

    def predict_tensors(
        self, images_BCHW: torch.Tensor, sizes_B2: torch.Tensor, original_sizes_B2: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {"logits": self(images_BCHW)}

    def loss(self, batch: Batch[int]) -> dict[str, torch.Tensor]:
        """Cross entropy with class indices ``(B,)`` or class probabilities ``(B, num_classes)`` as targets.

        Of a multi-label classifier, binary cross entropy with targets ``(B, num_classes)``, 0 to 1, a mean over both.
        """
        logits = self(batch.images.contiguous(memory_format=torch.channels_last)).float()
        num_classes = 0 if type(self.head) is nn.Identity else logits.shape[1]  # a head may have been replaced
        targets = checked_classes(batch, num_classes, multi_label=self.config.multi_label)
        if self.config.multi_label:
            return {"loss": F.binary_cross_entropy_with_logits(logits, targets.to(logits))}
        return {"loss": F.cross_entropy(logits, targets)}

    def forward_features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns the last feature map after the final norm, ``(B, H, W, num_features)``."""
        *_, last = self.forward_stages(images_BCHW)
        normed: torch.Tensor = self.norm(last)
        return normed

    def macs(self, height: int, width: int) -> int:
        head = self.num_features * self.num_classes
        return super().macs(height, width) + head

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm's ``resolve_model_data_config`` needs to prepare images as the card says (timm's protocol)."""
        how = self.card.preprocessing if self.card else Preprocessing()
        return {
            "num_classes": self.num_classes,
            "input_size": (len(how.mean), *how.crop),
            "interpolation": how.interpolation,
            "crop_pct": how.crop_pct,
            "crop_mode": "squash" if how.fit == "squash" else "center",
            "mean": how.mean,
            "std": how.std,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": self.card.licence if self.card else None,
            "label_names": self.class_names or None,
        }

    def get_classifier(self) -> nn.Module:
        """The head (timm's protocol)."""
        return self.head

    def forward_head(self, x_BHWC: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits of what ``forward_features`` returns, or its mean alone (timm's protocol)."""
        pooled = x_BHWC.mean((1, 2))
        return pooled if pre_logits else self.head(pooled)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a new one, for finetuning; 0 removes it.

        The card keeps no names of classes and no metrics, which were those of the old head.

        Args:
            num_classes: of the new head.
            global_pool: timm's name of the pooling, which is always ``"avg"`` here.

        Raises:
            ConfigError: another pooling, or a number that is not one of classes or does not fit into memory. The
                classifier is then unchanged.
        """
        if global_pool not in (None, "avg"):
            raise ConfigError(f'global_pool="{global_pool}" must be "avg"; forward_features gives what is not pooled')
        config = replace(self.config, num_classes=num_classes)
        with enough_memory():
            head = _new_head(config).to(self.norm.weight)
        init_weights(head)
        self.config, self.num_classes, self.head = config, num_classes, head
        if self.card is not None:
            self.card = replace(self.card, class_names=(), category_ids=(), metrics={})


def _new_head(config: ClassifierConfig) -> nn.Module:
    return nn.Linear(config.backbone.channels[-1], config.num_classes) if config.num_classes else nn.Identity()


def _check_names(logits_BN: torch.Tensor, class_names: Sequence[str]) -> None:
    """Refuses names of another head: those that it shares would name the wrong classes."""
    if class_names and len(class_names) != logits_BN.shape[1]:
        raise ConfigError(
            f"the head has {logits_BN.shape[1]} outputs, but the model's configuration and card are of "
            f"{len(class_names)} classes: change the number of classes with reset_classifier or "
            "focalnet.load(..., num_classes=...)"
        )


def best_classes(logits_BN: torch.Tensor, class_names: Sequence[str], top_k: int = 5) -> list[Classification]:
    """The ``top_k`` best classes of each image, with softmax scores.

    Args:
        logits_BN: logits of the N classes.
        class_names: names by index; if empty, ``"class 0"``, ...
        top_k: maximum number of classes per image.

    Raises:
        ConfigError: the names are those of another number of classes.
    """
    _check_names(logits_BN, class_names)
    scores, labels = logits_BN.float().softmax(1).topk(min(top_k, logits_BN.shape[1]))
    names = tuple(class_names)
    return [
        Classification(tuple(row), tuple(values), tuple(class_name(names, i) for i in row), logits=logits)
        for row, values, logits in zip(labels.tolist(), scores.tolist(), logits_BN, strict=True)
    ]


def likely_classes(
    logits_BN: torch.Tensor, class_names: Sequence[str], threshold: float = THRESHOLD
) -> list[MultiLabel]:
    """The classes of each image with a sigmoid score of at least a threshold, best first; there may be none.

    Args:
        logits_BN: logits of the N classes.
        class_names: names by index; if empty, ``"class 0"``, ...
        threshold: lowest score of a class, 0 to 1.

    Raises:
        ConfigError: as for ``best_classes``.
    """
    _check_names(logits_BN, class_names)
    names, results = tuple(class_names), []
    for logits, scores in zip(logits_BN, logits_BN.float().sigmoid(), strict=True):
        order = scores.argsort(descending=True, stable=True)
        labels = order[scores[order] >= threshold].tolist()
        results.append(
            MultiLabel(
                tuple(labels),
                tuple(scores[labels].tolist()),
                tuple(class_name(names, label) for label in labels),
                logits=logits,
            )
        )
    return results
