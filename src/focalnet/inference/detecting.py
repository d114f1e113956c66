"""A trained detector as a function from pictures to the objects in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torchvision.transforms.v2 import functional as F

from focalnet.data.preprocess import fitted_size, pad, preprocess
from focalnet.errors import ConfigError
from focalnet.inference.tiling import Looks, Window, merge, windows
from focalnet.models import Model
from focalnet.results import Detections

if TYPE_CHECKING:
    from PIL.Image import Image


class Look(NamedTuple):
    """One way to look at a picture: which part of it, and the network's input ``(3, H, W)``."""

    window: Window
    pixels: torch.Tensor


class Detecting:
    """Prepares pictures for a detector, and makes one result of all looks at each.

    Args:
        network: with a card, which says how large it wants its pictures.
        looks: in how many ways to look at each.
        min_score: objects below are left out.
        batch_size: looks that go through the network at once.

    Raises:
        ConfigError: there is no card.
    """

    def __init__(self, network: Model[Any, Any], looks: Looks, *, min_score: float, batch_size: int) -> None:
        if network.card is None:
            raise ConfigError(
                f"this {type(network).__name__} does not know its classes: set model.card = ModelCard(name=..., "
                "class_names=..., preprocessing=Preprocessing(image_size=800, max_size=1333))"
            )
        self.network, self.looks, self.min_score, self.batch_size = network, looks, min_score, batch_size
        self.class_names = network.card.class_names
        self.preprocessing = network.card.preprocessing
        if self.preprocessing.max_size is None:  # not said: as every published detector
            self.preprocessing = replace(self.preprocessing, image_size=800, max_size=1333)
        self.longest = self.preprocessing.max_size or 1333

    def prepare(self, image: Image) -> list[Look]:
        """Every look at a picture."""
        whole = F.pil_to_tensor(image)
        sides = self.looks.short_sides or (self.preprocessing.image_size,)
        prepared = []
        for window in windows(image.height, image.width, self.looks.tile, self.looks.overlap):
            part = window.of(whole)
            for side in sides:
                size = fitted_size((window.height, window.width), side, max(self.longest, side))
                pixels = preprocess(part, self.preprocessing, size)
                prepared.append(Look(window, pixels))
                if self.looks.flip:
                    prepared.append(Look(replace(window, mirrored=True), pixels.flip(-1)))
        return prepared

    def predict(self, images: Sequence[Image], prepared: Sequence[list[Look]]) -> Iterator[Detections]:
        """What is in each picture, best first."""
        every = [look for looks in prepared for look in looks]
        found = (
            one
            for start in range(0, len(every), self.batch_size)
            for one in self._find(every[start:][: self.batch_size])
        )
        for image, looks in zip(images, prepared, strict=True):
            results = [(look.window, next(found)) for look in looks]
            size = (image.height, image.width)
            limit = self.network.config.max_per_image * len({replace(w, mirrored=False) for w, _ in results})
            yield results[0][1] if len(results) == 1 else merge(results, size, limit)

    def _find(self, looks: Sequence[Look]) -> Iterator[Detections]:
        sizes = [(look.pixels.shape[-2], look.pixels.shape[-1]) for look in looks]
        originals = [(look.window.height, look.window.width) for look in looks]
        with torch.inference_mode():
            images = pad([look.pixels for look in looks], self.network.config.size_divisor).to(
                self.network.device, self.network.dtype
            )
            images = images.contiguous(memory_format=torch.channels_last)
            results = self.network.predict(images, sizes, originals)
        for result in results:
            yield finished(result, self.min_score, self.class_names)


def finished(result: Detections, min_score: float, names: tuple[str, ...]) -> Detections:
    """What a network found, on the CPU, without the objects below ``min_score``, and with the names of its classes."""
    kept = result.above(min_score)
    return replace(
        kept,
        boxes=kept.boxes.float().cpu(),
        scores=kept.scores.float().cpu(),
        labels=kept.labels.cpu(),
        masks=None if kept.masks is None else kept.masks.cpu(),
        names=names,
    )
