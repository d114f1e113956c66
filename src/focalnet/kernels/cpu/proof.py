"""Self-test of the CPU kernels before their first use: small cases against PyTorch's operations in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.kernels import reference
from focalnet.kernels.cpu.arguments import Steps
from focalnet.ops import deformable

if TYPE_CHECKING:
    from focalnet.kernels.cpu import Library

# Relative to the largest value of a result: some ten times the expected rounding error.
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}
_SHAPE = (2, 6, 5, 37)  # no dimension is a multiple of the vector length
_EPS = 1e-5


def disagreement(library: Library) -> str | None:
    """A description of the first wrong result of the library; None if all are right.

    The test runs in a thread of its own, where the caller's modes (autocast, a compiler, ``torch.func``) are off.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_disagreement, library).result()


def _disagreement(library: Library) -> str | None:
    for dtype, tolerance in _TOLERANCE.items():
        for name, result, expected in _cases(library, dtype):
            error = (result.double() - expected).abs().max() / expected.abs().max()
            if not error <= tolerance:  # also true for NaN
                return (
                    f"{name} in {str(dtype).removeprefix('torch.')} is off by {float(error):.1e} of its largest value"
                )
    return None


def _cases(library: Library, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, result and expected result of every kernel."""
    x, grad, gates = _waves(_SHAPE, dtype, 1), _waves(_SHAPE, dtype, 2), _waves((*_SHAPE[:3], 3), dtype, 3)
    kernels = [_waves((_SHAPE[3], 1, k, k), torch.float32, k) for k in (3, 5)]
    weight, bias = (_waves(_SHAPE[3:], torch.float32, step) for step in (4, 5))

    expected, gradients = _differentiated(lambda x, g, *k: reference.focal_context(x, g, k), (x, gates, *kernels), grad)
    yield "focal_context", library.forward(x, gates, kernels), expected
    grad_x, grad_gates, grad_kernels = library.backward(grad, x, gates, kernels)
    for result, expected_gradient in zip((grad_x, grad_gates, *grad_kernels), gradients, strict=True):
        yield "the gradient of focal_context", result, expected_gradient

    expected, gradients = _differentiated(lambda x, w, b: F.layer_norm(x, w.shape, w, b, _EPS), (x, weight, bias), grad)
    normed, moments = library.layer_norm(x, weight, bias, _EPS)
    yield "layer_norm", normed, expected
    grad_x, grad_parameters = library.layer_norm_backward(grad, x, weight, moments, residual_grad=grad)
    yield "the gradient of layer_norm", grad_x, gradients[0] + grad.double()
    for result, expected_gradient in zip(grad_parameters, gradients[1:], strict=True):
        yield "the gradient of layer_norm's parameters", result, expected_gradient

    expected, (slope,) = _differentiated(F.gelu, (x,), grad)
    yield "gelu", library.gelu_(x.clone()), expected
    for result, expected_gradient in zip(
        library.gelu_backward(grad, x, recompute=True), (slope, slope.sum((0, 1, 2)), expected), strict=True
    ):
        yield "the gradient of gelu", result, expected_gradient
    yield "column_sum", library.column_sum(x), x.double().sum((0, 1, 2))
    yield from _quantized_cases(library, x, grad, weight, bias)
    yield from _deformable_cases(library, dtype)


def _quantized_cases(
    library: Library, x: Tensor, factor: Tensor, weight: Tensor, bias: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The same for uint8 levels, some of which are at the limits: the exact number is at most half a level away."""
    steps = Steps(0.011, 77)
    slices = torch.cat([factor, x], -1)[..., _SHAPE[3] :]  # x with gaps between its rows
    for name, levels, exact in (
        ("quantize", library.quantize(x, steps), x.double()),
        ("quantize_gelu", library.quantize_gelu(x, steps), F.gelu(x.double())),
        (
            "quantize_norm",
            library.quantize_norm(x, weight, bias, _EPS, steps),
            F.layer_norm(x.double(), weight.shape, weight.double(), bias.double(), _EPS),
        ),
        ("quantize_product", library.quantize_product(slices, factor, steps), x.double() * factor.double()),
    ):
        number = (exact / steps.scale + steps.zero_point).clamp(0, 255)
        yield name, levels, number + (levels.double() - number).clamp(-0.5, 0.5)


def _deformable_cases(library: Library, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The same for deformable attention, with some points outside the levels."""
    values, sizes, locations, weights, grad = deformable_example(dtype)
    truth, gradients = _differentiated(
        lambda v, p, w: deformable.differentiable(sizes, v, p, w), (values, locations, weights), grad
    )
    yield "deformable_attention", library.deformable_attention(values, sizes, locations, weights), truth
    found = library.deformable_attention_backward(grad, values, sizes, locations, weights)
    for result, exact in zip(found, gradients, strict=True):
        yield "the gradient of deformable_attention", result, exact


def deformable_example(dtype: torch.dtype) -> tuple[Tensor, list[int], Tensor, Tensor, Tensor]:
    """Values, sizes of the levels, locations, weights and a gradient of the output, for a self-test on any device.

    No location is close to the center of a cell, where the gradient of the location is discontinuous.
    """
    batch, queries, heads, points, sizes, channels = 2, 5, 2, 3, [4, 5, 2, 3], 37
    grid = (batch, queries, heads, len(sizes) // 2, points)
    values = _waves((batch, 4 * 5 + 2 * 3, heads, channels), dtype, 1)
    cells = torch.tensor(sizes, dtype=torch.float32).view(-1, 2).flip(1)[:, None]
    inside = 0.5 + 0.2 * _waves((*grid, 2), torch.float32, 2)  # of the square between four centers of cells
    square = torch.stack([_waves(grid, torch.float32, step) for step in (6, 17)], -1).floor() + (cells / 2).floor()
    locations = (square + inside + 0.5) / cells
    grad = _waves((batch, queries, heads * channels), torch.float32, 4)
    return values, sizes, locations, _waves(grid, torch.float32, 5), grad


def _waves(shape: Sequence[int], dtype: torch.dtype, step: float) -> Tensor:
    """Irregular numbers between -2 and 2, without a random generator."""
    count = torch.Size(shape).numel()
    return (2 * (torch.arange(count, dtype=torch.float64) * (1 + step / 7)).sin()).view(shape).to(dtype)


def _differentiated(function: object, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    assert callable(function)
    leaves = [x.double().requires_grad_() for x in inputs]
    out = function(*leaves)
    # Of a number: for the gradient of anything else, PyTorch imports its compiler's symbols, which takes a second.
    return out.detach(), torch.autograd.grad((out * grad.double()).sum(), leaves)
