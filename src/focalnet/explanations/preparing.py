"""From a model and an image to what goes through the network, for every task and library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from focalnet.card import Preprocessing
from focalnet.data.preprocess import covering_size, fitted_size, pad, preprocess
from focalnet.errors import ConfigError, InputError
from focalnet.explanations.features import lacks_modulation, last_stride
from focalnet.explanations.recording import block_names, eager, root, stage_of, uncompiled
from focalnet.inference.pipelines import SET_CARD
from focalnet.inference.sources import Source, read
from focalnet.models import Model
from focalnet.models.backbone import FocalNetBase
from focalnet.models.base import check_finite
from focalnet.results import Result
from focalnet.samples import Size

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the original image."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as a network takes it.

    Args:
        pixels: ``(1, C, H, W)``, normalized, padded right and below, on the device and in the type of the model.
        size: height and width before padding.
        original: height and width of the original image.
        region: the part of the original image that ``size`` covers.
        image: the original image; of a tensor that was normalized already, its values scaled to 0...255.
        path: the file that the image was read from, if any.
    """

    pixels: Tensor
    size: Size
    original: Size
    region: Box
    image: Image.Image = field(repr=False)
    path: str | None = None


def prepare(model: nn.Module, image: Source, preprocessing: Preprocessing | None = None) -> Prepared:
    """What a network takes of an image, as in prediction: a classifier sees the center, a dense network all of it.

    Args:
        model: a network of this library with a card, a FocalNet of timm or transformers, or a classifier of timm.
        image: one image, in any form that ``Predictor`` takes; or its normalized pixels ``(1, C, H, W)``.
        preprocessing: of the images; default: that of the model's card or of timm's configuration.

    Raises:
        ConfigError: nothing says how to prepare an image for this model.
        ImageError: the image cannot be read.
        InputError: several images, or no image.
    """
    model = uncompiled(model)
    weights = next(model.parameters())
    if isinstance(image, Tensor) and image.ndim == 4:
        return _of_pixels(image, weights)
    how = preprocessing or _preprocessing(model)
    picture, path = read(image)
    size: Size | None = None
    divisor = 1
    if isinstance(model, Model) and not model.config.classifies:
        divisor, how = model.config.size_divisor, _whole(how, model.config.output)
        assert how.max_size is not None
        size = fitted_size((picture.height, picture.width), how.short_side, how.max_size)
    pixels = preprocess(picture, how, size)
    return Prepared(
        pixels=pad([pixels], divisor).to(weights),
        size=(pixels.shape[-2], pixels.shape[-1]),
        original=(picture.height, picture.width),
        region=input_region(picture.size, how),
        image=picture,
        path=path,
    )


def input_region(size: tuple[int, int], preprocessing: Preprocessing) -> Box:
    """The part of an image that the network sees: what is left of it after resizing and cropping the center.

    Args:
        size: width and height of the image.
        preprocessing: what is done to it.

    Returns:
        left, top, right, bottom in pixels of the image.
    """
    if preprocessing.max_size is not None:
        return 0, 0, *size
    crop_height, crop_width = preprocessing.crop
    how = preprocessing
    height, width = covering_size((size[1], size[0]), how.crop, how.crop_pct, how.fit)
    left, top = round((width - crop_width) / 2), round((height - crop_height) / 2)
    x, y = size[0] / width, size[1] / height
    return left * x, top * y, (left + crop_width) * x, (top + crop_height) * y


def forward(model: nn.Module, pixels: Tensor, size: Size) -> Any:
    """The outputs of a network for a batch of images of one size before padding."""
    if isinstance(model, Model) and model.takes_sizes:
        return model(pixels, [size] * len(pixels))
    return model(pixels)


def results(model: Model[Any, Any], outputs: Any, size: Size, original: Size, count: int) -> list[Result]:
    """The results of outputs, in pixels of the original image."""
    check_finite(outputs)
    found: list[Result] = model.postprocess(outputs, [size] * count, [original] * count)
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The uncompiled model in evaluation mode; afterwards each of its modules is in the mode it had before."""
    model = uncompiled(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        if any(training for _, training in modes):
            model.eval()
        with eager(model):
            yield model
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


def stride_of(model: nn.Module, block: str) -> int:
    """Pixels of the network's input for each cell of a block's feature map."""
    if lacks_modulation(model):
        return last_stride(model)
    found = root(model)
    stages = list(dict.fromkeys(map(stage_of, block_names(found))))
    stage = stages.index(stage_of(block))
    if isinstance(found, FocalNetBase):
        return found.shape.strides[stage]
    stem: Any = getattr(found, "stem", None)
    config: Any = getattr(found, "config", None)
    if hasattr(stem, "proj"):  # timm
        first: int = stem.proj.stride[0]
    elif hasattr(config, "patch_size"):  # transformers
        first = config.patch_size
    else:
        raise ConfigError(f"the strides of a {type(found).__name__} are unknown; give the FocalNet within it")
    return first * int(2**stage)


def _of_pixels(pixels: Tensor, weights: Tensor) -> Prepared:
    if len(pixels) != 1:
        raise InputError(f"explanations are of one image, got a batch of {len(pixels)}: give them one by one")
    if pixels.shape[1] not in (1, 3) or not pixels.is_floating_point() or 0 in pixels.shape:
        raise InputError(
            f"pixels {tuple(pixels.shape)} of {pixels.dtype} are not one normalized image (1, 3, H, W) of floats"
        )
    shown = pixels[0].detach().float().cpu()
    shown = 255 * (shown - shown.min()) / (shown.max() - shown.min()).clamp(min=1e-12)
    array = shown.expand(3, -1, -1).permute(1, 2, 0).round().to(torch.uint8).numpy()
    height, width = pixels.shape[2:]
    size = (height, width)
    return Prepared(pixels.detach().to(weights), size, size, (0, 0, width, height), Image.fromarray(array))


def _preprocessing(model: nn.Module) -> Preprocessing:
    if isinstance(model, (Model, FocalNetBase)):
        if model.card is None:
            raise ConfigError(f"this {type(model).__name__} does not know how to prepare an image: {SET_CARD}")
        return model.card.preprocessing
    if not lacks_modulation(model):
        root(model)  # refuses what is not a FocalNet
    config: Any = getattr(model, "pretrained_cfg", None)
    if config is None:
        raise ConfigError(
            f"a {type(model).__name__} does not say how to prepare an image: give preprocessing=Preprocessing(...), or "
            "the normalized pixels, a tensor (1, 3, H, W)"
        )
    return Preprocessing(
        image_size=tuple(config["input_size"][1:])
        if len(set(config["input_size"][1:])) > 1
        else config["input_size"][1],
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _whole(preprocessing: Preprocessing, output: str) -> Preprocessing:
    """The preprocessing of a dense network, with the limits of the published ones where it states none."""
    if preprocessing.max_size is not None:
        return preprocessing
    if output == "detection":
        return replace(preprocessing, image_size=800, max_size=1333)
    return replace(preprocessing, image_size=preprocessing.short_side, max_size=4 * preprocessing.short_side)
