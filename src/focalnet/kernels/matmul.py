"""Linear layers on the fastest matrix product of this processor.

On x86, PyTorch runs float32 linear layers on MKL, which does not use AVX-512 on AMD processors; oneDNN does. On other
processors MKL is as fast, and faster for gradients. bfloat16 runs on oneDNN in both cases, but a direct oneDNN matmul
saves one pass over the memory.

Without AVX-512, oneDNN is faster at a 1x1 convolution than at a matrix product. GELU is faster in our own kernel after
the product than fused into it, except on Intel processors with AVX-512.

This is one file because all paths share the choice among them.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import torch
import torch.nn.functional as F

from focalnet.errors import InputError
from focalnet.kernels import backend, cpu, processor
from focalnet.kernels.registered import registered
from focalnet.kernels.rowwise import column_sum, gelu_gradient
from focalnet.ops import derivatives, modes

X86 = platform.machine().lower() in ("x86_64", "amd64")
ONEDNN = X86 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
AVX512 = processor.has_avx512()
MKL_IS_SLOW = ONEDNN and not processor.is_intel() and AVX512
GELU_INSIDE = AVX512 and processor.is_intel()  # fuse GELU into oneDNN's product instead of our own kernel after it
DTYPES: tuple[torch.dtype, ...] = ()  # dtypes that oneDNN supports on this processor

if ONEDNN:
    _linear_op, _linear_add_op = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary
    _conv_op = torch.ops.mkldnn._convolution_pointwise.default
    _conv_add_op = torch.ops.mkldnn._convolution_pointwise_.binary  # in place on the residual
    DTYPES = (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)

# Numbers of rows from which transposing them takes most of the time of a weight's gradient.
_MANY_ROWS = {torch.float32: 1024, torch.bfloat16: 8192}


class PackedWeight:
    """A weight packed in oneDNN's memory layout, so that inference does not have to reorder it in each call.

    This pays off at small batches, where more weights than activations are read. With AVX-512, a convolution's weight
    is only made channels-last. Without, a linear layer's weight is packed as that of a 1x1 convolution, whose layout
    may depend on the input size, so it is packed for the last size. The caller must keep the weight from changing.
    Writes that bypass the caller's protection, such as those of C++ code, are noticed if PyTorch's version counter
    counts them; the weight is then packed again.

    Args:
        weight: ``(O, I)``, or ``(O, I, k, k)`` of a convolution; on the CPU, in one of ``DTYPES``.
        stride: stride of the convolution.
        padding: padding of the convolution.
    """

    def __init__(self, weight: torch.Tensor, *, stride: int = 1, padding: int = 0) -> None:
        self._weight = weight.detach()
        self._geometry = _geometry(stride, padding)
        self._counted = not self._weight.is_inference()  # inference tensors have no version counter
        self._pack()

    def _pack(self) -> None:
        weight = self._weight
        self._version = weight._version if self._counted else 0
        self._size: torch.Size | None = None  # input size, if the layout depends on it
        self._packed: torch.Tensor | None = None
        if AVX512 or weight.dtype != torch.float32:
            if weight.ndim == 4:
                self._packed = weight.contiguous(memory_format=torch.channels_last)
            else:
                self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def to_multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the packed weight for an input like ``x``."""
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
        ordered: torch.Tensor = reorder(kernel, *self._geometry, list(feature_map.shape))
        self._size, self._packed = x.shape, ordered
        return ordered


def _geometry(stride: int = 1, padding: int = 0) -> tuple[list[int], list[int], list[int], int]:
    """Padding, stride, dilation and groups of a convolution, as arguments of oneDNN's operations."""
    return [padding] * 2, [stride] * 2, [1, 1], 1


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """``x @ weight.T + bias``, as ``torch.nn.functional.linear``, with an optional fused residual sum.

    Args:
        x: ``(..., I)``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        residual: ``(..., O)``, added to the result, or None.
    """
    use_onednn, (x_, weight_, bias_) = _onednn_inputs(x, weight, bias)
    if not use_onednn:
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
    """Two linear layers with exact GELU between, and an optional fused residual sum.

    Without gradients, GELU may be fused into the first product.

    Args:
        x: ``(..., I)``.
        weight1: ``(hidden, I)``.
        bias1: ``(hidden,)``.
        weight2: ``(O, hidden)``.
        bias2: ``(O,)``.
        residual: ``(..., O)``, added to the result, or None.
        recompute: whether the backward pass recomputes GELU instead of saving it; compilers decide themselves.

    Returns:
        ``(..., O)``.
    """
    use_onednn, tensors = _onednn_inputs(x, weight1, bias1, weight2, bias2)
    if torch.is_grad_enabled() and (use_onednn or (recompute and modes.unobserved())):
        if not use_onednn:
            tensors = _autocast(*tensors)
        out: torch.Tensor = _Mlp.apply(*tensors, residual, recompute)
        return out
    if use_onednn:
        x, weight1, bias1, weight2, bias2 = tensors
        return _product(_product(x, weight1, bias1, "gelu"), weight2, bias2, residual=residual)
    return _sum(_reference_mlp(x, weight1, bias1, weight2, bias2), residual)


def linear_of_product(
    a: torch.Tensor,
    b: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``linear(a * b, ...)`` that saves ``a`` and ``b`` for the backward pass, not their product.

    This saves memory if both are saved elsewhere anyway. Compilers see PyTorch's operations and decide what to save.

    Args:
        a: ``(..., I)``.
        b: ``(..., I)``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        residual: ``(..., O)``, added to the result, or None.
    """
    if not modes.unobserved():
        return linear(a * b, weight, bias, residual=residual)
    a, b, weight, bias = _autocast(a, b, weight, bias)
    out: torch.Tensor = _LinearOfProduct.apply(a, b, weight, bias, residual)
    return out


def packed_convolution(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, *, stride: int, padding: int
) -> torch.Tensor:
    """A convolution with a packed weight, without gradients.

    Args:
        x: ``(B, I, H, W)``, channels-last in memory.
        weight: packed from ``(O, I, k, k)`` for this stride and padding.
        bias: ``(O,)`` or None.
        stride: stride of the convolution.
        padding: zero padding on each side.
    """
    packed = weight.to_multiply(x)
    if not packed.is_mkldnn:
        return F.conv2d(x, packed, bias, stride, padding)
    out: torch.Tensor = _conv_op(x, packed, bias, *_geometry(stride, padding), "none", [], "none")
    return out


def _autocast(x: torch.Tensor, *others: Any) -> tuple[Any, ...]:
    """Casts tensors as autocast does before a linear layer, since autocast does not know our operations."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):  # autocast does not support meta
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
        if derivatives.needed(grad):
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
        needs_a, needs_b, *others, needs_residual = ctx.needs_input_grad
        grad_residual = grad.to(ctx.residual_dtype) if needs_residual else None
        grad = grad.to(a.dtype)
        if derivatives.needed(grad):
            return *derivatives.gradients(_reference_linear_of_product, ctx.saved_tensors, [grad]), grad_residual
        grad_product, *other_gradients = _gradients(grad, a * b, weight, (needs_a or needs_b, *others))
        grad_a, grad_b = (grad_product * x if needs else None for needs, x in ((needs_a, b), (needs_b, a)))
        return grad_a, grad_b, *other_gradients, grad_residual


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
        *inputs, hidden, active = ctx.saved_tensors  # active is None if it is to be recomputed
        x, weight1, _, weight2, _ = inputs
        needs: tuple[bool, ...] = ctx.needs_input_grad
        grad_residual = grad.to(ctx.residual_dtype) if needs[5] else None
        grad = grad.to(x.dtype)
        if derivatives.needed(grad):
            return *derivatives.gradients(_reference_mlp, inputs, [grad]), grad_residual, None
        grad_hidden, grad_bias1, recomputed = gelu_gradient(
            _input_gradient(grad, weight2), hidden, recompute=active is None
        )
        if recomputed is not None:
            active = recomputed
        second = _gradients(grad, active, weight2, (False, *needs[3:5]))
        first = _gradients(grad_hidden, x, weight1, (*needs[:2], False))
        return *first[:2], grad_bias1 if needs[2] else None, *second[1:], grad_residual, None


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, needs: tuple[bool, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of a linear layer's input, weight and bias, each None unless needed."""
    grad_weight = _weight_gradient(grad.flatten(0, -2), x.flatten(0, -2), weight) if needs[1] else None
    return _input_gradient(grad, weight) if needs[0] else None, grad_weight, column_sum(grad) if needs[2] else None


def _onednn_is_faster(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN is faster at gradients than PyTorch's own matrix product."""
    return MKL_IS_SLOW and x.dtype == torch.float32 and _onednn_supports(x, weight)


def _input_gradient(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (_product if _onednn_is_faster(grad, weight) else F.linear)(grad, weight.t())


def _weight_gradient(rows_MO: torch.Tensor, x_MI: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    better = MKL_IS_SLOW or x_MI.dtype == torch.bfloat16  # which PyTorch runs on oneDNN anyway
    if better and _onednn_supports(x_MI, weight) and len(x_MI) >= _MANY_ROWS[x_MI.dtype]:
        return _as_convolution(rows_MO, x_MI, weight)
    return (_product if _onednn_is_faster(x_MI, weight) else F.linear)(rows_MO.t(), x_MI.t())


def _as_convolution(rows_MO: torch.Tensor, x_MI: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Computes a weight's gradient as that of a 1x1 convolution, for which oneDNN needs no transposed copies."""
    grad, x = (
        matrix[None, None].permute(0, 3, 1, 2) for matrix in (rows_MO, x_MI)
    )  # (1, channels, 1, M), channels-last
    stride = dilation = [1, 1]
    padding, transposed, groups = [0, 0], False, 1
    _, grad_weight, _ = torch.ops.aten.convolution_backward(
        *(grad, x, weight[..., None, None], None),
        *(stride, padding, dilation, transposed, padding, groups, [False, True, False]),
    )
    out: torch.Tensor = grad_weight.flatten(1)
    return out


def _reference_mlp(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    weight1, bias1, weight2, bias2 = weights
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def _reference_linear_of_product(
    a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return F.linear(a * b, weight, bias)


def _sum(out: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    return out if residual is None else residual + out


def _onednn_inputs(x: torch.Tensor, *others: torch.Tensor | None) -> tuple[bool, tuple[Any, ...]]:
    """Whether to call oneDNN directly for linear layers, and the tensors as autocast casts them.

    The first of ``others`` is a weight. With gradients, oneDNN is not called within compilers, which decide themselves,
    nor within modes that intercept operations.
    """
    if any(t is not None and t.device != x.device for t in others):  # with weights on meta, PyTorch would not raise
        devices = sorted({str(t.device) for t in others if t is not None and t.device != x.device})
        raise InputError(f"a linear layer has weights on {', '.join(devices)} and an input on {x.device}")
    if x.device.type != "cpu" or (torch.is_grad_enabled() and not modes.unobserved()):
        return False, (x, *others)
    cast = _autocast(x, *others)
    return _onednn_supports(*cast[:2]) and modes.on_cpu(*(t for t in cast if t is not None)), cast


def _onednn_supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN can be called directly for this product; not within exports or ``torch.func``."""
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
    """A linear layer by a oneDNN matmul, without gradients; optionally with GELU or a residual sum.

    Args:
        x: ``(..., I)``.
        weight: ``(O, I)``, possibly packed; or a packed 1x1 convolution's ``(O, I, 1, 1)``, for 4D ``x`` only.
        bias: ``(O,)`` or None.
        activation: "none" or "gelu".
        residual: ``(..., O)``, of the dtype of the result, or None; not with "gelu".
        inplace: whether the residual may be overwritten by the result, which saves memory if oneDNN supports it.
    """
    if activation == "gelu" and not GELU_INSIDE and cpu.built() and modes.unobserved():
        return cpu.load().gelu_(product(x, weight, bias))
    out: torch.Tensor
    if weight.ndim == 2:
        if residual is None:
            return _linear_op(x, weight, bias, activation, [], "none")  # type: ignore[no-any-return]
        return _linear_add_op(x, residual, weight, bias, "add")  # type: ignore[no-any-return]
    x_BIHW = x.permute(0, 3, 1, 2)
    if residual is None:
        out = _conv_op(x_BIHW, weight, bias, *_geometry(), activation, [], "none")
    else:
        target = residual if inplace else residual.clone(memory_format=torch.contiguous_format)
        sum_BOHW = target.permute(0, 3, 1, 2)
        out = _conv_add_op(sum_BOHW, x_BIHW, weight, bias, *_geometry(), "add", 1.0, None, [], None)
    return out.permute(0, 2, 3, 1)


@functools.partial(registered, "focalnet::linear")
def _opaque_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, residual: torch.Tensor | None
) -> torch.Tensor:
    """``_product`` for the compiler, which would use MKL for float32."""
    return _product(x, weight, bias, activation, residual=residual)


@_opaque_product.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, residual: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))
