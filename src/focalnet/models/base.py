"""The contract of every network: what it is built from, what it can be asked, and what is known of its family."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from typing_extensions import Self

from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import ConfigError, InputError, did_you_mean
from focalnet.models.backbone import FocalNetBase, FocalNetConfig
from focalnet.models.variants import Variant
from focalnet.results import Classification, Detections, PanopticMap, SemanticMap
from focalnet.samples import Batch, Size

TaskName = Literal["classification", "detection", "semantic", "panoptic"]
Output = Literal["classification", "detection", "instance", "semantic", "panoptic"]
Result = Classification | Detections | SemanticMap | PanopticMap
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


class ModelConfig(ABC):
    """What the configuration of every network has; subclasses are frozen dataclasses.

    Args:
        backbone: shape of the backbone.
        num_classes: of images, objects or pixels; background is none of them.
    """

    backbone: FocalNetConfig
    num_classes: int
    size_divisor: int = 1
    """Images are padded to a multiple of it when batched."""

    @property
    @abstractmethod
    def output(self) -> Output:
        """What the network's results are; ``"detection"`` is of boxes, with or without masks."""

    @property
    def learns_masks(self) -> bool:
        """Whether training needs a mask of each object."""
        return False

    @property
    def things(self) -> int:
        """So many of the first classes are objects, the others stuff."""
        return self.num_classes

    def for_task(self, task: TaskName, num_things: int | None = None) -> Self:
        """The configuration of the network that a task trains or measures: the same weights, the task's results.

        Args:
            task: one that the network's family has.
            num_things: so many of the first classes are objects, the others stuff; None as before.
        """
        return self

    def with_classes(self, num_classes: int) -> Self:
        """The same network for another number of classes."""
        return dataclasses.replace(self, num_classes=num_classes)  # type: ignore[type-var]

    @classmethod
    @abstractmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        """From the configuration of the official code or of OpenMMLab.

        Raises:
            ConfigError: a part that this network does not have.
        """

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return from_plain(cls, mapping)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tuples: what a weights file stores."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    def with_backbone(self, backbone: FocalNetConfig) -> Self:
        """The same network on another backbone."""
        return dataclasses.replace(self, backbone=backbone)  # type: ignore[type-var]

    @abstractmethod
    def build(self) -> Model[Any, Any]:
        """Builds the network with random weights, its operations fused; the network's constructor gives a plain one."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig(ModelConfig):
    """What the configuration of every dense-prediction network has.

    Args:
        backbone: its shape; ``pad_to_stride=True`` is how the published networks treat odd sizes.
        num_classes: of objects, or of pixels; background is none of them.
        size_divisor: images are padded to a multiple of it when batched.
    """

    backbone: FocalNetConfig
    num_classes: int = 80
    size_divisor: int = 32

    def __post_init__(self) -> None:
        for name in ("num_classes", "size_divisor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")


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

    score_threshold: float = 0.05
    max_per_image: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_per_image < 1:
            raise ConfigError(f"max_per_image={self.max_per_image} must be at least 1")
        if not 0 <= self.score_threshold < 1:
            raise ConfigError(f"score_threshold={self.score_threshold} must be in [0, 1)")

    @property
    def output(self) -> Output:
        return "detection"


C = TypeVar("C", bound=ModelConfig)
O = TypeVar("O")  # noqa: E741  # what ``forward`` returns


class Model(nn.Module, ABC, Generic[C, O]):
    """A network: from a batch of images, padded with zeros right and below, to results in pixels of the originals.

    ``loss`` has to be called inside the wrapped module where gradients are shared by DDP or FSDP, which act on
    ``forward``: see ``TrainingStep``.
    """

    config: C
    backbone: FocalNetBase
    card: ModelCard | None = None
    """What is known of the weights; set by whoever loads or trains them."""
    takes_sizes: ClassVar[bool] = False
    """Whether ``forward`` takes the sizes of the images before padding, too."""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> O:
        """Returns what the heads say of normalized images ``(B, C, H, W)``, before anything is decided."""

    @abstractmethod
    def postprocess(self, outputs: O, sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[Any]:
        """Decides: one result for each image.

        Args:
            outputs: of ``forward``.
            sizes: height and width of each image before padding.
            original_sizes: height and width of each image before it was resized.
        """

    @abstractmethod
    def loss(self, batch: Batch[Any]) -> dict[str, Tensor]:
        """The terms of the loss by name, float32, with their weights: the loss is their sum.

        Raises:
            DataError: targets that lack what the network learns.
        """

    def predict(
        self,
        images_BCHW: Tensor,
        sizes: Sequence[Size] | None = None,
        original_sizes: Sequence[Size] | None = None,
    ) -> list[Any]:
        """One result for each image, best objects first, in pixels of the original image.

        Args:
            images_BCHW: normalized, padded right and below.
            sizes: height and width of each image before padding; default: no image is padded.
            original_sizes: height and width of each image before it was resized; default: as ``sizes``.

        Raises:
            InputError: sizes that do not fit the images.
        """
        if sizes is None:
            sizes = [(images_BCHW.shape[2], images_BCHW.shape[3])] * len(images_BCHW)
        check_sizes(images_BCHW, sizes)
        outputs: O = self(images_BCHW, sizes) if self.takes_sizes else self(images_BCHW)
        return self.postprocess(outputs, sizes, sizes if original_sizes is None else original_sizes)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(self.parameters()).dtype

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


class TrainingStep(nn.Module):
    """A network whose ``forward`` is its loss, for training loops that wrap modules in DDP or FSDP."""

    def __init__(self, model: Model[Any, Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch[Any]) -> dict[str, Tensor]:
        """The terms of ``Model.loss``."""
        return self.model.loss(batch)


class ScoresPixels(Model[C, O]):
    """A network with a score for each class at each pixel, which tiles, sizes and mirrored views average."""

    scores_are_logits: ClassVar[bool] = True
    """Whether a softmax makes probabilities of them; otherwise a mean of several is one of the same kind."""

    @abstractmethod
    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores of each class at each pixel of the input, ``(B, num_classes, H, W)``; the highest wins."""


@dataclass(frozen=True)
class StateDictLayout:
    """Foreign state dicts of a network under our own names, without a description beside them.

    Args:
        mark: the key that only this family has.
        infer: from the tensors and the backbone's configuration to the network's; raises KeyError, IndexError or
            ValueError where a part is missing.
        has_palette: whether the library reads no file without a color for each class.
        other_mark: the key that tells files of another library; empty for none.
        from_other: from the names of that library to ours.
    """

    mark: str
    infer: Callable[[Mapping[str, Tensor], FocalNetConfig], ModelConfig]
    has_palette: bool = False
    other_mark: str = ""
    from_other: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class ModelFamily:
    """Everything that the library knows of a kind of network. ``registry.register`` adds one.

    Args:
        name: as architectures are named after it: ``"cascade_mask_rcnn"``.
        file_kind: what the header of a weights file calls it; it never changes.
        tasks: what it can be trained for; the first is what it is published for.
        config: class of its configuration.
        variants: published networks, by name.
        preprocessing: of images, where a foreign file does not say.
        labels: the label set that the published networks know, as ``weights.class_names`` has it; empty for none.
        layout: foreign state dicts that it reads; None for none.
    """

    name: str
    file_kind: str
    tasks: tuple[TaskName, ...]
    config: type[ModelConfig]
    variants: Mapping[str, Variant] = field(repr=False)
    preprocessing: Preprocessing
    labels: str = ""
    layout: StateDictLayout | None = None

    def configure(self, name: str, **options: Any) -> ModelConfig:
        """The configuration of a published network.

        Args:
            name: one of ``variants``.
            options: fields of the family's configuration, or of its backbone's.

        Raises:
            ConfigError: an option that neither has.
        """
        variant = self.variants[name]
        own, backbone = split_options(self.config, options)
        if variant.num_classes is not None:
            own = {"num_classes": variant.num_classes, **own}
        shape = FocalNetConfig.from_dict({**variant.shape, **backbone})
        return self.config.from_dict({"backbone": shape, **own})


def split_options(cls: type[ModelConfig], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tells a network's options from those of its backbone.

    Raises:
        ConfigError: an option that neither has.
    """
    ours, theirs = ({f.name for f in dataclasses.fields(c)} for c in (cls, FocalNetConfig))  # type: ignore[arg-type]
    for name in options if ours - {"backbone", "num_classes"} else ():  # else the backbone says what it lacks
        if name not in ours | theirs:
            known = did_you_mean(name, ours | theirs)
            raise ConfigError(f'neither {cls.__name__} nor its backbone has an option "{name}"{known}')
    return (
        {name: value for name, value in options.items() if name in ours},
        {name: value for name, value in options.items() if name not in ours},
    )


def check_sizes(images_BCHW: Tensor, sizes: Sequence[Size]) -> None:
    """Raises InputError unless there is one size for each image, none larger than the batch."""
    height, width = images_BCHW.shape[2:]
    if len(sizes) != len(images_BCHW) or any(h > height or w > width for h, w in sizes):
        raise InputError(f"sizes {list(sizes)} do not fit a batch of images {tuple(images_BCHW.shape)}")
