"""What an explanation is of: a class, a box, a mask, the pixels of a class, or a segment.

A target turns the outputs of a network into one differentiable score for each image of a batch. It asks only for the
results of a network, or for its scores of pixels, so it works with every network of the library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from focalnet.errors import ConfigError, InputError, did_you_mean
from focalnet.explanations.preparing import Prepared, forward, results
from focalnet.models import Model, ScoresPixels
from focalnet.models.base import check_finite
from focalnet.models.classifier import best_classes
from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, Result, SemanticMap
from focalnet.results.base import class_name


class Target(ABC):
    """One thing that a network says of an image.

    Attributes:
        label: class index.
        name: for people, e.g. ``"dog"`` or ``"2: dog"``.
    """

    label: int
    name: str

    @abstractmethod
    def scores(self, model: nn.Module, pixels: Tensor, prepared: Prepared) -> Tensor:
        """The score ``(B,)`` that gradients are taken of, for a batch of versions of the image.

        Args:
            model: in evaluation mode.
            pixels: ``(B, C, H, W)``, like ``prepared.pixels``.
            prepared: the original image.

        Raises:
            ConfigError: the network has no such scores.
        """

    def probabilities(self, model: nn.Module, pixels: Tensor, prepared: Prepared) -> Tensor:
        """The score ``(B,)`` between 0 and 1 that measures of faithfulness compare."""
        return self.scores(model, pixels, prepared)

    @abstractmethod
    def area(self, prepared: Prepared) -> float | None:
        """Pixels of the network's input that it covers; None for the whole image."""

    @abstractmethod
    def inside(self, prepared: Prepared) -> Tensor | None:
        """Bool ``(h, w)``, the pixels of the network's input (without padding) that it covers; None for all."""


@dataclass(frozen=True)
class ClassTarget(Target):
    """A class of a whole image: the logit of a classifier.

    Args:
        label: class index.
        name: of the class.
    """

    label: int
    name: str = ""

    def scores(self, model: nn.Module, pixels: Tensor, prepared: Prepared) -> Tensor:
        return self._logits(model, pixels, prepared)[:, self.label]

    def probabilities(self, model: nn.Module, pixels: Tensor, prepared: Prepared) -> Tensor:
        return class_probabilities(model, self._logits(model, pixels, prepared))[:, self.label]

    def area(self, prepared: Prepared) -> None:
        return None

    def inside(self, prepared: Prepared) -> None:
        return None

    def _logits(self, model: nn.Module, pixels: Tensor, prepared: Prepared) -> Tensor:
        logits = logits_of(forward(model, pixels, prepared.size))
        if not 0 <= self.label < logits.shape[1]:
            raise ConfigError(f"target: class {self.label} is not one of the {logits.shape[1]} of this network")
        return logits


@dataclass(frozen=True, eq=False)
class _ObjectTarget(Target):
    """An object: the score of the detection of its class that matches it best, times their intersection over union.

    This is the similarity of D-RISE (Petsiuk et al., CVPR 2021, arXiv 2006.03204) without the class vector. The factor
    counts as a constant for gradients, as boxes of queries and proposals have none; without a matching detection the
    score is 0.
    """

    label: int
    name: str = ""

    @abstractmethod
    def overlap(self, detections: Detections) -> Tensor:
        """Intersection over union ``(N,)`` with each detection."""

    def scores(self, model: nn.Module, pixels: Tensor, prepared: Prepared) -> Tensor:
        if not isinstance(model, Model) or model.config.output not in ("detection", "instance"):
            raise ConfigError(f"target: a {type(model).__name__} detects no objects: take ClassTarget or PixelsTarget")
        outputs = forward(model, pixels, prepared.size)
        found = results(model, outputs, prepared.size, prepared.original, len(pixels))
        return torch.stack([self._score(one) for one in found if isinstance(one, Detections)]).to(pixels.device)

    def _score(self, detections: Detections) -> Tensor:
        own = detections.labels == self.label
        if not own.any():
            return detections.scores.new_zeros(())
        with torch.no_grad():
            overlap = self.overlap(detections).to(detections.scores) * own
            best = (overlap * detections.scores).argmax()
        return detections.scores[best] * overlap[best]


@dataclass(frozen=True, eq=False)
class BoxTarget(_ObjectTarget):
    """An object by its box.

    Args:
        label: class index.
        box: x1 y1 x2 y2 in pixels of the original image.
        name: of the object.
    """

    box: tuple[float, float, float, float] = field(kw_only=True)

    def overlap(self, detections: Detections) -> Tensor:
        overlap: Tensor = box_iou(detections.boxes.new_tensor([self.box]), detections.boxes)[0]
        return overlap

    def area(self, prepared: Prepared) -> float:
        left, top, right, bottom = _to_input(self.box, prepared)
        return max(right - left, 0.0) * max(bottom - top, 0.0)

    def inside(self, prepared: Prepared) -> Tensor:
        left, top, right, bottom = _to_input(self.box, prepared)
        height, width = prepared.size
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
        return (y >= top) & (y < bottom) & (x >= left) & (x < right)


@dataclass(frozen=True, eq=False)
class MaskTarget(_ObjectTarget):
    """An object by its mask.

    Args:
        label: class index.
        mask: bool ``(height, width)`` of the original image.
        name: of the object.
    """

    mask: Tensor = field(kw_only=True, repr=False)

    def overlap(self, detections: Detections) -> Tensor:
        if detections.masks is None:
            raise ConfigError("target: this network predicts boxes without masks: take BoxTarget")
        mask = _checked(self.mask, detections.size).to(detections.masks.device)
        both = (detections.masks & mask).flatten(1).sum(1)
        either = (detections.masks | mask).flatten(1).sum(1)
        return both / either.clamp(min=1)

    def area(self, prepared: Prepared) -> float:
        return float(self.inside(prepared).sum())

    def inside(self, prepared: Prepared) -> Tensor:
        return _mask_at_input(self.mask, prepared)


@dataclass(frozen=True, eq=False)
class PixelsTarget(Target):
    """Pixels of a class, or a segment: the mean score of the class over these pixels.

    For gradients the score is the logit where the network has logits, as in Seg-Grad-CAM (Vinogradova et al., AAAI
    2020, arXiv 2002.11434), and the class score otherwise; for measures it is the probability of the class.

    Args:
        label: class index.
        mask: bool ``(height, width)`` of the original image.
        name: of the class or segment.
    """

    label: int
    name: str = ""
    mask: Tensor = field(kw_only=True, repr=False)

    def scores(self, model: nn.Module, pixels: Tensor, prepared: Prepared) -> Tensor:
        return self._mean(self._class_scores(model, pixels), prepared)

    def probabilities(self, model: nn.Module, pixels: Tensor, prepared: Prepared) -> Tensor:
        scores = self._class_scores(model, pixels).float()
        assert isinstance(model, ScoresPixels)
        if model.scores_are_logits:
            scores = scores.softmax(1)
        else:
            scores = scores / scores.sum(1, keepdim=True).clamp(min=1e-12)
        return self._mean(scores, prepared)

    def area(self, prepared: Prepared) -> float:
        return float(self.inside(prepared).sum())

    def inside(self, prepared: Prepared) -> Tensor:
        return _mask_at_input(self.mask, prepared)

    def _class_scores(self, model: nn.Module, pixels: Tensor) -> Tensor:
        if not isinstance(model, ScoresPixels):
            raise ConfigError(f"target: a {type(model).__name__} does not score pixels: take ClassTarget or BoxTarget")
        scores = model.class_scores(pixels)
        if not 0 <= self.label < scores.shape[1]:
            raise ConfigError(f"target: class {self.label} is not one of the {scores.shape[1]} of this network")
        return scores

    def _mean(self, scores: Tensor, prepared: Prepared) -> Tensor:
        height, width = prepared.size
        inside = self.inside(prepared).to(scores.device)
        return scores[:, self.label, :height, :width].float()[:, inside].mean(1)


def targets_of(result: Result) -> list[Target]:
    """Everything that a result says of its image, as targets: classes, objects or segments, best or largest first."""
    if isinstance(result, Classification | MultiLabel):
        return [ClassTarget(label, name) for label, name in zip(result.labels, result.names, strict=True)]
    if isinstance(result, Detections):
        return [_object(result, i) for i in range(len(result))]
    if isinstance(result, SemanticMap):
        return [PixelsTarget(i, result.name(i), mask=(result.labels == i).cpu()) for i in result.shares()]
    assert isinstance(result, PanopticMap)
    segments = sorted(result.segments, key=lambda segment: -segment.area)
    return [PixelsTarget(s.label, f"{s.id}: {result.name(s.label)}", mask=(result.ids == s.id).cpu()) for s in segments]


def resolve(
    model: nn.Module, prepared: Prepared, target: Target | int | str | None, result: Result | None = None
) -> Target:
    """The target that a user means.

    Args:
        model: in evaluation mode.
        prepared: the image.
        target: a target; the index or the name of a class; None for the best or largest that the network predicts.
        result: what the network predicts of the image, if it is known already.

    Raises:
        ConfigError: no such class, or none is predicted in the image.
    """
    if isinstance(target, Target):
        return target
    names = tuple(model.class_names) if isinstance(model, Model) else ()
    if isinstance(target, str):
        if target not in names:
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ConfigError(f'target: no class "{target}"{did_you_mean(target, names)}; there are: {known}')
        target = names.index(target)
    if isinstance(target, int) and _classifies(model):
        return ClassTarget(target, class_name(names, target))
    predicted = targets_of(result if result is not None else predict(model, prepared))
    for candidate in predicted:
        if target is None or candidate.label == target:
            return candidate
    what = "nothing" if target is None else f"no {class_name(names, target)}"
    raise ConfigError(
        f"target: the network predicts {what} in this image; give BoxTarget, MaskTarget or PixelsTarget to explain "
        "what it does not predict"
    )


@torch.no_grad()
def predict(model: nn.Module, prepared: Prepared) -> Result:
    """What the network predicts of the image; the five best classes for a classifier of another library."""
    outputs = forward(model, prepared.pixels, prepared.size)
    if isinstance(model, Model):
        return results(model, outputs, prepared.size, prepared.original, 1)[0]
    return ranking(logits_of(outputs))


def ranking(logits: Tensor) -> Classification:
    """The five best classes of a classifier that does not name them."""
    check_finite(logits)
    found: Classification = best_classes(logits.detach().cpu(), ())[0]
    return found


def logits_of(outputs: Any) -> Tensor:
    """The logits ``(B, N)`` of a classifier, of this library or another.

    Raises:
        ConfigError: the network is not a classifier.
    """
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ConfigError(
            "target: this network does not classify whole images; take BoxTarget, MaskTarget or PixelsTarget, and for "
            "a backbone the methods that need no target"
        )
    return logits


def class_probabilities(model: nn.Module, logits_BN: Tensor) -> Tensor:
    """What a classifier makes of its logits: a sigmoid of each for several labels an image, else a softmax."""
    several = isinstance(model, Model) and model.config.output == "multilabel"
    return logits_BN.float().sigmoid() if several else logits_BN.float().softmax(1)


def _classifies(model: nn.Module) -> bool:
    return not isinstance(model, Model) or model.config.classifies


def _object(detections: Detections, index: int) -> Target:
    label = int(detections.labels[index])
    name = f"{index + 1}: {detections.name(label)}"
    if detections.masks is not None:
        return MaskTarget(label, name, mask=detections.masks[index].cpu())
    left, top, right, bottom = detections.boxes[index].tolist()
    return BoxTarget(label, name, box=(left, top, right, bottom))


def _to_input(box: tuple[float, float, float, float], prepared: Prepared) -> tuple[float, float, float, float]:
    """A box of the original image in pixels of the network's input."""
    left, top, right, bottom = prepared.region
    x, y = prepared.size[1] / (right - left), prepared.size[0] / (bottom - top)
    return (box[0] - left) * x, (box[1] - top) * y, (box[2] - left) * x, (box[3] - top) * y


def _mask_at_input(mask: Tensor, prepared: Prepared) -> Tensor:
    """A mask of the original image at the size of the network's input; a small one keeps at least one pixel."""
    mask = _checked(mask, prepared.original)
    left, top, right, bottom = prepared.region
    height, width = prepared.size
    rows = ((torch.arange(height) + 0.5) * (bottom - top) / height + top).long().clamp(0, mask.shape[0] - 1)
    columns = ((torch.arange(width) + 0.5) * (right - left) / width + left).long().clamp(0, mask.shape[1] - 1)
    resized = mask.cpu()[rows][:, columns]
    if not resized.any():
        shares = F.interpolate(mask[None, None].float().cpu(), (height, width), mode="area")[0, 0]
        resized = shares == shares.max()
    return resized


def _checked(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if mask.dtype != torch.bool or mask.ndim != 2 or not mask.any():
        raise InputError(
            f"target: a mask is bool (height, width) with at least one pixel, got {mask.dtype} {tuple(mask.shape)}"
        )
    if tuple(mask.shape) != tuple(size):
        raise InputError(f"target: the mask has {tuple(mask.shape)} pixels, and the image {tuple(size)}")
    return mask
