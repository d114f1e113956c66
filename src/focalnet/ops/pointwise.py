"""Linear layers on the fastest matrix product this processor has.

On x86, PyTorch sends float32 linear layers to MKL, which runs below half speed on AMD processors; the same product
through oneDNN does not. On Intel's, MKL is as good, and better at gradients. bfloat16 goes to oneDNN either way, but
with one pass over the memory less when called by hand.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, register_flop_formula

from focalnet.ops import backend, processor

X86 = platform.machine().lower() in ("x86_64", "amd64")
ONEDNN = X86 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
MKL_IS_SLOW = ONEDNN and not processor.is_intel()

_MANY_ROWS = 1024  # of values, from which on transposing them is what a weight's gradient takes longest for


class PackedWeight:
    """A copy of a weight in the order oneDNN works in, which products without gradients then need not make.

    Worth its memory at small batches, where a product reads more weights than values. Once the weight has been
    changed or moved the copy is not used any more (changes through ``weight.data`` leave no trace and go unnoticed);
    neither is it copied or saved with its layer. A compiled graph cannot hold it and finds it by ``name`` at each call.

    Args:
        weight: ``(O, I)``, on the CPU, float32 or bfloat16.
    """

    by_name: ClassVar[WeakValueDictionary[str, PackedWeight]] = WeakValueDictionary()
    _names: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, weight: torch.Tensor) -> None:
        self.name = str(next(self._names))
        self.by_name[self.name] = self
        self._of = self._state(weight)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def instead_of(self, weight: torch.Tensor) -> torch.Tensor:
        """The copy of ``weight``, or ``weight`` itself where the copy is none."""
        return self._packed if self._state(weight) == self._of else weight

    @staticmethod
    def _state(weight: torch.Tensor) -> tuple[Any, ...]:
        return weight.data_ptr(), weight.dtype, None if weight.is_inference() else weight._version

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, packed: PackedWeight | None = None
) -> torch.Tensor:
    """``x @ weight.T + bias``, as ``torch.nn.functional.linear``.

    Args:
        x: ``(..., I)``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        packed: of this weight; used without gradients.
    """
    if not torch.is_grad_enabled():
        x, weight, bias = _autocast(x, weight, bias)
        return _product(x, weight, bias, packed=packed) if _onednn(x, weight) else F.linear(x, weight, bias)
    by_hand = MKL_IS_SLOW and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    if not (by_hand and _onednn(x, weight)) or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    out: torch.Tensor = _Linear.apply(x, weight, bias)
    return out


def mlp(
    x: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    *,
    packed: tuple[PackedWeight | None, PackedWeight | None] = (None, None),
) -> torch.Tensor:
    """Two linear layers with GELU (exact) between.

    Without gradients, GELU is a part of the first product where oneDNN makes it.

    Args:
        x: ``(..., I)``.
        weight1: ``(hidden, I)``.
        bias1: ``(hidden,)``.
        weight2: ``(O, hidden)``.
        bias2: ``(O,)``.
        packed: of the two weights; used without gradients.

    Returns:
        ``(..., O)``.
    """
    if torch.is_grad_enabled():
        return linear(F.gelu(linear(x, weight1, bias1)), weight2, bias2)
    x, weight1, bias1, weight2, bias2 = _autocast(x, weight1, bias1, weight2, bias2)
    if not _onednn(x, weight1):
        return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    hidden = _product(x, weight1, bias1, "gelu", packed=packed[0])
    return _product(hidden, weight2, bias2, packed=packed[1])


def linear_of(
    make: Callable[..., torch.Tensor], *inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``linear(make(*inputs), weight, bias)`` that keeps ``inputs`` for the backward pass, not what they make.

    Saves memory where ``make`` is cheap, since the backward pass calls it again.

    Args:
        make: a function without randomness and without parameters of its own.
        inputs: floating point tensors.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
    """
    out: torch.Tensor = _LinearOf.apply(make, *_autocast(weight, bias, *inputs))
    return out


def _autocast(x: torch.Tensor, *others: Any) -> tuple[Any, ...]:
    """What autocast would do before a linear layer, done here because it does not know our operations."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):  # there is no autocast for meta
        return x, *others
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in (x, *others))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return _gradients(grad, x, weight, ctx.needs_input_grad)


class _LinearOf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, make: Any, weight: torch.Tensor, bias: torch.Tensor | None, *inputs: torch.Tensor
    ) -> torch.Tensor:
        ctx.make = make
        ctx.save_for_backward(weight, *inputs)
        return linear(make(*inputs), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            x = ctx.make(*leaves)
        grad_x, *others = _gradients(grad, x.detach(), weight, (True, *ctx.needs_input_grad[1:3]))
        return None, *others, *torch.autograd.grad(x, leaves, grad_x)


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, wanted: tuple[bool, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of a linear layer's input, weight and bias, each None unless wanted."""
    x, rows = x.flatten(0, -2), grad.flatten(0, -2)
    # PyTorch's own product is the better one where both sides are transposed, unless it is a slow one.
    onednn = MKL_IS_SLOW and x.dtype == torch.float32 and _onednn(x, weight)
    product = _product if onednn else F.linear
    grad_weight = None
    if wanted[1]:
        by_convolution = onednn and len(rows) >= _MANY_ROWS
        grad_weight = _as_convolution(rows, x, weight) if by_convolution else product(rows.t(), x.t())
    return product(grad, weight.t()) if wanted[0] else None, grad_weight, rows.sum(0) if wanted[2] else None


def _as_convolution(rows_MO: torch.Tensor, x_MI: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A weight's gradient as that of a 1x1 convolution: oneDNN then needs no transposed copies."""
    grad, x = (side[None, None].permute(0, 3, 1, 2) for side in (rows_MO, x_MI))  # (1, channels, 1, M), channels-last
    stride = dilation = [1, 1]
    padding, transposed, groups = [0, 0], False, 1
    _, found, _ = torch.ops.aten.convolution_backward(
        *(grad, x, weight[..., None, None], None),
        *(stride, padding, dilation, transposed, padding, groups, [False, True, False]),
    )
    out: torch.Tensor = found.flatten(1)
    return out


def _onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product may go to oneDNN by hand; exporters and sharded tensors choose for themselves."""
    return bool(
        x.device.type == "cpu"
        and not backend.exporting()
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and ONEDNN
        and torch.backends.mkldnn.enabled
        and backend.current() != "eager"
    )


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    then: str = "none",
    *,
    packed: PackedWeight | None = None,
) -> torch.Tensor:
    if torch.compiler.is_compiling():
        name = "" if packed is None else packed.name
        opaque: torch.Tensor = _opaque_product(x, weight, bias, then, name)
        return opaque
    weight = weight if packed is None else packed.instead_of(weight)
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, then, [], "none")
    return out


@torch.library.custom_op("focalnet::linear", mutates_args=(), device_types="cpu")
def _opaque_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str, packed: str
) -> torch.Tensor:
    """``_product`` for the compiler, which cannot hold a packed weight and is given its name instead."""
    return _product(x, weight, bias, then, packed=PackedWeight.by_name.get(packed))


@_opaque_product.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str, packed: str) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


if ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * x_shape.numel() * weight_shape[0]
