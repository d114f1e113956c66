"""The nouns: what goes into a network and what comes out, in pixels of the original image.

``Sample`` and ``Batch`` are plain dicts so that they pass through any loader; results are frozen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Sample(TypedDict):
    """One labelled image of a data set: ``image`` is ``(C, H, W)``, ``path`` says where it came from."""

    image: Tensor
    label: int
    path: str


class Batch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``; ``labels`` ``(B,)``, or ``(B, N)`` when mixed."""

    images: Tensor
    labels: Tensor
    paths: list[str]


class Target(TypedDict):
    """What is in one image of a detection data set, in pixels of the image as the network sees it.

    ``boxes`` is ``(N, 4)``, x1 y1 x2 y2; ``labels`` ``(N,)``, int64, from 0; ``masks`` ``(N, H, W)``, bool, padded like
    the batch, or None where the data has boxes only; ``ignored`` ``(M, 4)``: crowds, neither object nor background.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    ignored: Tensor


class DetectionSample(TypedDict):
    """One annotated image: ``image`` is ``(C, H, W)``; ``original_size`` ``(height, width)`` on disk."""

    image: Tensor
    target: Target
    original_size: tuple[int, int]
    image_id: int
    path: str


class DetectionBatch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``, padded with zeros right and below; ``sizes`` are those before."""

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    paths: list[str]


IGNORED = 255
"""In a label map: this pixel is of no class, neither trained on nor measured."""


class SemanticSample(TypedDict):
    """One image and the class of each of its pixels.

    ``image`` is ``(C, H, W)``; ``labels`` ``(H, W)``, int64, from 0, or ``IGNORED``: in training those of the image as
    the network sees it, in evaluation ``(original height, original width)``. ``others`` is the image at further sizes,
    in evaluation at several.
    """

    image: Tensor
    others: list[Tensor]
    labels: Tensor
    original_size: tuple[int, int]
    path: str


class SemanticBatch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``, padded with zeros right and below; ``sizes`` are those before.

    ``others`` are further images of the same kind with their sizes, see ``SemanticSample``. ``labels`` are one map for
    each image, see there; in training padded with ``IGNORED`` like the images.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    others: list[tuple[Tensor, list[tuple[int, int]]]]
    labels: list[Tensor]
    original_sizes: list[tuple[int, int]]
    paths: list[str]


class Segments(TypedDict):
    """The truth that masks are trained on: ``labels`` ``(N,)``, int64, from 0; ``masks`` ``(N, H, W)``, bool.

    One segment is an object, all stuff of a kind, or (for semantic segmentation) all pixels of a class.
    """

    labels: Tensor
    masks: Tensor


class PanopticTruth(TypedDict):
    """Which segment each pixel of an image belongs to: an object, or all stuff of a kind.

    ``ids`` is ``(H, W)``, int32: ``i + 1`` for the ``i``-th segment, 0 for none; ``labels`` ``(N,)``, int64, from 0;
    ``crowds`` ``(N,)``, bool: many objects of a kind in one segment, neither trained on nor a mistake.
    """

    ids: Tensor
    labels: Tensor
    crowds: Tensor


class PanopticSample(TypedDict):
    """One image with its segments: in training as the network sees it, in evaluation the truth of the original size."""

    image: Tensor
    truth: PanopticTruth
    original_size: tuple[int, int]
    image_id: int
    path: str


class PanopticBatch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``, padded with zeros right and below; ``sizes`` are those before.

    ``truths`` are one for each image, see ``PanopticSample``; in training their ``ids`` are padded like the images.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    truths: list[PanopticTruth]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    paths: list[str]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a network's input: resize the short side, crop the centre, normalise.

    Detectors see the whole image: with ``max_size``, nothing is cropped, and ``image_size`` is the short side.

    Args:
        image_size: side in pixels of the square crop.
        crop_pct: crop over short side, in (0, 1]; 0.875 is the official code's 224 of 256.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
        mean: per channel, of values in [0, 1].
        std: per channel.
        max_size: of a detector, the most pixels of the long side; the short one gives way.
    """

    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    max_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What must travel with weights for them to be of use: stored in our files, shown by ``focalnet models``.

    Args:
        name: ``architecture.training``, e.g. ``"focalnet_tiny_lrf.ms_in1k"``.
        class_names: by class index; empty where unknown.
        preprocessing: what the network was trained with.
        licence: SPDX name where known.
        source: where the weights came from.
        metrics: measured or published figures, e.g. ``{"imagenet1k_top1": 82.3}``, percent.
    """

    name: str
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing = Preprocessing()
    licence: str | None = None
    source: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Classification:
    """What an image shows, best class first.

    Args:
        labels: class indices.
        scores: softmax probabilities, in [0, 1].
        names: class names.
        path: the file it was read from, if any.
        image: the picture itself, for drawing; not part of equality.
    """

    labels: tuple[int, ...]
    scores: tuple[float, ...]
    names: tuple[str, ...]
    path: str | None = None
    image: Image | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON."""
        ranked = zip(self.labels, self.names, self.scores, strict=True)
        return {"path": self.path, "top": [{"label": i, "name": n, "score": s} for i, n, s in ranked]}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with its best classes and scores drawn on it; the suffix chooses the format."""
        from focalnet.visualize import draw_classification, save_image  # drawing is optional for a noun

        return save_image(draw_classification(self), path)


@dataclass(frozen=True)
class Detections:
    """The objects in an image, best first, in pixels of the original image.

    Args:
        boxes: ``(N, 4)``, x1 y1 x2 y2.
        scores: ``(N,)``, 0 to 1.
        labels: ``(N,)``, class indices from 0.
        names: of all classes, by index; empty where unknown.
        masks: ``(N, height, width)``, bool; None for a model that finds boxes only.
        size: height and width of the original image.
        image: the picture itself, if kept.
        path: the file it came from, if any.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()
    masks: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    image: Image | None = field(default=None, repr=False, compare=False)
    path: str | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, min_score: float) -> Detections:
        """Only the objects with at least that score."""
        kept = self.scores >= min_score
        masks = None if self.masks is None else self.masks[kept]
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks)

    def name(self, label: int) -> str:
        """Of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON; masks are in the COCO result file beside it."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        objects = [{"label": i, "name": self.name(i), "score": score, "box": box} for i, score, box in rows]
        return {"path": self.path, "height": self.size[0], "width": self.size[1], "objects": objects}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with boxes, masks, names and scores drawn on it; the suffix chooses the format."""
        from focalnet.visualize import draw_detections, save_image  # drawing is optional for a noun

        return save_image(draw_detections(self), path)


@dataclass(frozen=True)
class SemanticMap:
    """The class of each pixel of the original image.

    Args:
        labels: ``(height, width)``, int64, class indices from 0; ``IGNORED`` where there is none, except with more
            than 255 classes, where that is one of them.
        names: of all classes, by index; empty where unknown.
        image: the picture itself, if kept.
        path: the file it came from, if any.
    """

    labels: Tensor
    names: tuple[str, ...] = ()
    image: Image | None = field(default=None, repr=False, compare=False)
    path: str | None = None

    def shares(self) -> dict[int, float]:
        """The classes that are there, and their share of all pixels, 0 to 1; the largest first."""
        counts = self.labels.flatten().bincount()
        if len(self.names) <= IGNORED:
            counts[IGNORED : IGNORED + 1] = 0
        largest = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
        return {int(label): int(counts[label]) / self.labels.numel() for label in largest}

    def name(self, label: int) -> str:
        """Of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON: each class and its share of the pixels."""
        classes = [{"label": i, "name": self.name(i), "share": share} for i, share in self.shares().items()]
        height, width = self.labels.shape
        return {"path": self.path, "height": height, "width": width, "classes": classes}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with its classes laid over it and a legend; the suffix chooses the format."""
        from focalnet.visualize import draw_semantic, save_image  # drawing is optional for a noun

        return save_image(draw_semantic(self), path)


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map: an object, or all stuff of a kind.

    Args:
        id: its number in the map, from 1.
        label: class index.
        is_thing: an object, and not stuff.
        score: 0 to 1.
        area: pixels.
    """

    id: int
    label: int
    is_thing: bool
    score: float
    area: int


@dataclass(frozen=True)
class PanopticMap:
    """Every pixel of the original image belongs to one segment, or to none.

    Args:
        ids: ``(height, width)``, int32, numbers of segments; 0 where there is none.
        segments: what they are.
        names: of all classes, by index; empty where unknown.
        image: the picture itself, if kept.
        path: the file it came from, if any.
    """

    ids: Tensor
    segments: tuple[Segment, ...]
    names: tuple[str, ...] = ()
    image: Image | None = field(default=None, repr=False, compare=False)
    path: str | None = None

    def name(self, label: int) -> str:
        """Of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON; the map itself is a PNG beside it."""
        segments = [{**asdict(s), "name": self.name(s.label)} for s in self.segments]
        height, width = self.ids.shape
        return {"path": self.path, "height": height, "width": width, "segments": segments}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with its segments laid over it, named; the suffix chooses the format."""
        from focalnet.visualize import draw_panoptic, save_image  # drawing is optional for a noun

        return save_image(draw_panoptic(self), path)


def class_name(names: tuple[str, ...], label: int) -> str:
    """Of a class, ``"class 3"`` where it is unknown."""
    return names[label] if label < len(names) else f"class {label}"
