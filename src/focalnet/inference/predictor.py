"""A trained network as a function from images to results."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import nn

from focalnet.errors import ConfigError, FocalNetError, ImageError, InputError
from focalnet.inference.exported import load_network
from focalnet.inference.pipelines import PIPELINES, Options
from focalnet.inference.sources import Source, is_one, read, several
from focalnet.inference.tta import Views
from focalnet.models import Model
from focalnet.results import Result

if TYPE_CHECKING:
    from PIL.Image import Image


class Prepared(NamedTuple):
    """An image that has been read: its file, the image itself, and what the pipeline made of it."""

    path: str | None
    image: Image
    inputs: Any


class Predictor:
    """Predicts what images show: ``Predictor("focalnet_nano.cifar10")("cat.jpg")``.

    A classifier gives a ``Classification``, a multi-label classifier ``MultiLabel``, a detector ``Detections``, and a
    segmenter a ``SemanticMap``, ``Detections`` with masks or a ``PanopticMap``. Images are read by a few threads,
    prepared as the model's card says, and go through the network in batches.

    Args:
        model: a classifier, detector or segmenter with a card; or a name or file of ``focalnet.load``, or a file of
            ``focalnet.export``, which stays on the CPU. It is moved to ``device`` and set to evaluation mode.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; default: a GPU if there is one.
        batch_size: images (or views of them) that go through the network at once; default: 32 for a classifier,
            2 for the others, whose images are large.
        top_k: of a classifier: classes in each result, best first.
        min_score: objects below are left out, and classes of a multi-label classifier; semantic and panoptic maps do
            not use it. Default: 0.3 for objects, 0.5 for classes.
        views: of a detector or segmenter: tiles, mirrored images and sizes (test-time augmentation).
        looks: the old name of ``views``.

    Raises:
        ConfigError: a model without a card or classes, or a device that does not exist.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        device: str | torch.device | None = None,
        *,
        batch_size: int | None = None,
        top_k: int = 5,
        min_score: float | None = None,
        views: Views = Views(),  # noqa: B008 (frozen)
        looks: Views | None = None,
    ) -> None:
        if looks is not None:
            warnings.warn("Predictor's argument looks is called views now", DeprecationWarning, stacklevel=2)
            views = looks
        for name, value in (("batch_size", batch_size), ("top_k", top_k)):
            if value is not None and not (isinstance(value, Integral) and 1 <= value < 2**31):
                raise ConfigError(f"{name}={value!r} must be a whole number, from 1 to {2**31 - 1}")
        if min_score is not None and (not isinstance(min_score, Real) or not 0 <= min_score <= 1):
            raise ConfigError(f"min_score={min_score!r} must be between 0 and 1")
        network: nn.Module = load_network(model) if isinstance(model, (str, Path)) else model
        if not isinstance(network, Model) or network.config.num_classes == 0:
            raise ConfigError(
                f"this {type(network).__name__} has no classes to name: "
                "Predictor needs a Classifier, a detector or a segmenter"
            )
        pipeline = PIPELINES[network.config.output]
        self.batch_size = batch_size or pipeline.default_batch_size
        least = pipeline.default_min_score if min_score is None else min_score
        self._pipeline = pipeline(network, Options(views, self.batch_size, top_k, least))
        self.class_names = self._pipeline.class_names
        self.device = pick_device(device)
        self.model: Model[Any, Any] = network.to(self.device).eval()

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[Result]: ...
    @overload
    def __call__(self, images: Source | Iterable[Source]) -> Any: ...

    def __call__(self, images: Source | Iterable[Source]) -> Any:
        """Returns the result of one image, or the list of those of several, in order.

        Args:
            images: one image: a path, an address (``https://...``), bytes, an opened file, a PIL image, a NumPy array
                ``(H, W, 3)`` in the order red, green, blue (OpenCV's is blue, green, red: give ``image[..., ::-1]``), a
                tensor ``(3, H, W)``; 8 bits, or floating point from 0 to 1. Or several: a list or generator of them, a
                folder, a pattern such as ``"photos/*.jpg"``, a video, a batch of four dimensions.

        Returns:
            a ``Result``; for several images a list of them.

        Raises:
            ImageError: an image that cannot be read.
            InputError: something else, or an array or tensor that is no image.
            DataError: a folder or pattern without images.
        """
        if is_one(images):
            return next(self.stream([images]))  # type: ignore[list-item]
        return list(self.stream(images))

    def stream(
        self, images: Source | Iterable[Source], *, skip: Callable[[ImageError], None] | None = None
    ) -> Iterator[Result]:
        """Yields the results one after another, holding no more than one batch of images.

        Args:
            images: one or several, as for a call.
            skip: called with the error of each image that cannot be read, which is then left out;
                default: the error is raised.

        Raises:
            ImageError: an image that cannot be read, without ``skip``.
            InputError: something else, or an array or tensor that is no image.
            DataError: a folder or pattern without images.
        """
        pending = iter([images] if is_one(images) else several(images))
        with ThreadPoolExecutor(min(self.batch_size, os.cpu_count() or 1)) as pool:
            while sources := list(islice(pending, self.batch_size)):
                batch = []
                for prepared in pool.map(self._prepare, sources):
                    if isinstance(prepared, Prepared):
                        batch.append(prepared)
                    elif skip is None:
                        raise prepared
                    else:
                        skip(prepared)
                yield from self._predict(batch)

    def attempt(self, images: Iterable[Source]) -> Iterator[Result | FocalNetError]:
        """Yields for each of several images, in order, its result, or the error that there is instead of one.

        The next batch is read while the network computes; no more than the two are held. Where a batch has no
        prediction (outputs that are not finite), its images are predicted one by one, so that only those at fault
        have an error. Results come without their image.

        Args:
            images: as in the list of a call.
        """
        pending = iter(images)
        with ThreadPoolExecutor(min(self.batch_size, os.cpu_count() or 1)) as pool:
            following = [pool.submit(self._attempt, source) for source in islice(pending, self.batch_size)]
            while current := following:
                following = [pool.submit(self._attempt, source) for source in islice(pending, self.batch_size)]
                prepared = [future.result() for future in current]
                results = iter(self._attempted([one for one in prepared if isinstance(one, Prepared)]))
                for one in prepared:
                    yield next(results) if isinstance(one, Prepared) else one

    def _attempt(self, source: Source) -> Prepared | FocalNetError:
        try:
            return self._prepare(source)
        except InputError as error:  # an array that is not an image
            return error

    def _attempted(self, batch: Sequence[Prepared]) -> list[Result | FocalNetError]:
        try:
            return [dataclasses.replace(result, image=None) for result in self._predict(batch)]  # type: ignore[type-var]
        except FocalNetError as error:
            if len(batch) == 1:
                return [error]
            return [result for one in batch for result in self._attempted([one])]

    def _prepare(self, source: Source) -> Prepared | ImageError:
        try:
            image, path = read(source)
        except ImageError as error:
            return error
        return Prepared(path, image, self._pipeline.prepare(image))

    def _predict(self, batch: Sequence[Prepared]) -> Iterator[Result]:
        if not batch:
            return
        results = self._pipeline.predict([p.image for p in batch], [p.inputs for p in batch])
        for prepared, result in zip(batch, results, strict=True):
            yield dataclasses.replace(result, path=prepared.path, image=prepared.image)  # type: ignore[type-var]


def devices() -> list[str]:
    """The devices of this machine: ``"cpu"``, and ``"cuda:0"``, ``"mps:0"``, ... if it has them."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]


def pick_device(wanted: str | torch.device | None) -> torch.device:
    """Returns the device of that name, or a GPU if there is one; raises ConfigError if this machine lacks it."""
    if wanted is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:  # not even the name of one
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in ("cpu:0", *devices()):
        raise ConfigError(f'no device "{wanted}" here; there are: {", ".join(devices())}')
    return device
