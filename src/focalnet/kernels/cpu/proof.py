"""The kernels prove themselves before they are trusted: small cases against PyTorch's operations in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.kernels import reference

if TYPE_CHECKING:
    from focalnet.kernels.cpu import Library

# Of the largest number of a result: some ten times what rounding explains.
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}
_SHAPE = (2, 6, 5, 37)  # no dimension fills a vector
_EPS = 1e-5


def disagreement(library: Library) -> str | None:
    """What the library computes wrongly, with both numbers; None if nothing.

    It is tried in a thread of its own, where none of the caller's modes (autocast, a compiler, ``torch.func``) is on.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_disagreement, library).result()


def _disagreement(library: Library) -> str | None:
    for dtype, tolerance in _TOLERANCE.items():
        for name, found, truth in _cases(library, dtype):
            error = (found.double() - truth).abs().max() / truth.abs().max()
            if not error <= tolerance:  # NaN is none
                return (
                    f"{name} in {str(dtype).removeprefix('torch.')} is off by {float(error):.1e} of its largest value"
                )
    return None


def _cases(library: Library, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, result and truth of every kernel."""
    x, grad, gates = _waves(_SHAPE, dtype, 1), _waves(_SHAPE, dtype, 2), _waves((*_SHAPE[:3], 3), dtype, 3)
    kernels = [_waves((_SHAPE[3], 1, k, k), torch.float32, k) for k in (3, 5)]
    weight, bias = (_waves(_SHAPE[3:], torch.float32, step) for step in (4, 5))

    truth, gradients = _differentiated(lambda x, g, *k: reference.focal_context(x, g, k), (x, gates, *kernels), grad)
    yield "focal_context", library.forward(x, gates, kernels), truth
    grad_x, grad_gates, grad_kernels = library.backward(grad, x, gates, kernels)
    for found, exact in zip((grad_x, grad_gates, *grad_kernels), gradients, strict=True):
        yield "the gradient of focal_context", found, exact

    truth, gradients = _differentiated(lambda x, w, b: F.layer_norm(x, w.shape, w, b, _EPS), (x, weight, bias), grad)
    normed, moments = library.layer_norm(x, weight, bias, _EPS)
    yield "layer_norm", normed, truth
    grad_x, grad_parameters = library.layer_norm_backward(grad, x, weight, moments, beside=grad)
    yield "the gradient of layer_norm", grad_x, gradients[0] + grad.double()
    for found, exact in zip(grad_parameters, gradients[1:], strict=True):
        yield "the gradient of layer_norm's parameters", found, exact

    truth, (slope,) = _differentiated(F.gelu, (x,), grad)
    yield "gelu", library.gelu_(x.clone()), truth
    for found, exact in zip(
        library.gelu_backward(grad, x, again=True), (slope, slope.sum((0, 1, 2)), truth), strict=True
    ):
        yield "the gradient of gelu", found, exact
    yield "column_sum", library.column_sum(x), x.double().sum((0, 1, 2))


def _waves(shape: Sequence[int], dtype: torch.dtype, step: float) -> Tensor:
    """Numbers between -2 and 2 without a pattern; no generator is touched."""
    count = torch.Size(shape).numel()
    return (2 * (torch.arange(count, dtype=torch.float64) * (1 + step / 7)).sin()).view(shape).to(dtype)


def _differentiated(function: object, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    assert callable(function)
    leaves = [x.double().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out.detach(), torch.autograd.grad(out, leaves, grad.double())
