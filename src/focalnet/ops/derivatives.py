"""Gradients that are differentiated again, batched, or carry tangents: made by PyTorch's own operations.

The kernels' backward passes give numbers without a history. That is enough for ``loss.backward()``; a gradient penalty,
a Hessian, ``is_grads_batched`` and forward-mode AD want the history, too.
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


def wanted(*grads: Tensor | None) -> bool:
    """Asked in a backward pass: whether its result must be made by ``gradients``.

    Args:
        grads: what comes back. ``is_grads_batched`` puts a batch into each, by a mechanism older than ``torch.func``.
    """
    if torch.compiler.is_compiling():  # compiled graphs refuse to be differentiated twice
        return False
    batched = any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)
    return torch.is_grad_enabled() or modes.transformed() or batched


def attention_of_any_order() -> AbstractContextManager[object]:
    """Within the ``with`` block, PyTorch's attention is one that ``torch.func`` and forward-mode AD can follow.

    Its fast ones raise an error there. So they do when a gradient is differentiated again, which is not known in the
    forward pass: wrap that in ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """
    return _plain_attention() if modes.transformed() else nullcontext()


@contextmanager
def _plain_attention() -> Iterator[None]:
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
    """The gradient of each of the inputs of ``function``, with the history of how it was made.

    Args:
        function: PyTorch's operations only; returns a tensor or a tuple of tensors.
        inputs: its arguments, as an autograd function saved them; gradients are made of tensors that require them.
        grads: of each output; None where nothing comes back.

    Returns:
        One gradient an input; None where none is asked for.
    """
    history = torch.is_grad_enabled()
    device = next(x.device for x in inputs if isinstance(x, Tensor))
    with torch.enable_grad(), without_autocast(device):
        # Views, so that the gradient ends here also where one input was made from another.
        views = [x.view_as(x) if isinstance(x, Tensor) else x for x in inputs]
        found = function(*views)
        outputs = found if isinstance(found, tuple) else (found,)
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        places = [i for i, x in enumerate(views) if isinstance(x, Tensor) and x.requires_grad]
        made = torch.autograd.grad(
            [out for out, _ in pairs],
            [views[i] for i in places],
            [grad for _, grad in pairs],
            create_graph=history,
            allow_unused=True,
        )
    result: list[Tensor | None] = [None] * len(views)
    for i, gradient in zip(places, made, strict=True):
        result[i] = gradient
    return result
