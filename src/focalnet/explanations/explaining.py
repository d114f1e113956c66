"""From a model and a picture to an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from focalnet import zoo
from focalnet.card import Preprocessing
from focalnet.data.preprocess import covering_size, preprocess
from focalnet.errors import ConfigError
from focalnet.explanations.explanation import BlockMaps, Explanation
from focalnet.explanations.recording import BlockRecord, record
from focalnet.inference.pipelines import SET_CARD, class_names
from focalnet.inference.sources import Source, read
from focalnet.models import Model
from focalnet.models.backbone import FocalNetBase
from focalnet.models.base import check_finite
from focalnet.models.classifier import best_classes
from focalnet.results import Classification
from focalnet.samples import Size


def explain(model: FocalNetBase | str | Path, image: Source, blocks: Sequence[str] | None = None) -> Explanation:
    """Shows what a network looked at: gates of each focal level, and the norm of the modulator.

    Args:
        model: a classifier or backbone whose card says how to prepare an image; or what ``focalnet.load`` takes.
        image: one image, in any form that ``Predictor`` takes.
        blocks: names of blocks, e.g. ``"layers.3.blocks.1"``; default: the last one of each stage.

    Raises:
        ConfigError: no such block (the message lists them), or a model without a card or of another library.
        ImageError: the picture cannot be read.
    """
    if isinstance(model, (str, Path)):
        model = zoo.load(model).backbone
    if not isinstance(model, FocalNetBase):
        raise ConfigError(
            f"a {type(model).__name__} is not a FocalNet of this library: focalnet.load reads its weights"
        )
    if model.card is None:
        raise ConfigError(f"this {type(model).__name__} does not know how to prepare an image: {SET_CARD}")
    picture, path = read(image)
    pixels = preprocess(picture, model.card.preprocessing)[None].to(next(model.parameters()))  # device and type
    was_training = model.training
    try:
        model.eval()
        with torch.inference_mode(), record(model, blocks) as records:
            output = model(pixels)
    finally:
        model.train(was_training)
    seen, size = input_region(picture.size, model.card.preprocessing), (pixels.shape[-2], pixels.shape[-1])
    return Explanation(
        image=picture,
        blocks=tuple(_maps(name, found, model, seen, size) for name, found in records.items()),
        path=path,
        prediction=_prediction(model, output),
    )


def input_region(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[float, float, float, float]:
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


def _maps(
    name: str, found: BlockRecord, model: FocalNetBase, seen: tuple[float, float, float, float], size: Size
) -> BlockMaps:
    """Maps of the block on the CPU, and what they cover: odd sizes drop or add a rim at the right and the bottom."""
    stride = model.shape.strides[int(name.split(".")[1])]
    height, width = found.modulator.shape[2:]
    left, top, right, bottom = seen
    x, y = (right - left) * stride / size[1], (bottom - top) * stride / size[0]
    return BlockMaps(
        name=name,
        gates=found.gates[0].float().cpu().numpy(),
        modulator=found.modulator[0].float().norm(dim=0).cpu().numpy(),
        region=(left, top, left + width * x, top + height * y),
    )


def _prediction(model: FocalNetBase, output: torch.Tensor) -> Classification | None:
    if not isinstance(model, Model) or model.config.num_classes == 0:
        return None
    check_finite(output)
    best: Classification = best_classes(output.cpu(), class_names(model))[0]
    return best
