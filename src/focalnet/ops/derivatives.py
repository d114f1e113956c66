"""Differentiable gradients for operations whose backward pass is a kernel.

The kernels' gradients have no autograd graph, which is enough for ``loss.backward()``. A gradient penalty, a Hessian,
``is_grads_batched`` and forward-mode AD need the graph; there gradients are computed by PyTorch's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from focalnet.ops import modes
from focalnet.ops.precision import without_autocast


def needed(*grads: Tensor | None) -> bool:
    """Whether a backward pass must compute its result by ``gradients`` rather than by a kernel.

    Args:
        grads: the incoming gradients. ``is_grads_batched`` passes batched tensors of a mechanism older than
            ``torch.func``.
    """
    if torch.compiler.is_compiling():  # compiled graphs cannot be differentiated twice
        return False
    batched = any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)
    return torch.is_grad_enabled() or modes.transformed() or batched


def attention_of_any_order() -> AbstractContextManager[object]:
    """Context in which PyTorch's attention supports ``torch.func`` and forward-mode AD.

    PyTorch's fast implementations raise an error there, and also for second derivatives by autograd, which the forward
    pass cannot detect: for those, use ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """
    return _math_attention() if modes.transformed() else nullcontext()


@contextmanager
def _math_attention() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def gradients(
    function: Callable[..., Any], inputs: Sequence[Any], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of the inputs of ``function``, with an autograd graph of their own.

    Args:
        function: composed of PyTorch's operations; returns a tensor or a tuple of tensors.
        inputs: its arguments, as saved by an autograd function.
        grads: gradient of each output; None for outputs without.

    Returns:
        One gradient per input; None for inputs that do not require one.
    """
    create_graph = torch.is_grad_enabled()
    device = next(x.device for x in inputs if isinstance(x, Tensor))
    with torch.enable_grad(), without_autocast(device):
        # Views, so that the gradient stops here even if one input was computed from another.
        views = [x.view_as(x) if isinstance(x, Tensor) else x for x in inputs]
        result = function(*views)
        outputs = result if isinstance(result, tuple) else (result,)
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        indices = [i for i, x in enumerate(views) if isinstance(x, Tensor) and x.requires_grad]
        computed = torch.autograd.grad(
            [out for out, _ in pairs],
            [views[i] for i in indices],
            [grad for _, grad in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    all_gradients: list[Tensor | None] = [None] * len(views)
    for i, gradient in zip(indices, computed, strict=True):
        all_gradients[i] = gradient
    return all_gradients
