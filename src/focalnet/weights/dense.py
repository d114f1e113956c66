"""Adapts a classifier's weights to a backbone with other focal windows or levels, for dense prediction.

The rules are those of the official detection code (``mmcv_custom/checkpoint.py`` of microsoft/FocalNet):
kernels are zero-padded or cropped around their center. The gates of an extra level are zero, so that it has no
effect at first, and its depthwise kernel keeps its random initial values; the global gate stays last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import ConfigError

_KERNEL = re.compile(r"(?P<modulation>.*\.modulation)\.focal_layers\.\d+\.0\.weight")
_GATES = re.compile(r".*\.modulation\.f\.(?:weight|bias)")
_OUT_NORM = re.compile(r"norm\d+\.(?:weight|bias)")
_CLASSIFIER_ONLY = re.compile(r"(?:norm|head)\.(?:weight|bias)")


def adapt(state_dict: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapts tensors to the shapes of a model with other focal windows or more focal levels.

    Args:
        state_dict: a classifier's or backbone's tensors under our names, a leading ``visual.`` allowed.
        model: the state dict of the model; only its names and shapes are used. Head and final norm are dropped if
            the model has none.

    Raises:
        ConfigError: the model has fewer focal levels than the weights.
    """
    given = {key.removeprefix("visual."): tensor for key, tensor in state_dict.items()}
    given = {key: tensor for key, tensor in given.items() if key in model or not _CLASSIFIER_ONLY.fullmatch(key)}
    _check_levels(given, model)
    return {key: _fit(key, tensor, model[key].shape) if key in model else tensor for key, tensor in given.items()}


def initial(state_dict: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> list[str]:
    """Keys of the model that keep their initial values: norms of feature maps, kernels of extra levels."""

    def is_new(key: str) -> bool:
        kernel = _KERNEL.fullmatch(key)
        extra_level = kernel is not None and f"{kernel['modulation']}.f.weight" in state_dict
        return extra_level or _OUT_NORM.fullmatch(key) is not None

    return [key for key in model if key not in state_dict and is_new(key)]


def resize_kernel(kernel: Tensor, size: int) -> Tensor:
    """Zero-pads or crops ``(C, 1, k, k)`` around the center to ``(C, 1, size, size)``; k and size odd."""
    margin = (size - kernel.shape[-1]) // 2
    return F.pad(kernel, [margin] * 4)  # a negative margin crops


def add_gates(rows: Tensor, count: int) -> Tensor:
    """Extends the rows ``[query, context, gate_0 .., global gate]`` to ``count``, with zeros before the global gate."""
    gates = rows.new_zeros((count - rows.shape[0], *rows.shape[1:]))
    return torch.cat([rows[:-1], gates, rows[-1:]])


def _fit(key: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """The tensor in this shape if a rule applies; otherwise unchanged, so that the report lists it."""
    odd = tensor.ndim == len(shape) == 4 and tensor.shape[-1] % 2 == shape[-1] % 2 == 1
    if tensor.shape == shape:
        return tensor
    if _KERNEL.fullmatch(key) and odd and tensor.shape[:2] == shape[:2] and tensor.shape[2] == tensor.shape[3]:
        return resize_kernel(tensor, shape[-1])
    if _GATES.fullmatch(key) and tensor.shape[1:] == shape[1:] and tensor.shape[0] < shape[0]:
        return add_gates(tensor, shape[0])
    return tensor


def _check_levels(given: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    for key in given:
        match = _KERNEL.fullmatch(key)
        if match and f"{match['modulation']}.f.weight" in model and key not in model:
            raise ConfigError(
                f"the weights have more focal levels than the model ({key}), which cannot be removed: "
                f"keep or raise focal_levels"
            )
