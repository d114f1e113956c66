"""The global level as a rank-1 term: ``query * (modulator + gate * v)`` in one pass, forward and backward.

``modulator`` is the projection ``h`` of the gated levels, ``gate`` that of the global level, and ``v`` = W e the
product of the weight of ``h`` and the global context e of an image; see ``forms.py``. Imported on use, because it needs
Triton.
"""
# Triton interprets type annotations in the kernels' signatures itself.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
# ruff: noqa: D417

from __future__ import annotations

import functools
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from focalnet.kernels.registered import registered
from focalnet.kernels.triton import RANK_ONE, proof, tiling
from focalnet.kernels.triton.op import by_pixel, on_device, pixel_stride
from focalnet.ops import derivatives

STEPS = 8  # groups of pixels per program
_SIZES = ("pixels", "C", "blocks", "columns", "g_p")


@triton.jit(do_not_specialize=_SIZES)
def product_kernel(  # noqa: ANN201
    query, modulator, gate, v, out, q_p, m_p, g_p, pixels, C, blocks, columns,  # noqa: ANN001
    R: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """``out = query * (modulator + gate * v)`` for STEPS groups of R pixels by BC channels of one image.

    Args:
        query, modulator: (B, pixels, C), pixel strides ``q_p`` and ``m_p``; gate: (B, pixels), stride ``g_p``.
        v: (B, C), float32.
        out: (B, pixels, C), contiguous.
    """
    program = tl.program_id(0)
    c = (program % columns) * BC + tl.arange(0, BC)[None, :]
    image = program // columns
    b = (image // blocks).to(tl.int64)
    term = tl.load(v + b * C + c, mask=c < C, other=0.0)
    for step in tl.static_range(STEPS):
        pixel = ((image % blocks) * STEPS + step) * R + tl.arange(0, R)[:, None]
        exists = pixel < pixels
        mine = exists & (c < C)
        q = tl.load(query + b * pixels * q_p + pixel * q_p + c, mask=mine, other=0.0).to(tl.float32)
        m = tl.load(modulator + b * pixels * m_p + pixel * m_p + c, mask=mine, other=0.0).to(tl.float32)
        g = tl.load(gate + (b * pixels + pixel) * g_p, mask=exists, other=0.0).to(tl.float32)
        value = q * tl.fma(g, term, m)
        tl.store(out + b * pixels * C + pixel * C + c, value.to(out.dtype.element_ty), mask=mine)


@triton.jit(do_not_specialize=_SIZES)
def product_gradient_kernel(  # noqa: ANN201
    grad, query, modulator, gate, v, grad_query, grad_modulator, gate_parts, v_parts, q_p, m_p, g_p,  # noqa: ANN001
    pixels, C, blocks, columns, R: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """The gradients; those of gate and ``v`` as partial sums, which PyTorch adds in a fixed order.

    Args:
        grad, grad_query, grad_modulator: (B, pixels, C), contiguous.
        gate_parts: (columns, B, pixels).
        v_parts: (B, blocks, C).
    """
    program = tl.program_id(0)
    column = program % columns
    c = column * BC + tl.arange(0, BC)[None, :]
    image = program // columns
    block = image % blocks
    b = (image // blocks).to(tl.int64)
    images = tl.num_programs(0) // (columns * blocks)
    term = tl.load(v + b * C + c, mask=c < C, other=0.0)
    total = tl.zeros([R, BC], tl.float32)
    for step in tl.static_range(STEPS):
        pixel = (block * STEPS + step) * R + tl.arange(0, R)[:, None]
        exists = pixel < pixels
        mine = exists & (c < C)
        here = b * pixels * C + pixel * C + c
        above = tl.load(grad + here, mask=mine, other=0.0).to(tl.float32)
        q = tl.load(query + b * pixels * q_p + pixel * q_p + c, mask=mine, other=0.0).to(tl.float32)
        m = tl.load(modulator + b * pixels * m_p + pixel * m_p + c, mask=mine, other=0.0).to(tl.float32)
        g = tl.load(gate + (b * pixels + pixel) * g_p, mask=exists, other=0.0).to(tl.float32)
        tl.store(grad_query + here, (above * tl.fma(g, term, m)).to(grad_query.dtype.element_ty), mask=mine)
        slope = above * q
        tl.store(grad_modulator + here, slope.to(grad_modulator.dtype.element_ty), mask=mine)
        part = gate_parts + (column * images + b) * pixels + pixel
        tl.store(part, tl.sum(slope * term, 1)[:, None], mask=exists)
        total = tl.fma(slope, g, total)
    tl.store(v_parts + (b * blocks + block) * C + c, tl.sum(total, 0)[None, :], mask=c < C)


@functools.partial(registered, "focalnet::rank_one_product_triton", device_types=None)
def product(query: Tensor, modulator: Tensor, gate: Tensor, v: Tensor, by_name: bool) -> Tensor:
    """``query * (modulator + gate * v)``.

    Args:
        query: ``(B, H, W, C)``.
        modulator: ``(B, H, W, C)``, of the same dtype.
        gate: ``(B, H, W, 1)``.
        v: ``(B, C)``, float32.
        by_name: whether errors are raised, see ``proof.or_reference``.

    Returns:
        ``(B, H, W, C)`` in the dtype of ``query``.
    """
    run = functools.partial(_forward, query, modulator, gate, v)
    return proof.or_reference(run, lambda: _by_reference(query, modulator, gate, v), query, RANK_ONE, by_name)


@product.register_fake
def _(query: Tensor, modulator: Tensor, gate: Tensor, v: Tensor, by_name: bool) -> Tensor:
    return query.new_empty(query.shape)


def _forward(query: Tensor, modulator: Tensor, gate: Tensor, v: Tensor) -> Tensor:
    B, H, W, C = query.shape
    q, m, g = by_pixel(query), by_pixel(modulator), by_pixel(gate)
    programs, place, block = _blocks(B, H * W, C)
    out = q.new_empty(q.shape)
    strides = pixel_stride(q), pixel_stride(m), pixel_stride(g)
    with on_device(query.device):
        _launch(product_kernel, programs, q, m, g, v.contiguous(), out, *strides, *place, **block)
    return out


@functools.partial(registered, "focalnet::rank_one_product_triton_backward", device_types=None)
def product_backward(
    grad: Tensor, query: Tensor, modulator: Tensor, gate: Tensor, v: Tensor, by_name: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, modulator, gate and ``v``, in their dtypes."""

    def by_reference() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, c, d = proof.vector_jacobian(_by_reference, (query, modulator, gate, v), grad)
        return a.contiguous(), b.contiguous(), c.contiguous(), d

    run = functools.partial(_gradients, grad, query, modulator, gate, v)
    return proof.or_reference(run, by_reference, query, RANK_ONE, by_name)


@product_backward.register_fake
def _(
    grad: Tensor, query: Tensor, modulator: Tensor, gate: Tensor, v: Tensor, by_name: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = [x.new_empty(x.shape) for x in (query, modulator, gate, v)]
    return like[0], like[1], like[2], like[3]


def _gradients(
    grad: Tensor, query: Tensor, modulator: Tensor, gate: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, H, W, C = query.shape
    grad, q, m, g = grad.contiguous(), by_pixel(query), by_pixel(modulator), by_pixel(gate)
    programs, place, block = _blocks(B, H * W, C)
    _, _, blocks, columns = place
    grad_q, grad_m = q.new_empty(q.shape), m.new_empty(m.shape)
    gate_parts, v_parts = v.new_empty((columns, *gate.shape)), v.new_empty((B, blocks, C))
    strides = pixel_stride(q), pixel_stride(m), pixel_stride(g)
    with on_device(query.device):
        _launch(
            product_gradient_kernel, programs,
            grad, q, m, g, v.contiguous(), grad_q, grad_m, gate_parts, v_parts, *strides, *place, **block,
        )  # fmt: skip
    return grad_q, grad_m, gate_parts.sum(0).to(gate.dtype), v_parts.sum(1)


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    kernel[(programs,)](*arguments, **constants)


def _blocks(batch: int, pixels: int, channels: int) -> tuple[int, tuple[int, int, int, int], dict[str, int]]:
    """Number of programs; pixels, channels, blocks of an image and blocks of channels; the size of a block."""
    warps, columns_of = 4, tiling.channel_block(channels)
    rows = warps * 32 * tiling.LANE // columns_of
    blocks, columns = -(-pixels // (rows * STEPS)), -(-channels // columns_of)
    block = {"R": rows, "BC": columns_of, "STEPS": STEPS, "num_warps": warps}
    return batch * blocks * columns, (pixels, channels, blocks, columns), block


def _by_reference(query: Tensor, modulator: Tensor, gate: Tensor, v: Tensor) -> Tensor:
    return query * (modulator + (gate * v[:, None, None]).to(modulator.dtype))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.by_name = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if derivatives.needed(grad):
        return *derivatives.gradients(_by_reference, ctx.saved_tensors, [grad]), None
    return *product_backward(grad, *ctx.saved_tensors, ctx.by_name), None


product.register_autograd(_differentiate, setup_context=_keep)
