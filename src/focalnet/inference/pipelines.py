"""What happens between an image and its result: one pipeline for each ``ModelConfig.output``.

A module beside ``predictor``, because the two together have about 500 lines and two ideas: here, how a network gets its
input and what becomes of its output; there, reading images and grouping them in batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from focalnet.data.preprocess import eval_transform, fitted_size, pad, preprocess, to_tensor
from focalnet.errors import ConfigError
from focalnet.inference.tta import View, Views, Window, mean_scores, meeting_size, merge, tiles
from focalnet.models import Model, ScoresPixels
from focalnet.models.base import Output, check_finite
from focalnet.models.classifier import best_classes, likely_classes
from focalnet.ops.label_maps import label_map
from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, Result, SemanticMap
from focalnet.results.classification import THRESHOLD
from focalnet.samples import Size

if TYPE_CHECKING:
    from PIL.Image import Image

FEW_TILES = 8  # whose input fits memory beside the image
SET_CARD = "set model.card = ModelCard(name=..., class_names=..., preprocessing=...)"


class Options(NamedTuple):
    """The options of ``Predictor``, of which a pipeline uses those that concern it."""

    views: Views
    batch_size: int
    top_k: int
    min_score: float


class Pipeline(ABC):
    """How a network that predicts one kind of result gets its input, and what becomes of its output.

    Raises:
        ConfigError: the network has no card, or one of another network.
    """

    default_batch_size: ClassVar[int] = 2
    default_min_score: ClassVar[float] = 0.3
    class_names: tuple[str, ...]

    @abstractmethod
    def __init__(self, network: Model[Any, Any], options: Options) -> None: ...

    @abstractmethod
    def prepare(self, image: Image) -> Any:
        """Returns what ``predict`` needs of an image; called in the threads that read images."""

    @abstractmethod
    def predict(self, images: Sequence[Image], prepared: Sequence[Any]) -> Iterator[Result]:
        """Yields one result for each image, on the CPU, in pixels of the image."""


class WholeImagePipeline(Pipeline):
    """The logits of whole images, and what their classes are by them."""

    default_batch_size = 32

    def __init__(self, network: Model[Any, Any], options: Options) -> None:
        if network.card is None:
            raise ConfigError(f"this {type(network).__name__} does not know how to prepare an image: {SET_CARD}")
        self.network, self.options = network, options
        self.class_names = class_names(network)
        self.transform = eval_transform(network.card.preprocessing)

    def prepare(self, image: Image) -> Tensor:
        return self.transform(image)

    def predict(self, images: Sequence[Image], prepared: Sequence[Tensor]) -> Iterator[Result]:
        images_BCHW = torch.stack(list(prepared))
        with torch.inference_mode():
            logits = self.network(images_BCHW.to(self.network.device, self.network.dtype))
        check_finite(logits)
        yield from self.results(logits)

    @abstractmethod
    def results(self, logits_BN: Tensor) -> Sequence[Result]:
        """One result for each image."""


class ClassificationPipeline(WholeImagePipeline):
    """The best classes of whole images."""

    def results(self, logits_BN: Tensor) -> list[Classification]:
        return best_classes(logits_BN, self.class_names, self.options.top_k)


class MultiLabelPipeline(WholeImagePipeline):
    """All classes of whole images with a score of at least ``min_score``."""

    default_min_score = THRESHOLD

    def results(self, logits_BN: Tensor) -> list[MultiLabel]:
        return likely_classes(logits_BN, self.class_names, self.options.min_score)


class DetectionPipeline(Pipeline):
    """The objects in all views of an image, merged. Views of several sizes share a batch, padded to the largest."""

    def __init__(self, network: Model[Any, Any], options: Options) -> None:
        if network.card is None:
            raise ConfigError(_without_card(network, "image_size=800, max_size=1333"))
        self.network, self.options = network, options
        self.class_names = network.card.class_names
        self.preprocessing = network.card.preprocessing
        if self.preprocessing.max_size is None:  # unknown: as for every published detector
            self.preprocessing = replace(self.preprocessing, image_size=800, max_size=1333)
        self.longest = self.preprocessing.max_size or 1333

    def prepare(self, image: Image) -> list[tuple[Window, Callable[[], Tensor]]]:
        """Returns the views of an image: the window of each, and what gives the network's input ``(3, H, W)``.

        That of a few views is made here, in the threads; of thousands of tiles it is made batch by batch.
        """
        whole, views = to_tensor(image), self.options.views
        sides = views.short_sides or (self.preprocessing.short_side,)
        windows = [window for window, _ in tiles(image.height, image.width, views.tile, views.overlap)]
        prepared: list[tuple[Window, Callable[[], Tensor]]] = []
        for window in windows:
            for side in sides:
                size = fitted_size((window.height, window.width), side, max(self.longest, side))
                made = partial(preprocess, window.of(whole), self.preprocessing, size)
                if len(windows) <= FEW_TILES:
                    made = partial(_same, made())
                prepared.append((window, made))
                if views.flip:
                    prepared.append((replace(window, mirrored=True), partial(_mirrored, made)))
        return prepared

    def predict(
        self, images: Sequence[Image], prepared: Sequence[list[tuple[Window, Callable[[], Tensor]]]]
    ) -> Iterator[Detections]:
        pending = [view for views in prepared for view in views]
        detections = (
            of_view
            for start in range(0, len(pending), self.options.batch_size)
            for of_view in self._detect(pending[start:][: self.options.batch_size])
        )
        for image, views in zip(images, prepared, strict=True):
            results = [(window, next(detections)) for window, _ in views]
            limit = self.network.config.max_per_image * len({replace(window, mirrored=False) for window, _ in views})
            yield results[0][1] if len(results) == 1 else merge(results, (image.height, image.width), limit)

    def _detect(self, views: Sequence[tuple[Window, Callable[[], Tensor]]]) -> Iterator[Detections]:
        inputs = [made() for _, made in views]
        sizes = [(pixels.shape[-2], pixels.shape[-1]) for pixels in inputs]
        original_sizes = [(window.height, window.width) for window, _ in views]
        with torch.inference_mode():
            images = pad(inputs, self.network.config.size_divisor).to(self.network.device, self.network.dtype)
            images = images.contiguous(memory_format=torch.channels_last)
            results = self.network.predict(images, sizes, original_sizes, must_be_finite=True)
        for result in results:
            yield _finished(result, self.options.min_score, self.class_names)


def _same(pixels: Tensor) -> Tensor:
    return pixels


def _mirrored(made: Callable[[], Tensor]) -> Tensor:
    return made().flip(-1)


@dataclass(frozen=True)
class Tile:
    """An image, and all views of one of its tiles. There may be thousands: pixels are made batch by batch."""

    image: Image
    views: tuple[View, ...]

    @property
    def size(self) -> Size:
        """Height and width of the tile in the image."""
        return self.views[0].window.height, self.views[0].window.width


class SegmentationPipeline(Pipeline):
    """What all segmenters share. Only views of one size share a batch, so that none is padded to another's size."""

    def __init__(self, network: Model[Any, Any], options: Options) -> None:
        if network.card is None:
            raise ConfigError(_without_card(network, "image_size=512, max_size=2048"))
        class_names(network)  # as many as the network has
        self.network, self.options = network, options
        self.class_names = network.card.class_names
        self.preprocessing = network.card.preprocessing
        if self.preprocessing.max_size is None:  # unknown: as for ADE20K
            self.preprocessing = replace(
                self.preprocessing,
                image_size=self.preprocessing.short_side,
                max_size=4 * self.preprocessing.short_side,
            )

    def prepare(self, image: Image) -> list[Tile]:
        views = self.options.views
        mirrored = (False, True) if views.flip else (False,)
        return [
            Tile(
                image,
                tuple(View(replace(window, mirrored=m), core, size) for size in self._sizes(window) for m in mirrored),
            )
            for window, core in tiles(image.height, image.width, views.tile, views.overlap)
        ]

    def _sizes(self, window: Window) -> list[Size]:
        """Sizes that a tile is resized to; the limit of the long side scales with the short side, as in mmseg."""
        usual, longest = self.preprocessing.short_side, self.preprocessing.max_size
        assert longest is not None
        sides = self.options.views.short_sides or (usual,)
        return [fitted_size((window.height, window.width), side, round(longest * side / usual)) for side in sides]

    def _batches(self, prepared: Sequence[list[Tile]]) -> Iterator[tuple[list[View], Tensor]]:
        """Yields successive views of one size, and the network's input for them."""
        pending = ((tile.image, view) for of_image in prepared for tile in of_image for view in tile.views)
        for _, of_one_size in groupby(pending, key=lambda pair: pair[1].size):
            while batch := list(islice(of_one_size, self.options.batch_size)):
                yield [view for _, view in batch], self._pixels(batch)

    def _pixels(self, batch: Sequence[tuple[Image, View]]) -> Tensor:
        """The network's input ``(B, 3, H, W)`` for views of one size, normalized and padded."""
        inputs = []
        for image, (window, _, size) in batch:
            box = (window.left, window.top, window.left + window.width, window.top + window.height)
            pixels = preprocess(image.crop(box), self.preprocessing, size)
            inputs.append(pixels.flip(-1) if window.mirrored else pixels)
        images = pad(inputs, self.network.config.size_divisor)
        return images.to(self.network.device, self.network.dtype).contiguous(memory_format=torch.channels_last)

    def _results(self, prepared: Sequence[list[Tile]]) -> Iterator[Any]:
        """Yields the network's own result for each view, in pixels of its window."""
        for views, images in self._batches(prepared):
            sizes = [view.size for view in views]
            original_sizes = [(view.window.height, view.window.width) for view in views]
            with torch.inference_mode():
                results = self.network.predict(images, sizes, original_sizes, must_be_finite=True)
            yield from results


class SemanticPipeline(SegmentationPipeline):
    """The class of each pixel, by the mean score of all views of its tile; an exported file only has whole label maps.

    Raises:
        ConfigError: several views, and a network that gives no scores of pixels.
    """

    def __init__(self, network: Model[Any, Any], options: Options) -> None:
        super().__init__(network, options)
        self.scorer: ScoresPixels[Any, Any] | None = network if isinstance(network, ScoresPixels) else None
        views = options.views
        if self.scorer is None and (views.tile or views.flip or len(views.short_sides) > 1):
            raise ConfigError(
                "an exported file gives label maps, which cannot be averaged: leave out tile, flip and several "
                "short_sides, or predict with the model that it was exported from"
            )

    def predict(self, images: Sequence[Image], prepared: Sequence[list[Tile]]) -> Iterator[SemanticMap]:
        if self.scorer is None:
            for result in self._results(prepared):
                yield replace(result, names=self.class_names)
            return
        scores = self._scores(prepared)
        for image, of_image in zip(images, prepared, strict=True):
            yield self._map(image, of_image, scores)

    def _map(self, image: Image, of_image: Sequence[Tile], scores: Iterator[Tensor]) -> SemanticMap:
        """Every tile decides within its core; scores of the whole image are never held."""
        few = self.network.config.num_classes <= 256
        labels = torch.empty((image.height, image.width), dtype=torch.uint8 if few else torch.int32)
        for tile in of_image:
            window, core, _ = tile.views[0]
            of_tile = label_map(self._mean(tile, scores), tile.size)
            inner = replace(core, left=core.left - window.left, top=core.top - window.top)
            core.of(labels).copy_(inner.of(of_tile))
        return SemanticMap(labels.long(), self.class_names)

    def _mean(self, tile: Tile, scores: Iterator[Tensor]) -> Tensor:
        """The mean scores of a tile's views, ``(N, h, w)``; those of a single view unchanged."""
        if len(tile.views) == 1:
            return next(scores)
        size = meeting_size(tile.size, [view.size for view in tile.views])
        assert self.scorer is not None
        return mean_scores(islice(scores, len(tile.views)), size, logits=self.scorer.scores_are_logits)

    def _scores(self, prepared: Sequence[list[Tile]]) -> Iterator[Tensor]:
        """Yields the class scores of each view, ``(N, h, w)``, with mirroring undone."""
        assert self.scorer is not None
        for views, images in self._batches(prepared):
            with torch.inference_mode():
                scores = self.scorer.class_scores(images)
            check_finite(scores)
            for view, of_view in zip(views, scores, strict=True):
                without_padding = of_view[:, : view.size[0], : view.size[1]]
                yield without_padding.flip(-1) if view.window.mirrored else without_padding


class InstancePipeline(SegmentationPipeline):
    """The objects in all views of an image, with masks, merged."""

    def predict(self, images: Sequence[Image], prepared: Sequence[list[Tile]]) -> Iterator[Detections]:
        """Each image has at most as many objects for each tile as the view with the most objects."""
        results = (_finished(one, self.options.min_score, self.class_names) for one in self._results(prepared))
        for image, of_image in zip(images, prepared, strict=True):
            detections = [(view.window, next(results)) for tile in of_image for view in tile.views]
            limit = len(of_image) * max(len(of_view) for _, of_view in detections)
            size = (image.height, image.width)
            yield detections[0][1] if len(detections) == 1 else merge(detections, size, limit)


class PanopticPipeline(SegmentationPipeline):
    """The segment of each pixel, from a single view: segments of several views cannot be merged."""

    def __init__(self, network: Model[Any, Any], options: Options) -> None:
        super().__init__(network, options)
        views = options.views
        if views.tile or views.flip or len(views.short_sides) > 1:
            raise ConfigError(
                "tile, flip and several short_sides make no panoptic map: what is one segment in one view may be two "
                "in another; leave them out (one short_side may be larger), or use a semantic or instance model"
            )

    def predict(self, images: Sequence[Image], prepared: Sequence[list[Tile]]) -> Iterator[PanopticMap]:
        for result in self._results(prepared):
            yield replace(result, ids=result.ids.cpu(), names=self.class_names)


PIPELINES: Mapping[Output, type[Pipeline]] = {
    "classification": ClassificationPipeline,
    "multilabel": MultiLabelPipeline,
    "detection": DetectionPipeline,
    "instance": InstancePipeline,
    "semantic": SemanticPipeline,
    "panoptic": PanopticPipeline,
}


def _without_card(network: nn.Module, preprocessing: str) -> str:
    return (
        f"this {type(network).__name__} does not know its classes: set model.card = ModelCard(name=..., "
        f"class_names=..., preprocessing=Preprocessing({preprocessing}))"
    )


def _finished(detections: Detections, min_score: float, names: tuple[str, ...]) -> Detections:
    """A network's detections on the CPU, without those below ``min_score``, and with the names of the classes."""
    kept = detections.above(min_score)
    return replace(
        kept,
        boxes=kept.boxes.float().cpu(),
        scores=kept.scores.float().cpu(),
        labels=kept.labels.cpu(),
        masks=None if kept.masks is None else kept.masks.cpu(),
        names=names,
    )


def class_names(model: Model[Any, Any]) -> tuple[str, ...]:
    """The names on the model's card, or ``"class 0"``, ``"class 1"``, ... where they are unknown.

    Raises:
        ConfigError: the card has names for another number of classes.
    """
    known = model.card.class_names if model.card else ()
    if known and len(known) != model.config.num_classes:
        raise ConfigError(
            f"this model has {model.config.num_classes} classes and its card names {len(known)}: "
            "set model.card = dataclasses.replace(model.card, class_names=...)"
        )
    return known or tuple(f"class {label}" for label in range(model.config.num_classes))
