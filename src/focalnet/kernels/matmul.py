"""Linear layers on the fastest matrix product this processor has.

On x86, PyTorch sends float32 linear layers to MKL, which does without AVX-512 on AMD processors that have it; the same
product through oneDNN does not. On others MKL is as good, and better at gradients. bfloat16 goes to oneDNN either way,
but with one pass over the memory less when called by hand.

Without AVX-512, oneDNN makes a product faster as a 1x1 convolution. GELU is faster in a pass of our own than inside the
product, except on Intel processors with AVX-512.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

from focalnet.errors import InputError
from focalnet.kernels import backend, cpu, processor
from focalnet.kernels.registered import registered
from focalnet.kernels.rows import column_sum, gelu_gradient
from focalnet.ops import derivatives, modes

X86 = platform.machine().lower() in ("x86_64", "amd64")
ONEDNN = X86 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
AVX512 = processor.has_avx512()
MKL_IS_SLOW = ONEDNN and not processor.is_intel() and AVX512
GELU_INSIDE = AVX512 and processor.is_intel()  # whether oneDNN's product makes it faster than a pass of ours after it
DTYPES: tuple[torch.dtype, ...] = ()  # that oneDNN takes on this processor

if ONEDNN:
    _alone, _plus = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary
    _map_alone = torch.ops.mkldnn._convolution_pointwise.default
    _map_plus = torch.ops.mkldnn._convolution_pointwise_.binary  # writes over what it is added to
    DTYPES = (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)

# Rows of values from which on transposing them is what a weight's gradient takes longest for.
_MANY_ROWS = {torch.float32: 1024, torch.bfloat16: 8192}


class PackedWeight:
    """A weight in the order oneDNN works in, which products without gradients then need not make.

    Worth its memory at small batches, where more weights than values are read. With AVX-512 a convolution's is only
    channels-last, as its maps are. Without, a linear layer's is that of a 1x1 convolution; each size of the map may
    have an order of its own, so there is one for the size seen last. Whoever packs one keeps the weight from changing;
    a write that gets past that, as those of C++ code do, is seen where PyTorch counts it, and the weight packed again.

    Args:
        weight: ``(O, I)``, or ``(O, I, k, k)`` of a convolution; on the CPU, of one of ``DTYPES``.
        stride: of the convolution.
        padding: of the convolution.
    """

    def __init__(self, weight: torch.Tensor, *, stride: int = 1, padding: int = 0) -> None:
        self._weight = weight.detach()
        self._steps = _steps(stride, padding)
        self._counted = not self._weight.is_inference()  # of others PyTorch does not count the writes
        self._pack()

    def _pack(self) -> None:
        weight = self._weight
        self._version = weight._version if self._counted else 0
        self._size: torch.Size | None = None  # of the input, where there is an order for each
        self._packed: torch.Tensor | None = None
        if AVX512 or weight.dtype != torch.float32:
            if weight.ndim == 4:
                self._packed = weight.contiguous(memory_format=torch.channels_last)
            else:
                self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def to_multiply(self, x: torch.Tensor) -> torch.Tensor:
        """The weight for an input like ``x``."""
        if self._counted and self._weight._version != self._version:
            self._pack()
        size, packed = self._size, self._packed
        if packed is not None and (size is None or size == x.shape):
            return packed
        weight = self._weight
        if x.ndim != 4:
            return weight
        kernel, feature_map = (weight, x) if weight.ndim == 4 else (weight[..., None, None], x.permute(0, 3, 1, 2))
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        ordered: torch.Tensor = reorder(kernel, *self._steps, list(feature_map.shape))
        self._size, self._packed = x.shape, ordered
        return ordered


def _steps(stride: int = 1, padding: int = 0) -> tuple[list[int], list[int], list[int], int]:
    """A convolution's padding, stride, dilation and groups, as oneDNN wants them."""
    return [padding] * 2, [stride] * 2, [1, 1], 1


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """``x @ weight.T + bias``, as ``torch.nn.functional.linear``; plus a residual, as a part of the product.

    Args:
        x: ``(..., I)``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        residual: ``(..., O)`` that is added, or None.
    """
    here, (x_, weight_, bias_) = _by_hand(x, weight, bias)
    if not here:
        return _sum(F.linear(x, weight, bias), residual)
    if not torch.is_grad_enabled():
        return _product(x_, weight_, bias_, residual=residual)
    out: torch.Tensor = _Linear.apply(x_, weight_, bias_, residual)
    return out


def mlp(
    x: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    recompute: bool = False,
) -> torch.Tensor:
    """Two linear layers with GELU (exact) between; then plus a residual.

    Without gradients, GELU is a part of the first product where oneDNN makes it.

    Args:
        x: ``(..., I)``.
        weight1: ``(hidden, I)``.
        bias1: ``(hidden,)``.
        weight2: ``(O, hidden)``.
        bias2: ``(O,)``.
        residual: ``(..., O)`` that is added, or None.
        recompute: whether the backward pass computes GELU again instead of keeping it; compilers choose for themselves.

    Returns:
        ``(..., O)``.
    """
    here, tensors = _by_hand(x, weight1, bias1, weight2, bias2)
    if torch.is_grad_enabled() and (here or (recompute and modes.unobserved())):
        if not here:
            tensors = _autocast(*tensors)
        out: torch.Tensor = _Mlp.apply(*tensors, residual, recompute)
        return out
    if here:
        x, weight1, bias1, weight2, bias2 = tensors
        return _product(_product(x, weight1, bias1, "gelu"), weight2, bias2, residual=residual)
    return _sum(_plain_mlp(x, weight1, bias1, weight2, bias2), residual)


def linear_of_product(
    a: torch.Tensor,
    b: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``linear(a * b, ...)`` that keeps ``a`` and ``b`` for the backward pass, not their product.

    Saves memory where something else keeps both anyway. Compilers see the plain operations and keep what they choose.

    Args:
        a: ``(..., I)``.
        b: ``(..., I)``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        residual: ``(..., O)`` that is added, or None.
    """
    if not modes.unobserved():
        return linear(a * b, weight, bias, residual=residual)
    a, b, weight, bias = _autocast(a, b, weight, bias)
    out: torch.Tensor = _LinearOfProduct.apply(a, b, weight, bias, residual)
    return out


def packed_convolution(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, *, stride: int, padding: int
) -> torch.Tensor:
    """A convolution without gradients.

    Args:
        x: ``(B, I, H, W)``, channels-last.
        weight: of ``(O, I, k, k)``, this stride and padding.
        bias: ``(O,)`` or None.
        stride: of the convolution.
        padding: zeros at each side.
    """
    packed = weight.to_multiply(x)
    if not packed.is_mkldnn:
        return F.conv2d(x, packed, bias, stride, padding)
    out: torch.Tensor = _map_alone(x, packed, bias, *_steps(stride, padding), "none", [], "none")
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
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.residual_dtype = None if residual is None else residual.dtype
        return _product(x, weight, bias, residual=residual)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        grad_residual = grad.to(ctx.residual_dtype) if ctx.needs_input_grad[3] else None
        grad = grad.to(x.dtype)
        if derivatives.wanted(grad):
            return *derivatives.gradients(F.linear, ctx.saved_tensors, [grad]), grad_residual
        return *_gradients(grad, x, weight, ctx.needs_input_grad), grad_residual


class _LinearOfProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: torch.Tensor,
        b: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(a, b, weight, bias)
        ctx.residual_dtype = None if residual is None else residual.dtype
        return linear(a * b, weight, bias, residual=residual)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        a, b, weight, _ = ctx.saved_tensors
        wanted_a, wanted_b, *others, wanted_residual = ctx.needs_input_grad
        grad_residual = grad.to(ctx.residual_dtype) if wanted_residual else None
        grad = grad.to(a.dtype)
        if derivatives.wanted(grad):
            return *derivatives.gradients(_plain_linear_of_product, ctx.saved_tensors, [grad]), grad_residual
        grad_product, *rest = _gradients(grad, a * b, weight, (wanted_a or wanted_b, *others))
        grad_a, grad_b = (grad_product * x if wanted else None for wanted, x in ((wanted_a, b), (wanted_b, a)))
        return grad_a, grad_b, *rest, grad_residual


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight1: torch.Tensor,
        bias1: torch.Tensor,
        weight2: torch.Tensor,
        bias2: torch.Tensor,
        residual: torch.Tensor | None,
        recompute: bool,
    ) -> torch.Tensor:
        hidden = linear(x, weight1, bias1)
        active = F.gelu(hidden)
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2, hidden, None if recompute else active)
        ctx.residual_dtype = None if residual is None else residual.dtype
        return linear(active, weight2, bias2, residual=residual)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, hidden, active = ctx.saved_tensors  # the last None where it is made again
        x, weight1, _, weight2, _ = inputs
        wanted: tuple[bool, ...] = ctx.needs_input_grad
        grad_residual = grad.to(ctx.residual_dtype) if wanted[5] else None
        grad = grad.to(x.dtype)
        if derivatives.wanted(grad):
            return *derivatives.gradients(_plain_mlp, inputs, [grad]), grad_residual, None
        grad_hidden, grad_bias1, again = gelu_gradient(_input_gradient(grad, weight2), hidden, again=active is None)
        if again is not None:
            active = again
        second = _gradients(grad, active, weight2, (False, *wanted[3:5]))
        first = _gradients(grad_hidden, x, weight1, (*wanted[:2], False))
        return *first[:2], grad_bias1 if wanted[2] else None, *second[1:], grad_residual, None


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, wanted: tuple[bool, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of a linear layer's input, weight and bias, each None unless wanted."""
    grad_weight = _weight_gradient(grad.flatten(0, -2), x.flatten(0, -2), weight) if wanted[1] else None
    return _input_gradient(grad, weight) if wanted[0] else None, grad_weight, column_sum(grad) if wanted[2] else None


def _by_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether gradients are better made by oneDNN: PyTorch's own product is, where both sides are transposed."""
    return MKL_IS_SLOW and x.dtype == torch.float32 and _onednn(x, weight)


def _input_gradient(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (_product if _by_onednn(grad, weight) else F.linear)(grad, weight.t())


def _weight_gradient(rows_MO: torch.Tensor, x_MI: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    better = MKL_IS_SLOW or x_MI.dtype == torch.bfloat16  # which PyTorch sends to oneDNN anyway
    if better and _onednn(x_MI, weight) and len(x_MI) >= _MANY_ROWS[x_MI.dtype]:
        return _as_convolution(rows_MO, x_MI, weight)
    return (_product if _by_onednn(x_MI, weight) else F.linear)(rows_MO.t(), x_MI.t())


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


def _plain_mlp(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    weight1, bias1, weight2, bias2 = weights
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def _plain_linear_of_product(
    a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return F.linear(a * b, weight, bias)


def _sum(out: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    return out if residual is None else residual + out


def _by_hand(x: torch.Tensor, *others: torch.Tensor | None) -> tuple[bool, tuple[Any, ...]]:
    """Whether linear layers may go to oneDNN by hand, and the tensors as autocast would have them; a weight first.

    With gradients not while somebody looks: the compiler chooses for itself, and others expect PyTorch's operations.
    """
    if any(t is not None and t.device != x.device for t in others):  # for weights on meta PyTorch makes up numbers
        elsewhere = sorted({str(t.device) for t in others if t is not None and t.device != x.device})
        raise InputError(f"a linear layer has weights on {', '.join(elsewhere)} and an input on {x.device}")
    if x.device.type != "cpu" or (torch.is_grad_enabled() and not modes.unobserved()):
        return False, (x, *others)
    cast = _autocast(x, *others)
    return _onednn(*cast[:2]) and modes.on_cpu(*(t for t in cast if t is not None)), cast


def _onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product may go to oneDNN by hand; exporters and sharded tensors choose for themselves."""
    return bool(
        x.device.type == "cpu"
        and not modes.exporting()
        and not modes.transformed()
        and x.dtype == weight.dtype
        and x.dtype in DTYPES
        and x.ndim > 1
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and backend.current() != "eager"
    )


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    if residual is not None and (residual.dtype != x.dtype or residual.shape != (*x.shape[:-1], len(weight))):
        return residual + _product(x, weight, bias, activation)
    if torch.compiler.is_compiling():
        opaque: torch.Tensor = _opaque_product(x, weight, bias, activation, residual)
        return opaque
    return product(x, weight, bias, activation, residual=residual)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str = "none",
    *,
    residual: torch.Tensor | None = None,
    inplace: bool = False,
) -> torch.Tensor:
    """A linear layer by oneDNN, without gradients; with GELU, or plus a residual of the same shape and dtype.

    Args:
        x: ``(..., I)``.
        weight: ``(O, I)``, or packed; as a convolution's, ``(O, I, 1, 1)``, for maps ``(B, H, W, I)`` only.
        bias: ``(O,)`` or None.
        activation: "none" or "gelu".
        residual: ``(..., O)`` that is added, or None; not after "gelu".
        inplace: whether the result may be written over the residual, which saves a tensor where oneDNN can.
    """
    if activation == "gelu" and not GELU_INSIDE and cpu.built() and modes.unobserved():
        return cpu.load().gelu_(product(x, weight, bias))
    out: torch.Tensor
    if weight.ndim == 2:
        if residual is None:
            return _alone(x, weight, bias, activation, [], "none")  # type: ignore[no-any-return]
        return _plus(x, residual, weight, bias, "add")  # type: ignore[no-any-return]
    x_BIHW = x.permute(0, 3, 1, 2)
    if residual is None:
        out = _map_alone(x_BIHW, weight, bias, *_steps(), activation, [], "none")
    else:
        target = residual if inplace else residual.clone(memory_format=torch.contiguous_format)
        sum_BOHW = target.permute(0, 3, 1, 2)
        out = _map_plus(sum_BOHW, x_BIHW, weight, bias, *_steps(), "add", 1.0, None, [], None)
    return out.permute(0, 2, 3, 1)


@functools.partial(registered, "focalnet::linear")
def _opaque_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, residual: torch.Tensor | None
) -> torch.Tensor:
    """``_product`` for the compiler, which would send float32 to MKL."""
    return _product(x, weight, bias, activation, residual=residual)


@_opaque_product.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, residual: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


if ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape: torch.Size, *shapes: Any, out_shape: torch.Size, **_: Any) -> int:
        return 2 * x_shape.numel() * out_shape[-1]

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _map_flops(x_shape: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
        return 2 * out_shape.numel() * weight[1:].numel()

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise_)
    def _map_plus_flops(residual: torch.Size, x_shape: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * residual.numel() * weight[1:].numel()
