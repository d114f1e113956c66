"""Linear layers in int8 on oneDNN: uint8 inputs times int8 weights, sums in int32.

The input of a layer has one step and zero point for all its channels (``Steps``), found by ``quantization``. A weight
has one step for each output channel and no zero point. The arithmetic, for an input x and row i of the weight:

    q = clip(round(x / step) + zero_point, 0, 255)
    y_i = step * step_i * sum_j (q_j - zero_point) * w_ij + bias_i

The sum is exact; the rest is float32. ``reference`` computes the same with PyTorch's float operations.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from focalnet.kernels import cpu, matmul, processor
from focalnet.kernels.cpu.arguments import Steps
from focalnet.ops import modes

LIMIT = 127  # of a weight: -128 is not used, so that steps are symmetric
_MAX_INPUTS = (2**31 - 1) // (255 * LIMIT)  # channels whose sum fits into int32


class Int8Weight:
    """The packed int8 weight of a linear layer, with what its products need.

    Args:
        weight: ``(O, I)``, floating, on the CPU.
        bias: ``(O,)``.
        steps: step and zero point of the input.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, steps: Steps) -> None:
        self.weight, self.bias, self.steps = weight.detach(), bias.detach(), steps
        self._counted = not (self.weight.is_inference() or self.bias.is_inference())
        self._pack()

    def _versions(self) -> tuple[int, int]:
        return (self.weight._version, self.bias._version) if self._counted else (0, 0)

    def _pack(self) -> None:
        self._packed_versions = self._versions()
        values, self._scales = quantized_weight(self.weight)
        self._packed = torch.ops.onednn.qlinear_prepack(values, None)
        self._zero_points = torch.zeros(len(values), dtype=torch.int32)
        self._float_bias = self.bias.float()

    def product(
        self,
        levels: torch.Tensor,
        dtype: torch.dtype,
        *,
        residual: torch.Tensor | None = None,
        inplace: bool = False,
    ) -> torch.Tensor:
        """The layer's output, ``(..., O)``.

        Args:
            levels: the input as uint8 levels, ``(..., I)``.
            dtype: dtype of the output: float32 or bfloat16.
            residual: added to the result, of its shape and dtype; or None.
            inplace: whether the residual may be overwritten by the result.
        """
        if self._counted and self._versions() != self._packed_versions:  # written past the frozen module's protection
            self._pack()
        given = (levels, *self.steps, self._packed, self._scales, self._zero_points)
        output = (self._float_bias, 1.0, 0, dtype)
        out: torch.Tensor
        if residual is None:
            out = torch.ops.onednn.qlinear_pointwise.default(*given, *output, "none", [], "")
        else:
            how = "sum" if inplace else "add"
            out = torch.ops.onednn.qlinear_pointwise.binary(*given, residual, *output, 1.0, 0, how, 1.0, "none", [], "")
        return out


def quantized_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a weight ``(O, I)`` to int8: the values, and the step of each row, ``(O,)``; a row of zeros has step 1."""
    weight = weight.detach().float()
    largest = weight.abs().amax(1)
    scales = torch.where(largest > 0, largest / LIMIT, 1.0).clamp_min(torch.finfo(torch.float32).tiny)
    return (weight / scales[:, None]).round().clamp(-LIMIT, LIMIT).to(torch.int8), scales


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, steps: Steps) -> torch.Tensor:
    """The int8 layer's arithmetic by PyTorch's float operations, in float32.

    Args:
        x: ``(..., I)``.
        weight: ``(O, I)``, not quantized.
        bias: ``(O,)``.
        steps: step and zero point of the input.
    """
    values, scales = quantized_weight(weight)
    levels = (x.float() * torch.tensor(steps.levels)).round().nan_to_num(0) + steps.zero_point
    inputs = (levels.clamp(0, 255) - steps.zero_point) * steps.scale
    return F.linear(inputs, values.float() * scales[:, None], bias.float())


def fits(weight: torch.Tensor) -> bool:
    """Whether a weight can be quantized: finite, and with few enough channels that no sum leaves int32."""
    return weight.shape[1] <= _MAX_INPUTS and bool(weight.isfinite().all())


@modes.constant
def why_not() -> str | None:
    """The reason why this process cannot compute in int8, or None."""
    return _reason()


@functools.cache
def _reason() -> str | None:
    if not matmul.ONEDNN or not torch.backends.mkldnn.enabled:
        return "int8 needs oneDNN, which this build of PyTorch lacks or has turned off"
    if not processor.multiplies_int8():
        return (
            "int8 needs a processor with VNNI (avx512_vnni or avx_vnni): others are slower than in float32, and their "
            "int8 sums can saturate"
        )
    if not cpu.built():
        return "int8 needs the CPU kernels of focalnet: focalnet doctor says why they are missing"
    try:
        wrong = _wrong_extremes()
    except (RuntimeError, AttributeError, TypeError) as error:
        return f"this release of PyTorch does not support oneDNN's int8 products: {str(error).splitlines()[0]}"
    return "oneDNN's int8 products are wrong on this processor: sums of large numbers saturate" if wrong else None


def _wrong_extremes() -> bool:
    """Whether products of the largest numbers are wrong, such as where pairs of them are added in 16 bits."""
    for inputs, outputs, rows in ((64, 16, 1), (96, 33, 7), (768, 64, 49)):
        weight = torch.full((outputs, inputs), float(LIMIT))
        weight[1::2] = -LIMIT
        weight[2::3, ::2] *= -1
        for level, zero_point in ((255, 0), (255, 128), (0, 255)):
            layer = Int8Weight(weight, torch.zeros(outputs), Steps(1.0, zero_point))
            levels = torch.full((rows, inputs), level, dtype=torch.uint8)
            exact = (levels.double() - zero_point) @ weight.double().t()
            if not torch.equal(layer.product(levels, torch.float32).double(), exact):
                return True
    return False
