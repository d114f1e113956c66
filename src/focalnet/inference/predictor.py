"""A trained network as a function from pictures to nouns."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

import torch
from torch import nn

from focalnet import zoo
from focalnet.data.images import read
from focalnet.data.preprocess import eval_transform
from focalnet.errors import ConfigError, ImageError
from focalnet.inference.detecting import Detecting
from focalnet.inference.segmenting import Segmenting
from focalnet.inference.tiling import Looks
from focalnet.models import Model, ScoresPixels
from focalnet.models.classifier import best_classes
from focalnet.results import Classification, Detections, PanopticMap, SemanticMap

if TYPE_CHECKING:
    from PIL.Image import Image

Source: TypeAlias = "str | Path | bytes | Image"
"""A file, its bytes, or a picture."""

SET_CARD = "set model.card = ModelCard(name=..., class_names=..., preprocessing=...)"


Noun: TypeAlias = "Classification | Detections | SemanticMap | PanopticMap"
"""What a picture shows, what is where in it, or what each of its pixels belongs to."""


class Prepared(NamedTuple):
    """A picture that has been read: where from, itself, and what the network takes of it."""

    path: str | None
    image: Image
    inputs: Any


class Predictor:
    """Names what pictures show: ``Predictor("focalnet_nano.cifar10")("cat.jpg")``.

    With a detector or segmenter, says what is where. Pictures are read by a few threads, prepared as the model's
    card says, and go through the network in batches.

    Args:
        model: a classifier, detector or segmenter with a card; or a name or file of ``focalnet.load``. It is moved
            to ``device`` and set to evaluation mode.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; default: a GPU where there is one.
        batch_size: pictures (or looks at them) that go through the network at once; default: 32 for a classifier,
            2 for the others, whose pictures are large.
        top_k: of a classifier: classes in each result, best first.
        min_score: objects below are left out; of no concern to maps.
        looks: of a detector or segmenter: tiles, mirroring and sizes.

    Raises:
        ConfigError: a model without card or classes, or a device that is not there.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        device: str | torch.device | None = None,
        *,
        batch_size: int | None = None,
        top_k: int = 5,
        min_score: float = 0.3,
        looks: Looks = Looks(),  # noqa: B008 (frozen)
    ) -> None:
        for name, value in (("batch_size", batch_size), ("top_k", top_k)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if not 0 <= min_score <= 1:
            raise ConfigError(f"min_score={min_score} must be between 0 and 1")
        network: nn.Module = zoo.load(model) if isinstance(model, (str, Path)) else model
        if not isinstance(network, Model) or network.config.num_classes == 0:
            raise ConfigError(
                f"this {type(network).__name__} has no classes to name: "
                "Predictor needs a Classifier, a detector or a segmenter"
            )
        output = network.config.output
        self.batch_size = batch_size or (32 if output == "classification" else 2)
        self._way: _Classifying | Detecting | Segmenting
        if output == "classification":
            self._way = _Classifying(network, top_k)
        elif output == "detection":
            self._way = Detecting(network, looks, min_score=min_score, batch_size=self.batch_size)
        else:
            assert isinstance(network, ScoresPixels)
            self._way = Segmenting(network, looks, min_score=min_score, batch_size=self.batch_size)
        self.class_names = self._way.class_names
        self.device = pick_device(device)
        self.model: Model[Any, Any] = network.to(self.device).eval()

    @overload
    def __call__(self, images: Source) -> Noun: ...  # type: ignore[overload-overlap]  # a str is a sequence
    @overload
    def __call__(self, images: Sequence[Source]) -> list[Noun]: ...

    def __call__(self, images: Source | Sequence[Source]) -> Noun | list[Noun]:
        """Returns the noun of one picture, or those of a list, in order.

        Raises:
            ImageError: a picture that cannot be read.
        """
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
            return list(self.stream(images))
        return next(self.stream([images]))

    def stream(self, images: Iterable[Source], *, skip: Callable[[ImageError], None] | None = None) -> Iterator[Noun]:
        """Yields the nouns one after another, holding no more than one batch of pictures.

        Args:
            images: files, their bytes, or pictures.
            skip: called with the error of each picture that cannot be read, which is then left out;
                default: the error is raised.

        Raises:
            ImageError: a picture that cannot be read, without ``skip``.
        """
        pending = iter(images)
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

    def _prepare(self, source: Source) -> Prepared | ImageError:
        try:
            image = read(source)
        except ImageError as error:
            return error
        path = str(source) if isinstance(source, (str, Path)) else None
        return Prepared(path, image, self._way.prepare(image))

    def _predict(self, batch: Sequence[Prepared]) -> Iterator[Noun]:
        if not batch:
            return
        found: Iterator[Noun] = self._way.predict([p.image for p in batch], [p.inputs for p in batch])
        for prepared, noun in zip(batch, found, strict=True):
            yield dataclasses.replace(noun, path=prepared.path, image=prepared.image)


class _Classifying:
    """Prepares pictures for a classifier, and names its best classes."""

    def __init__(self, network: Model[Any, Any], top_k: int) -> None:
        if network.card is None:
            raise ConfigError(f"this {type(network).__name__} does not know how to prepare a picture: {SET_CARD}")
        self.network, self.top_k = network, top_k
        self.class_names = class_names(network)
        self.prepare = eval_transform(network.card.preprocessing)

    def predict(self, images: Sequence[Image], prepared: Sequence[torch.Tensor]) -> Iterator[Classification]:
        """The best classes of each picture."""
        images_BCHW = torch.stack(list(prepared))
        with torch.inference_mode():
            logits = self.network(images_BCHW.to(self.network.device, self.network.dtype))
        yield from best_classes(logits, self.class_names, self.top_k)


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


def devices() -> list[str]:
    """What networks can run on here: ``"cpu"``, and ``"cuda:0"``, ``"mps:0"``, ... where there are such."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]


def pick_device(wanted: str | torch.device | None) -> torch.device:
    """The device of that name, or the best there is; ConfigError for one that is not here."""
    if wanted is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:  # not even the name of one
        device = None
    if device is None or (device.type != "cpu" and f"{device.type}:{device.index or 0}" not in devices()):
        raise ConfigError(f'no device "{wanted}" here; there are: {", ".join(devices())}')
    return device
