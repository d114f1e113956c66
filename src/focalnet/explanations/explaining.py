"""From a model and an image to an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from focalnet import zoo
from focalnet.card import Preprocessing
from focalnet.errors import ConfigError
from focalnet.explanations.attribution import DEFAULT_METHOD, HeatMap, attribute
from focalnet.explanations.explanation import BlockMaps, Explanation
from focalnet.explanations.preparing import Prepared, evaluating, forward, prepare, results, stride_of
from focalnet.explanations.recording import BlockRecord, record, root
from focalnet.explanations.targets import Target, logits_of, ranking
from focalnet.inference.pipelines import class_names
from focalnet.inference.sources import Source
from focalnet.models import Model
from focalnet.models.base import check_finite
from focalnet.models.classifier import best_classes
from focalnet.results import Result


def explain(
    model: nn.Module | str | Path,
    image: Source | Prepared,
    blocks: Sequence[str] | None = None,
    *,
    target: Target | int | str | None = None,
    method: str | None = None,
    preprocessing: Preprocessing | None = None,
) -> Explanation:
    """Shows what a network attends to: gates of each focal level, the modulator, and where an answer comes from.

    Args:
        model: a network of this library, of any task; a FocalNet of timm or transformers; or what ``focalnet.load``
            takes.
        image: one image, in any form that ``Predictor`` takes; its normalized pixels ``(1, C, H, W)``; or what
            ``prepare`` gives of it.
        blocks: names of blocks, e.g. ``"layers.3.blocks.1"``; default: the last one of each stage.
        target: what to explain with a heat map: the index or name of a class, or a target (see ``targets_of``);
            default: what the network is most sure of.
        method: a key of ``METHODS``; default: ``"context_cam"`` if a target is given, otherwise no heat map.
        preprocessing: of the image, for a model that does not state its own.

    Raises:
        ConfigError: no such block, class or method, or a model that is not a FocalNet or does not know how to prepare
            an image.
        FrozenError: a model frozen by ``focalnet.optimize``; the message says how to thaw it.
        ImageError: the image cannot be read.
    """
    if isinstance(model, (str, Path)):
        model = zoo.load(model)
    with evaluating(model) as network:
        root(network)  # refuses what is not a FocalNet, before the image is read
        prepared = image if isinstance(image, Prepared) else prepare(network, image, preprocessing)
        with torch.inference_mode(), record(network, blocks) as records:
            outputs = forward(network, prepared.pixels, prepared.size)
            prediction = _prediction(network, outputs, prepared)
    heat: HeatMap | None = None
    if method is not None or target is not None:
        heat = attribute(network, prepared, target, method or DEFAULT_METHOD, result=prediction)
    return Explanation(
        image=prepared.image,
        blocks=tuple(_maps(name, found, network, prepared) for name, found in records.items()),
        path=prepared.path,
        prediction=prediction,
        heat=heat,
    )


def _maps(name: str, found: BlockRecord, model: nn.Module, prepared: Prepared) -> BlockMaps:
    """Maps of the block on the CPU, and what they cover: odd sizes drop or add a rim at the right and the bottom."""
    stride = stride_of(model, name)
    height, width = found.modulator.shape[2:]
    left, top, right, bottom = prepared.region
    x, y = (right - left) * stride / prepared.size[1], (bottom - top) * stride / prepared.size[0]
    return BlockMaps(
        name=name,
        gates=found.gates[0].float().cpu().numpy(),
        modulator=found.modulator[0].float().norm(dim=0).cpu().numpy(),
        region=(left, top, left + width * x, top + height * y),
    )


def _prediction(model: nn.Module, outputs: object, prepared: Prepared) -> Result | None:
    """What the network predicts; None for a backbone."""
    if isinstance(model, Model):
        if model.config.num_classes == 0:
            return None
        if model.config.output != "classification":  # of which the five best classes are shown
            return results(model, outputs, prepared.size, prepared.original, 1)[0]
        assert isinstance(outputs, torch.Tensor)
        check_finite(outputs)
        best: Result = best_classes(outputs.cpu(), class_names(model))[0]
        return best
    try:
        return ranking(logits_of(outputs))
    except ConfigError:  # a backbone
        return None
