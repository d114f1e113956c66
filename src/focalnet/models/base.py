"""What all dense networks share: how a configuration becomes plain values and back, and what they can be asked."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor, nn
from typing_extensions import Self

from focalnet.card import ModelCard
from focalnet.errors import ConfigError, InputError, did_you_mean
from focalnet.models.backbone import FocalNet, FocalNetConfig
from focalnet.results import Detections, PanopticMap, SemanticMap
from focalnet.samples import ObjectTarget

Size = tuple[int, int]  # height and width in pixels
Method = Literal["rcnn", "atss", "sparse_rcnn", "upernet", "mask2former"]
T = TypeVar("T")


def from_plain(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Builds a dataclass, and those within it, from what ``dataclasses.asdict`` or a YAML gives.

    Raises:
        ConfigError: a name the dataclass does not have.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            name = cls.__name__.removesuffix("Config")
            raise ConfigError(f'{name} has no option "{key}"{did_you_mean(key, known)}')
    return cls(**{key: _as(hints[key], value) for key, value in mapping.items()})


def _as(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_plain(kind, value)  # type: ignore[arg-type]
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_as(get_args(kind)[0], item) for item in value)
    return value


@dataclass(frozen=True, kw_only=True)
class DenseConfig(ABC):
    """What the configuration of every network that finds something in an image has.

    Args:
        backbone: its shape; ``pad_to_stride=True`` is how the published networks treat odd sizes.
        num_classes: of objects, or of pixels; background is none of them.
        size_divisor: images are padded to a multiple of it when batched.
    """

    method: ClassVar[Method]
    kind: ClassVar[Literal["detector", "segmenter"]]

    backbone: FocalNetConfig
    num_classes: int = 80
    size_divisor: int = 32

    def __post_init__(self) -> None:
        for name in ("num_classes", "size_divisor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    @classmethod
    @abstractmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        """From the ``model`` of an mmdet or mmseg configuration with FocalNet as its backbone.

        Raises:
            ConfigError: a part that this network does not have.
        """

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return from_plain(cls, mapping)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tuples: what a weights file stores."""
        return dataclasses.asdict(self)

    @abstractmethod
    def build(self) -> DenseModel[Any]:
        """Builds the network with random weights."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(DenseConfig):
    """What every detector's configuration has.

    Args:
        backbone: its shape.
        num_classes: of objects.
        size_divisor: images are padded to a multiple of it when batched.
        score_threshold: predictions below are not reported.
        max_per_image: at most so many objects are.
    """

    kind = "detector"

    score_threshold: float = 0.05
    max_per_image: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_per_image < 1:
            raise ConfigError(f"max_per_image={self.max_per_image} must be at least 1")
        if not 0 <= self.score_threshold < 1:
            raise ConfigError(f"score_threshold={self.score_threshold} must be in [0, 1)")

    @abstractmethod
    def build(self) -> Detector[Any, Any, Any]:
        """Builds the detector with random weights."""


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(DenseConfig):
    """What the configuration of every network that segments whole images has."""

    kind = "segmenter"

    @property
    def segments(self) -> str:
        """What it makes of an image: a ``"semantic"`` map, ``"instance"`` masks, or a ``"panoptic"`` map."""
        return "semantic"

    @abstractmethod
    def build(self) -> Segmenter[Any, Any, Any]:
        """Builds the network with random weights."""


C = TypeVar("C", bound=DenseConfig)
O = TypeVar("O")  # noqa: E741  # what the network gives
TO = TypeVar("TO")  # what it gives in training


class DenseModel(nn.Module, ABC, Generic[C]):
    """Finds something in a batch of images that are padded with zeros at the right and the bottom."""

    backbone: FocalNet

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config
        self.card: ModelCard | None = None  # set by whoever loads or trains the weights

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class index; empty where unknown."""
        return self.card.class_names if self.card else ()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's (timm's protocol, for layer-wise learning-rate decay); neck and heads are above its layers."""
        matcher = self.backbone.group_matcher(coarse)

        def within(pattern: str) -> str:
            return r"^backbone\." + pattern.removeprefix("^")

        blocks = [(within(pattern), place) for pattern, place in matcher["blocks"]]
        return {"stem": within(matcher["stem"]), "blocks": blocks}


class Detector(DenseModel[C], Generic[C, O, TO]):
    """Finds the objects in each image.

    State dicts have OpenMMLab's names: a released detection checkpoint's ``state_dict`` loads as it is.
    """

    @abstractmethod
    def forward(self, images_BCHW: Tensor, sizes: Sequence[Size]) -> O:
        """Returns what the heads say, before any object is picked.

        Args:
            images_BCHW: normalised, padded.
            sizes: height and width of each image before padding.
        """

    @abstractmethod
    def training_outputs(self, images_BCHW: Tensor, sizes: Sequence[Size], targets: Sequence[ObjectTarget]) -> TO:
        """Returns what ``losses.detection.criterion(model.config)`` takes."""

    @abstractmethod
    def postprocess(self, outputs: O, sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[Detections]:
        """Picks the objects of each image; boxes and masks are in pixels of the original images."""

    def detect(self, images_BCHW: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[Detections]:
        """The objects of each image, best first, in pixels of the original image.

        Args:
            images_BCHW: normalised, padded.
            sizes: height and width of each image before padding.
            original_sizes: height and width of each image before it was resized.
        """
        return self.postprocess(self(images_BCHW, sizes), sizes, original_sizes)


class Segmenter(DenseModel[C], Generic[C, O, TO]):
    """Says of every pixel what it is, or finds objects by masks alone."""

    scores_are_logits: ClassVar[bool] = True  # of class_scores; else a mean of several is one of the same kind

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> O:
        """Returns what the head says, before anything is decided; images are normalised and padded."""

    @abstractmethod
    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """What speaks for each class at each pixel of the input, ``(B, num_classes, H, W)``; the highest wins."""

    @abstractmethod
    def training_outputs(self, images_BCHW: Tensor) -> TO:
        """Returns what ``losses.segmentation.criterion(model.config)`` takes."""

    @abstractmethod
    def postprocess(
        self, outputs: O, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[SemanticMap] | list[Detections] | list[PanopticMap]:
        """Decides; maps, boxes and masks are in pixels of the original images."""

    def segment(
        self, images_BCHW: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[SemanticMap] | list[Detections] | list[PanopticMap]:
        """The noun of each image, in pixels of the original image.

        Args:
            images_BCHW: normalised, padded.
            sizes: height and width of each image before padding.
            original_sizes: height and width of each image before it was resized.
        """
        check_sizes(images_BCHW, sizes)
        return self.postprocess(self(images_BCHW), sizes, original_sizes)


def check_sizes(images_BCHW: Tensor, sizes: Sequence[Size]) -> None:
    """Raises InputError unless there is one size for each image, none larger than the batch."""
    height, width = images_BCHW.shape[2:]
    if len(sizes) != len(images_BCHW) or any(h > height or w > width for h, w in sizes):
        raise InputError(f"sizes {list(sizes)} do not fit a batch of images {tuple(images_BCHW.shape)}")
