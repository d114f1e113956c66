"""How far a FocalNet looks: the effective receptive field of a position, and the effective kernels of its levels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalnet.card import Preprocessing
from focalnet.errors import ConfigError
from focalnet.explanations.preparing import Prepared, evaluating, forward, prepare, stride_of
from focalnet.explanations.recording import chosen, kernel_weights, root, trace
from focalnet.inference.sources import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class KernelProfile:
    """How a block gathers context with distance, from its weights alone.

    Level l sees the context through the depthwise kernels of levels 1 to l, one after another. Without the GELU between
    them, their convolution is one kernel for each channel: the effective kernel.

    Args:
        kernels: of each level ``(k, k)``, averaged over channels, as in the paper's figure.
        effective: of each level ``(e, e)``, the mean over channels of the absolute effective kernel; sums to 1.
        shares: ``(L, r + 1)``, the share of each effective kernel at a distance of 0, 1, ..., r cells (the larger of
            the horizontal and the vertical one).
        stride: pixels of the network's input for each cell.
    """

    kernels: tuple[NDArray[np.float32], ...] = field(repr=False)
    effective: tuple[NDArray[np.float32], ...] = field(repr=False)
    shares: NDArray[np.float32] = field(repr=False)
    stride: int


def kernel_profiles(model: nn.Module, blocks: list[str] | None = None) -> dict[str, KernelProfile]:
    """The kernel profiles of chosen blocks, by name; default: the last block of each stage.

    Raises:
        ConfigError: no such block.
    """
    profiles = {}
    for name, weights in kernel_weights(model, blocks).items():
        effective, shares = [], []
        composed: Tensor | None = None
        for weight in weights:
            composed = weight if composed is None else _composed(composed, weight)
            size = composed.abs().mean((0, 1))
            effective.append(size / size.sum().clamp(min=1e-12))
        reach = effective[-1].shape[0] // 2 if effective else 0
        for size in effective:
            distance = torch.arange(-(size.shape[0] // 2), size.shape[0] // 2 + 1).abs()
            ring = torch.maximum(distance[:, None], distance[None]).flatten()
            shares.append(torch.zeros(reach + 1).index_add_(0, ring, size.flatten().cpu()))
        profiles[name] = KernelProfile(
            kernels=tuple(weight.mean((0, 1)).cpu().numpy() for weight in weights),
            effective=tuple(size.cpu().numpy() for size in effective),
            shares=(torch.stack(shares) if shares else torch.zeros(0, 1)).numpy(),
            stride=stride_of(model, name),
        )
    return profiles


def receptive_field(
    model: nn.Module,
    image: Source | Prepared,
    block: str | None = None,
    position: tuple[float, float] | None = None,
    *,
    preprocessing: Preprocessing | None = None,
) -> Tensor:
    """The effective receptive field of a position: how much each pixel moves the features there.

    It is the sum over channels of the absolute derivative of the block's summed output at the position by each pixel
    (Luo et al., NeurIPS 2016, arXiv 1701.04128), scaled to a sum of 1.

    Args:
        model: a network of this library, or a FocalNet of timm or transformers.
        image: as for ``attribute``.
        block: name of the block whose output is looked at; default: the last one.
        position: x and y in pixels of the network's input, without padding; default: its center.
        preprocessing: of the image, for a model that does not state its own.

    Returns:
        ``(H, W)``, float32, at the resolution of the network's input without padding.

    Raises:
        ConfigError: no such block, or the position is outside the image.
    """
    with torch.inference_mode(False), evaluating(model) as network:
        name = chosen(root(network), None if block is None else [block])[-1]
        prepared = image if isinstance(image, Prepared) else prepare(network, image, preprocessing)
        height, width = prepared.size
        x, y = (width / 2, height / 2) if position is None else position
        if not (0 <= x < width and 0 <= y < height):
            raise ConfigError(f"position={(x, y)} is outside the network's input of {width} x {height} pixels")
        pixels = prepared.pixels.clone().requires_grad_()
        with torch.enable_grad(), trace(network, [name]) as traces:
            forward(network, pixels, prepared.size)
        output = traces[name].output
        assert output is not None
        features, stride = traces[name].features(output)[0], stride_of(network, name)
        row, column = (min(int(at / stride), side - 1) for at, side in zip((y, x), features.shape[1:], strict=True))
        (gradient,) = torch.autograd.grad(features[:, row, column].float().sum(), pixels)
    field_HW = gradient[0].abs().sum(0).float().cpu()[:height, :width]
    return field_HW / field_HW.sum().clamp(min=1e-12)


def _composed(first: Tensor, then: Tensor) -> Tensor:
    """The kernel ``(C, 1, k, k)`` of two depthwise convolutions, one after another."""
    channels, margin = first.shape[0], then.shape[-1] - 1
    padded = F.pad(first.transpose(0, 1), (margin,) * 4)
    return F.conv2d(padded, then.flip(-1, -2), groups=channels).transpose(0, 1)
