"""The interface of every network: configuration, outputs, results, losses, and the description of its family."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

import focalnet
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import ConfigError, InputError, NonFiniteOutputs, did_you_mean
from focalnet.models.backbone import FocalNetBase, FocalNetConfig, Shareable
from focalnet.models.plain import check_types, from_plain
from focalnet.models.variants import Variant
from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, SemanticMap
from focalnet.samples import Batch, Size

TaskName = Literal["classification", "multilabel", "detection", "semantic", "panoptic"]
Output = Literal["classification", "multilabel", "detection", "instance", "semantic", "panoptic"]
LARGEST_DIVISOR = 4096  # every image is padded to a multiple
Result = Classification | MultiLabel | Detections | SemanticMap | PanopticMap


class ModelConfig(ABC):
    """Base class of all configurations of networks; subclasses are frozen dataclasses.

    Attributes:
        backbone: configuration of the backbone.
        num_classes: number of classes, without background.
    """

    backbone: FocalNetConfig
    num_classes: int
    size_divisor: int = 1
    """Batched images are padded to a multiple of this."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Options that remove a part of a trained network; all others must agree with its weights."""

    @property
    @abstractmethod
    def output(self) -> Output:
        """Type of the network's results; ``"detection"`` means boxes, with or without masks."""

    @property
    def classifies(self) -> bool:
        """Whether the network predicts classes of whole images, from logits ``(B, num_classes)``."""
        return self.output in ("classification", "multilabel")

    @property
    def learns_masks(self) -> bool:
        """Whether training needs a mask of each object."""
        return False

    @property
    def things(self) -> int:
        """Number of thing classes. They come first; the remaining classes are stuff."""
        return self.num_classes

    def for_task(self, task: TaskName, num_things: int | None = None) -> Self:
        """The configuration for training or evaluating a task: the same weights, with the task's results.

        Args:
            task: a task of the network's family.
            num_things: number of thing classes, see ``things``; None to keep it.
        """
        return self

    def is_trained_for(self, task: TaskName) -> bool:
        """Whether weights of this configuration can be evaluated on a task of its family as they are."""
        return True

    def with_classes(self, num_classes: int) -> Self:
        """A copy of the configuration with another number of classes."""
        return dataclasses.replace(self, num_classes=num_classes)  # type: ignore[type-var]

    @classmethod
    @abstractmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        """Converts a configuration of the official code or of OpenMMLab.

        Raises:
            ConfigError: the configuration has something that this network does not support.
        """

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return from_plain(cls, mapping)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tuples, as a weights file stores them."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    def with_backbone(self, backbone: FocalNetConfig) -> Self:
        """A copy of the configuration with another backbone."""
        return dataclasses.replace(self, backbone=backbone)  # type: ignore[type-var]

    @abstractmethod
    def build(self) -> Model[Any, Any]:
        """Builds the network with random weights and fused operations; its constructor builds it unfused."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig(ModelConfig):
    """Base class of the configurations of dense-prediction networks.

    Args:
        backbone: configuration of the backbone; the published networks set ``pad_to_stride=True``.
        num_classes: number of classes, without background.
        size_divisor: batched images are padded to a multiple of this.
    """

    backbone: FocalNetConfig
    num_classes: int = 80
    size_divisor: int = 32

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_classes", "size_divisor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.size_divisor > LARGEST_DIVISOR:
            raise ConfigError(f"size_divisor={self.size_divisor} must be at most {LARGEST_DIVISOR} pixels")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(DenseConfig):
    """Base class of the configurations of detectors.

    Args:
        backbone: configuration of the backbone.
        num_classes: number of object classes.
        size_divisor: batched images are padded to a multiple of this.
        score_threshold: predictions with lower scores are not reported.
        max_per_image: maximum number of objects reported per image.
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
O = TypeVar("O")  # noqa: E741  # the return type of ``forward``


class Model(Shareable, nn.Module, ABC, Generic[C, O]):
    """A network: takes a batch of images, zero-padded right and below, and returns results in original pixels.

    DDP and FSDP synchronize gradients through ``forward`` of the module they wrap: wrap a ``TrainingStep``, whose
    ``forward`` calls ``loss``.
    """

    config: C
    backbone: FocalNetBase
    card: ModelCard | None = None
    """Description of the weights; set by the code that loads or trains them."""
    takes_sizes: ClassVar[bool] = False
    """Whether ``forward`` also takes the sizes of the images before padding."""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> O:
        """Returns the raw outputs of the heads for normalized images ``(B, C, H, W)``."""

    @abstractmethod
    def postprocess(self, outputs: O, sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[Any]:
        """Converts raw outputs to one result per image.

        Args:
            outputs: return value of ``forward``.
            sizes: height and width of each image before padding.
            original_sizes: height and width of each image before it was resized.
        """

    @abstractmethod
    def loss(self, batch: Batch[Any]) -> dict[str, Tensor]:
        """The weighted terms of the loss by name, float32; the loss is their sum.

        Raises:
            DataError: the targets lack something that the network learns, such as masks.
        """

    def predict(
        self,
        images_BCHW: Tensor,
        sizes: Sequence[Size] | None = None,
        original_sizes: Sequence[Size] | None = None,
        *,
        must_be_finite: bool = False,
    ) -> list[Any]:
        """Returns one result per image, best objects first, in pixels of the original image.

        Args:
            images_BCHW: normalized, padded right and below.
            sizes: height and width of each image before padding; by default no image is padded.
            original_sizes: height and width of each image before it was resized; by default ``sizes``.
            must_be_finite: refuse NaN or infinite outputs: their result would be no objects, or class 0 everywhere.

        Raises:
            InputError: ``sizes`` do not match the images.
            NonFiniteOutputs: the outputs are not finite, and must be.
        """
        if sizes is None:
            sizes = [(images_BCHW.shape[2], images_BCHW.shape[3])] * len(images_BCHW)
        check_sizes(images_BCHW, sizes)
        outputs: O = self(images_BCHW, sizes) if self.takes_sizes else self(images_BCHW)
        if must_be_finite:
            check_finite(outputs)
        return self.postprocess(outputs, sizes, sizes if original_sizes is None else original_sizes)

    def comparable_outputs(self, images_BCHW: Tensor) -> Any:
        """Tensors whose relative change says what computing in lower precision costs: the backbone's feature maps.

        The outputs of heads say less: the order of queries and boxes changes when their scores change a little. A
        classifier is its own backbone, and returns its logits.
        """
        return self.backbone(images_BCHW)

    def predict_tensors(self, images_BCHW: Tensor, sizes_B2: Tensor, original_sizes_B2: Tensor) -> dict[str, Tensor]:
        """What ``predict`` computes, as tensors by name: the function that ``focalnet.export`` writes to a file.

        It consists of PyTorch's and torchvision's operations alone, and no decision in Python depends on the values of
        tensors, so that it can be traced once for images of any number and size. Names depend on ``config.output``:

        * ``"classification"`` and ``"multilabel"``: ``logits`` ``(B, N)``
        * ``"detection"`` and ``"instance"``: ``boxes`` ``(B, K, 4)``, ``scores`` and ``labels`` ``(B, K)``, best first;
          rows after the last object have score 0 and label -1. With masks either ``box_masks`` ``(B, K, m, m)``,
          probabilities on a grid over each box, or ``masks`` ``(B, K, H, W)``, bool
        * ``"semantic"``: ``labels`` ``(B, H, W)``
        * ``"panoptic"``: ``ids`` ``(B, H, W)``, 0 for none; of the segments 1 to S: ``segment_labels`` and
          ``segment_scores`` ``(B, S)``, with label -1 after the last

        Boxes are in pixels of the original image. H and W are the largest height and width of the original images;
        each label map is valid within its own image.

        Args:
            images_BCHW: normalized, padded right and below.
            sizes_B2: height and width of each image before padding, int64.
            original_sizes_B2: height and width of each image before it was resized, int64.

        Raises:
            ConfigError: networks of this family have no such function.
        """
        raise ConfigError(f"a {type(self).__name__} cannot be exported: its family does not define predict_tensors")

    def export(self, path: str | Path, format: str | None = None, **options: Any) -> Any:
        """Writes the network to one file for other runtimes; see ``focalnet.export``."""
        return focalnet.export(self, path, format, **options)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by index; empty if unknown."""
        return self.card.class_names if self.card else ()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training (timm's protocol); results and gradients stay."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's groups (timm's protocol for layer-wise learning-rate decay); neck and heads come last."""
        matcher = self.backbone.group_matcher(coarse)

        def within(pattern: str) -> str:
            return r"^backbone\." + pattern.removeprefix("^")

        blocks = [(within(pattern), order) for pattern, order in matcher["blocks"]]
        return {"stem": within(matcher["stem"]), "blocks": blocks}


class TrainingStep(nn.Module):
    """Module whose ``forward`` returns a network's loss, for training with DDP or FSDP."""

    def __init__(self, model: Model[Any, Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch[Any]) -> dict[str, Tensor]:
        """The terms of ``Model.loss``."""
        return self.model.loss(batch)


class ScoresPixels(Model[C, O]):
    """A network with a score for each class at each pixel, which can be averaged over tiles and augmented views."""

    scores_are_logits: ClassVar[bool] = True
    """Whether the scores are logits, averaged after a softmax; other scores are averaged directly."""

    @abstractmethod
    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores of each class at each pixel of the input, ``(B, num_classes, H, W)``."""


@dataclass(frozen=True)
class ForeignNames:
    """State dicts of a network by the names of another library than OpenMMLab.

    Args:
        name: of the layout, as ``focalnet convert --to`` takes it.
        mark: the key that only its state dicts have.
        read: from its names to ours; with the category id of each class, as far as the layout implies them.
        write: the inverse, of a network with these category ids (empty where unknown).
        implied: settings of the backbone that the library has, from what the shapes of the tensors tell; with
            ``post_norm`` left out where nothing tells it.
        options: of the network, likewise, from everything that a file holds beside its tensors.
    """

    name: str
    mark: str
    read: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], tuple[int | str, ...]]]
    write: Callable[[Mapping[str, Tensor], Any, tuple[int | str, ...]], dict[str, Tensor]]
    implied: Callable[[Mapping[str, Any]], dict[str, Any]]
    options: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class StateDictLayout:
    """How to recognize and read state dicts that other libraries saved without our metadata.

    Args:
        mark: a key that only state dicts of this family have.
        infer: returns the network's configuration, given the tensors and the backbone's configuration; raises
            KeyError, IndexError or ValueError if tensors are missing.
        has_palette: whether the other library needs a color for each class in its files.
        others: state dicts of the same network under the names of other libraries.
    """

    mark: str
    infer: Callable[[Mapping[str, Tensor], FocalNetConfig], ModelConfig]
    has_palette: bool = False
    others: tuple[ForeignNames, ...] = ()


@dataclass(frozen=True)
class ModelFamily:
    """Description of a family of networks; ``registry.register`` adds one.

    Args:
        name: prefix of the names of its architectures, such as ``"cascade_mask_rcnn"``.
        file_kind: its name in the header of weights files; it never changes.
        tasks: tasks it can be trained for; the first is the one it was published for.
        config: class of its configuration.
        variants: published networks by name.
        preprocessing: default preprocessing, for files that do not state theirs.
        labels: label set of the published networks, a name in ``weights.class_names``; empty for none.
        layout: layout of other libraries' state dicts; None for none.
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
            name: a key of ``variants``.
            options: fields of the family's configuration or of its backbone's.

        Raises:
            ConfigError: neither has an option of this name, or the network replaces a value that was given.
        """
        variant = self.variants[name]
        own, backbone = split_options(self.config, options)
        if variant.num_classes is not None:
            own = {"num_classes": variant.num_classes, **own}
        shape = FocalNetConfig.from_dict({**variant.shape, **backbone})
        config = self.config.from_dict({"backbone": shape, **own})
        for option, given in backbone.items():
            if given is not None and (used := getattr(config.backbone, option)) != getattr(shape, option):
                raise ConfigError(f"{option}={given} does not fit {name}, which uses {used} here; leave it out")
        return config


def split_options(cls: type[ModelConfig], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits options into those of a network and those of its backbone.

    Raises:
        ConfigError: neither has an option of this name, or a value has another type.
    """
    own, backbone = ({f.name for f in dataclasses.fields(c)} for c in (cls, FocalNetConfig))  # type: ignore[arg-type]
    of_classifier = own <= {"backbone", "num_classes", "multi_label"}  # whose backbone's configuration raises
    for name in () if of_classifier else options:
        if name not in own | backbone:
            known = did_you_mean(name, own | backbone)
            raise ConfigError(f'neither {cls.__name__} nor its backbone has an option "{name}"{known}')
    for_network = {name: value for name, value in options.items() if name in own}
    return for_network, {name: value for name, value in options.items() if name not in own}


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raises ConfigError where PyTorch cannot allocate what is built within."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(one in said for one in _TOO_LARGE):
            raise
        asked = re.search(r"allocate (\d+) bytes", said)
        size = f"{int(asked[1]) / 1e9:,.1f} GB for one tensor" if asked else "more than there is"
        raise ConfigError(
            f"the network does not fit into memory, it needs {size}: lower num_classes or the options of its size"
        ) from error


_TOO_LARGE = ("DefaultCPUAllocator", "Storage size calculation overflowed")  # how PyTorch refuses to allocate


def check_finite(outputs: Any) -> None:
    """Raises NonFiniteOutputs if what a network computed, in any structure, holds NaN or infinite values."""
    for tensor in _tensors(outputs):
        # The sum tells in one pass, without a copy, that all values are finite.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise NonFiniteOutputs(
                f"the network computes NaN or infinite values ({tensor.dtype}), of which no result can be made: its "
                "weights are damaged or diverged, or the type is too small for them; take other weights, or float32"
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            yield from _tensors(getattr(value, one.name))
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def check_sizes(images_BCHW: Tensor, sizes: Sequence[Size] | Tensor) -> None:
    """Raises InputError unless there is one size per image and none exceeds the size of the batch.

    Sizes in a tensor are those of an exported network, whose values are not known.
    """
    if isinstance(sizes, Tensor):
        return
    if images_BCHW.ndim != 4:
        raise InputError(f"images must be a batch (B, C, H, W), not {tuple(images_BCHW.shape)}")
    height, width = images_BCHW.shape[2:]
    if len(sizes) != len(images_BCHW) or not all(0 < h <= height and 0 < w <= width for h, w in sizes):
        raise InputError(f"sizes {list(sizes)} do not fit a batch of images {tuple(images_BCHW.shape)}")
