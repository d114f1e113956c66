"""A trained segmenter as a function from pictures to what is at each of their pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.data.preprocess import fitted_size, pad, preprocess
from focalnet.errors import ConfigError
from focalnet.inference.detecting import finished
from focalnet.inference.tiling import Looks, Window, merge, tiles
from focalnet.models import ScoresPixels
from focalnet.ops.label_maps import label_map
from focalnet.results import Detections, PanopticMap, SemanticMap
from focalnet.samples import Size

if TYPE_CHECKING:
    from PIL.Image import Image

Found: TypeAlias = "SemanticMap | Detections | PanopticMap"


class Look(NamedTuple):
    """One way to look at a part of a picture.

    Args:
        window: the part, and whether it is mirrored.
        core: where in the picture this part decides.
        size: height and width that the network sees.
    """

    window: Window
    core: Window
    size: Size


class Segmenting:
    """Prepares pictures for a segmenter, and makes one result of all looks at each.

    Args:
        network: with a card, which says how large it wants its pictures.
        looks: in how many ways to look at each.
        min_score: objects below are left out, where the network finds objects.
        batch_size: looks that go through the network at once; only those of one size do, so that no picture
            is padded for the sake of another.

    Raises:
        ConfigError: there is no card, or the looks cannot be joined.
    """

    def __init__(self, network: ScoresPixels[Any, Any], looks: Looks, *, min_score: float, batch_size: int) -> None:
        if network.card is None:
            raise ConfigError(
                f"this {type(network).__name__} does not know its classes: set model.card = ModelCard(name=..., "
                "class_names=..., preprocessing=Preprocessing(image_size=512, max_size=2048))"
            )
        named, count = len(network.card.class_names), network.config.num_classes
        if named not in (0, count):
            raise ConfigError(
                f"this model has {count} classes and its card names {named}: "
                "set model.card = dataclasses.replace(model.card, class_names=...)"
            )
        self.kind: str = network.config.output
        if self.kind == "panoptic" and (looks.tile or looks.flip or len(looks.short_sides) > 1):
            raise ConfigError(
                "tile, flip and several short_sides make no panoptic map: what is one segment in one look may be two "
                "in another; leave them out (one short_side may be larger), or use a semantic or instance model"
            )
        self.network, self.looks, self.min_score, self.batch_size = network, looks, min_score, batch_size
        self.class_names = network.card.class_names
        self.preprocessing = network.card.preprocessing
        if self.preprocessing.max_size is None:  # not said: as on ADE20K
            self.preprocessing = replace(self.preprocessing, max_size=4 * self.preprocessing.image_size)

    def prepare(self, image: Image) -> list[list[Look]]:
        """The looks at each part of a picture; their pixels are made when it is their turn: there may be thousands."""
        mirrored = (False, True) if self.looks.flip else (False,)
        return [
            [Look(replace(window, mirrored=m), core, size) for size in self._sizes(window) for m in mirrored]
            for window, core in tiles(image.height, image.width, self.looks.tile, self.looks.overlap)
        ]

    def _sizes(self, window: Window) -> list[Size]:
        """What a part is resized to; the limit of the long side grows and shrinks with the short one, as in mmseg."""
        usual, longest = self.preprocessing.image_size, self.preprocessing.max_size
        assert longest is not None
        sides = self.looks.short_sides or (usual,)
        return [fitted_size((window.height, window.width), side, round(longest * side / usual)) for side in sides]

    def predict(self, images: Sequence[Image], prepared: Sequence[list[list[Look]]]) -> Iterator[Found]:
        """What each picture shows, in its own pixels."""
        pairs = list(zip(images, prepared, strict=True))
        every = ((image, look) for image, parts in pairs for ways in parts for look in ways)
        if self.kind == "semantic":
            scores = self._scores(every)
            for image, parts in pairs:
                yield self._semantic(image, parts, scores)
            return
        found = self._segments(every)
        for image, parts in pairs:
            results = [(look.window, next(found)) for ways in parts for look in ways]
            yield results[0][1] if len(results) == 1 else _joined(results, (image.height, image.width), len(parts))

    def _semantic(self, image: Image, parts: Sequence[Sequence[Look]], scores: Iterator[Tensor]) -> SemanticMap:
        """Every part decides within its core; scores of the whole picture are never held."""
        few = self.network.config.num_classes <= 256
        labels = torch.empty((image.height, image.width), dtype=torch.uint8 if few else torch.int32)
        for ways in parts:
            window, core, _ = ways[0]
            found = label_map(self._mean(ways, scores), (window.height, window.width))
            inner = replace(core, left=core.left - window.left, top=core.top - window.top)
            core.of(labels).copy_(inner.of(found))
        return SemanticMap(labels.long(), self.class_names)

    def _mean(self, ways: Sequence[Look], scores: Iterator[Tensor]) -> Tensor:
        """Scores of a part by the mean probability of all looks, ``(N, h, w)``; of a single look, as they are."""
        if len(ways) == 1:
            return next(scores)
        window = ways[0].window
        size = meeting_size((window.height, window.width), [look.size for look in ways])
        return mean_scores(islice(scores, len(ways)), size, logits=self.network.scores_are_logits)

    def _scores(self, every: Iterable[tuple[Image, Look]]) -> Iterator[Tensor]:
        """For each look the scores of its classes, ``(N, h, w)``, no longer mirrored."""
        for batch in self._batches(every):
            with torch.inference_mode():
                scores = self.network.class_scores(self._pixels(batch))
            for (_, look), one in zip(batch, scores, strict=True):
                seen = one[:, : look.size[0], : look.size[1]]  # without padding
                yield seen.flip(-1) if look.window.mirrored else seen

    def _segments(self, every: Iterable[tuple[Image, Look]]) -> Iterator[Any]:
        """For each look the objects or the panoptic map, in pixels of its part."""
        for batch in self._batches(every):
            sizes = [look.size for _, look in batch]
            originals = [(look.window.height, look.window.width) for _, look in batch]
            with torch.inference_mode():
                results = self.network.predict(self._pixels(batch), sizes, originals)
            for result in results:
                if isinstance(result, Detections):
                    yield finished(result, self.min_score, self.class_names)
                elif isinstance(result, PanopticMap):
                    yield replace(result, ids=result.ids.cpu(), names=self.class_names)

    def _batches(self, every: Iterable[tuple[Image, Look]]) -> Iterator[list[tuple[Image, Look]]]:
        """Looks of one size that follow each other."""
        for _, alike in groupby(every, key=lambda pair: pair[1].size):
            while batch := list(islice(alike, self.batch_size)):
                yield batch

    def _pixels(self, batch: Sequence[tuple[Image, Look]]) -> Tensor:
        """What the network sees, ``(B, 3, H, W)``, normalised and padded as it asks."""
        seen = []
        for image, (window, _, size) in batch:
            box = (window.left, window.top, window.left + window.width, window.top + window.height)
            one = preprocess(image.crop(box), self.preprocessing, size)
            seen.append(one.flip(-1) if window.mirrored else one)
        images = pad(seen, self.network.config.size_divisor)
        return images.to(self.network.device, self.network.dtype).contiguous(memory_format=torch.channels_last)


def meeting_size(part: Size, looks: Sequence[Size]) -> Size:
    """Where the scores of several looks meet: at the part's own size, or that of the largest look if smaller.

    There is no more to see.
    """
    return min(part, max(looks, key=math.prod), key=math.prod)


def mean_scores(scores: Iterable[Tensor], size: Size, *, logits: bool) -> Tensor:
    """What several looks at the same pixels say together, ``(N, *size)``: the mean of their probabilities.

    Args:
        scores: of each look, ``(N, h, w)``.
        size: all are resized to it.
        logits: whether they become probabilities by a softmax; otherwise they are taken as they are.
    """
    total: Tensor | float = 0.0
    count = 0
    for look in scores:
        one = F.interpolate(look[None].float(), size, mode="bilinear")[0]
        total = total + (one.softmax(0) if logits else one)
        count += 1
    assert isinstance(total, Tensor)
    return total / count


def slide(network: ScoresPixels[Any, Any], images_BCHW: Tensor, crop: Size, stride: Size) -> Tensor:
    """Class scores ``(B, N, H, W)`` of images seen through a window that slides over them, as mmseg does.

    Where windows overlap, the mean of their scores holds. The last window of each row and column is shifted inwards.

    Args:
        network: gives the scores of each window at the window's size.
        images_BCHW: normalised.
        crop: height and width of the window, multiples of the network's ``size_divisor``; a smaller image is seen
            whole.
        stride: how far it moves, down and to the right.

    Raises:
        ConfigError: a window or stride without pixels, a stride that leaves gaps, or a window whose sides are not
            such multiples.
    """
    for name, (down, right) in (("crop", crop), ("stride", stride)):
        if min(down, right) < 1:
            raise ConfigError(f"{name}={(down, right)} must be at least 1 pixel each way")
    if stride[0] > crop[0] or stride[1] > crop[1]:
        raise ConfigError(f"stride={stride} leaves gaps between windows of crop={crop}: make it no larger")
    check_window(crop, network.config.size_divisor)
    batch, (height, width) = len(images_BCHW), images_BCHW.shape[2:]
    total = images_BCHW.new_zeros((batch, network.config.num_classes, height, width))
    count = images_BCHW.new_zeros((height, width))
    for top in _stops(height, crop[0], stride[0]):
        for left in _stops(width, crop[1], stride[1]):
            window = Window(left, top, min(crop[1], width), min(crop[0], height))
            window.of(total).add_(network.class_scores(window.of(images_BCHW)))
            window.of(count).add_(1)
    return total / count


def check_window(crop: Size, divisor: int, name: str = "crop") -> None:
    """Raises ConfigError unless a window's sides are multiples of a network's ``size_divisor``."""
    for side in crop:
        if side % divisor:
            near = max(round(side / divisor), 1) * divisor
            raise ConfigError(f"{name}={side} must be a multiple of the network's size_divisor={divisor}: take {near}")


def _stops(side: int, crop: int, stride: int) -> list[int]:
    """Where the window stands along one side."""
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - crop), 0) for i in range(count)]


def _joined(results: Sequence[tuple[Window, Detections]], size: Size, parts: int) -> Detections:
    """Objects found in several looks, at most as many for each part as in the look that found most."""
    return merge(results, size, parts * max(len(found) for _, found in results))
