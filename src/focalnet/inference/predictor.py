"""A trained network as a function from pictures to nouns."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, overload

import torch
from torch import nn

from focalnet import zoo
from focalnet.data.images import read
from focalnet.data.transforms import eval_transform
from focalnet.errors import ConfigError, ImageError
from focalnet.models import Classifier
from focalnet.models.classifier import postprocess
from focalnet.structures import Classification

if TYPE_CHECKING:
    from PIL.Image import Image

Source: TypeAlias = "str | Path | bytes | Image"
"""A file, its bytes, or a picture."""

SET_CARD = "set model.card = ModelCard(name=..., class_names=..., preprocessing=...)"


class Prepared(NamedTuple):
    """A picture that has been read: where from, itself, and the network's input ``(C, H, W)``."""

    path: str | None
    image: Image
    pixels: torch.Tensor


class Predictor:
    """Names what pictures show: ``Predictor("focalnet_nano.cifar10")("cat.jpg")``.

    Pictures are read and prepared, as the model's card says, by a few threads, and go through the
    network in batches.

    Args:
        model: a classifier with a card; or a name or file of ``focalnet.load``. It is moved to
            ``device`` and set to evaluation mode.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; default: a GPU where there is one.
        batch_size: pictures that go through the network at once.
        top_k: classes in each result, best first.

    Raises:
        ConfigError: a model without card or classes, or a device that is not there.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        device: str | torch.device | None = None,
        *,
        batch_size: int = 32,
        top_k: int = 5,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("top_k", top_k)):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        network = zoo.load(model) if isinstance(model, (str, Path)) else model
        if not isinstance(network, Classifier) or network.num_classes == 0:
            raise ConfigError(f"this {type(network).__name__} has no classes to name: Predictor needs a Classifier")
        if network.card is None:
            raise ConfigError(f"this {type(network).__name__} does not know how to prepare a picture: {SET_CARD}")
        self.device = _device(device)
        self.model = network.to(self.device).eval()
        self.class_names = class_names(network)
        self.batch_size, self.top_k = batch_size, top_k
        self._transform = eval_transform(network.card.preprocessing)

    @overload
    def __call__(self, images: Source) -> Classification: ...  # type: ignore[overload-overlap]  # a str is a sequence
    @overload
    def __call__(self, images: Sequence[Source]) -> list[Classification]: ...

    def __call__(self, images: Source | Sequence[Source]) -> Classification | list[Classification]:
        """Returns the noun of one picture, or those of a list, in order.

        Raises:
            ImageError: a picture that cannot be read.
        """
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
            return list(self.stream(images))
        return next(self.stream([images]))

    def stream(
        self, images: Iterable[Source], *, skip: Callable[[ImageError], None] | None = None
    ) -> Iterator[Classification]:
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
        return Prepared(path, image, self._transform(image))

    def _predict(self, batch: Sequence[Prepared]) -> Iterator[Classification]:
        if not batch:
            return
        images_BCHW = torch.stack([prepared.pixels for prepared in batch])
        with torch.inference_mode():
            logits = self.model(images_BCHW.to(next(self.model.parameters())))  # its device and type
        for prepared, found in zip(batch, postprocess(logits, self.class_names, self.top_k), strict=True):
            yield dataclasses.replace(found, path=prepared.path, image=prepared.image)


def class_names(model: Classifier) -> tuple[str, ...]:
    """The names on the model's card, or ``"class 0"``, ``"class 1"``, ... where they are unknown.

    Raises:
        ConfigError: the card has names for another number of classes.
    """
    known = model.card.class_names if model.card else ()
    if known and len(known) != model.num_classes:
        raise ConfigError(
            f"this model has {model.num_classes} classes and its card names {len(known)}: "
            "set model.card = dataclasses.replace(model.card, class_names=...)"
        )
    return known or tuple(f"class {label}" for label in range(model.num_classes))


def devices() -> list[str]:
    """What networks can run on here: ``"cpu"``, and ``"cuda:0"``, ``"mps:0"``, ... where there are such."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]


def _device(wanted: str | torch.device | None) -> torch.device:
    if wanted is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:  # not even the name of one
        device = None
    if device is None or (device.type != "cpu" and f"{device.type}:{device.index or 0}" not in devices()):
        raise ConfigError(f'no device "{wanted}" here; there are: {", ".join(devices())}')
    return device
