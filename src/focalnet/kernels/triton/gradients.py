"""Backward kernels; see ``kernels.py`` for the tiling.

With ``z_l`` the input of GELU at level l, ``c_l = GELU(z_l)`` its context, ``G`` the gradient of the output:

    dc_l = G * gate_l + transposed_conv(dz_{l+1})      dz_l = dc_l * GELU'(z_l)      dgate_l = sum over C of G * c_l

where the last level receives the gradient of the mean instead of a convolution's, or, if there is no gate of the global
level, the gradient of its sum over the plane. The kernels return partial sums over
channels and pixels, one per block, which PyTorch adds in a fixed order, so that results are deterministic.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,assignment"
# ruff: noqa: ANN001, ANN201, D417, RUF005

import triton
import triton.language as tl

from focalnet.kernels.triton.kernels import SIZES, channels_of, climb, convolve, gelu, normal_cdf, size_of, strips_of

_HALF_LOG2_E = tl.constexpr(0.7213475204444817)
_LOG2_SQRT_2PI = tl.constexpr(1.3257480647361595)


@triton.jit
def gelu_slope(x, cdf):
    """GELU'(x) = Phi(x) + x * phi(x), given ``cdf`` = Phi(x)."""
    return tl.fma(x, tl.exp2(-x * x * _HALF_LOG2_E - _LOG2_SQRT_2PI), cdf)


@triton.jit
def level_gradient(
    arriving, grad, z, gates, grad_z, contexts, gate_parts, h, w, live, c, b, column, g_p, B, H, W, C,
    LEVEL: tl.constexpr, GATES: tl.constexpr, KEEP: tl.constexpr, TW: tl.constexpr,
):  # fmt: skip
    """Computes the gradients of a level's ``z`` and gate from that of its context.

    Args:
        arriving: gradient from the level above, a tuple of TW, each (R, BC).
        grad: (B, H, W, C); z: (L, B, H, W, C).
        grad_z: output, like ``z``; contexts: output if KEEP, like ``z``; gate_parts: output, (columns, B, H, W, GATES).
    """
    for t in tl.static_range(TW):
        pixel = h * W + w + t
        exists = live & (w + t < W)
        mine = exists & (c < C)
        here = (LEVEL * B + b) * H * W * C + pixel * C + c
        g = tl.load(grad + b * H * W * C + pixel * C + c, mask=mine, other=0.0).to(tl.float32)
        x = tl.load(z + here, mask=mine, other=0.0).to(tl.float32)
        gate = tl.load(gates + (b * H * W + pixel) * g_p + LEVEL, mask=exists, other=0.0).to(tl.float32)
        cdf = normal_cdf(x)
        value = tl.fma(g, gate, arriving[t]) * gelu_slope(x, cdf)
        tl.store(grad_z + here, value.to(grad_z.dtype.element_ty), mask=mine)
        if KEEP:
            tl.store(contexts + here, (x * cdf).to(contexts.dtype.element_ty), mask=mine)
        part = gate_parts + ((column * B + b) * H * W + pixel) * GATES + LEVEL
        tl.store(part, tl.sum(g * x * cdf, 1)[:, None], mask=exists)


@triton.jit
def global_gradient(
    grad, gates, everywhere, gate_parts, h, w, live, c, b, column, g_p, B, H, W, C,
    L: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the global level's gate in a block.

    Returns:
        The sum of ``G * gate`` over the block, (R, BC), which the caller reduces.
    """
    total = tl.zeros([R, BC], tl.float32)
    for t in tl.static_range(TW):
        pixel = h * W + w + t
        exists = live & (w + t < W)
        g = tl.load(grad + b * H * W * C + pixel * C + c, mask=exists & (c < C), other=0.0).to(tl.float32)
        total = tl.fma(g, tl.load(gates + (b * H * W + pixel) * g_p + L, mask=exists, other=0.0).to(tl.float32), total)
        part = gate_parts + ((column * B + b) * H * W + pixel) * (L + 1) + L
        tl.store(part, tl.sum(g * everywhere, 1)[:, None], mask=exists)
    return total


@triton.jit(do_not_specialize=SIZES)
def global_gradient_kernel(
    grad, gates, totals, gate_parts, parts, g_p, B, H, W, C, per_row, blocks, columns,
    L: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``global_gradient`` of one block; totals: (B, C) of the forward pass; parts: (B, blocks, C), its sums."""
    program = tl.program_id(0)
    column = program % columns
    c = channels_of(column, BC)
    image = program // columns
    block = image % blocks
    b = (image // blocks).to(tl.int64)
    h, w, live = strips_of(block, H, W, per_row, TW, R)
    everywhere = gelu(tl.load(totals + b * C + c, mask=c < C, other=0.0) / (H * W))
    total = global_gradient(
        grad, gates, everywhere, gate_parts, h, w, live, c, b, column, g_p, B, H, W, C, L, TW, R, BC
    )
    tl.store(parts + (b * blocks + block) * C + c, tl.sum(total, 0)[None, :], mask=c < C)


@triton.jit
def mean_gradient(total, everywhere_of, H, W):
    """Gradient of each pixel of the last context through ``gelu(mean)``, whose gradient is ``total``."""
    mean = everywhere_of / (H * W)
    return total * gelu_slope(mean, normal_cdf(mean)) / (H * W)


@triton.jit(do_not_specialize=SIZES)
def last_gradient_kernel(
    grad, z, gates, totals, total_gradients, grad_z, contexts, gate_parts, g_p, B, H, W, C, per_row, blocks, columns,
    L: tl.constexpr, GATES: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``level_gradient`` of the last level.

    Args:
        totals: (B, C) of the forward pass.
        total_gradients: (B, C); the sum of ``G * gate`` of the global level or, without it, the gradient of ``totals``.
    """
    program = tl.program_id(0)
    column = program % columns
    c = channels_of(column, BC)
    image = program // columns
    b = (image // blocks).to(tl.int64)
    h, w, live = strips_of(image % blocks, H, W, per_row, TW, R)
    arriving = tl.load(total_gradients + b * C + c, mask=c < C, other=0.0)
    if GATES > L:
        arriving = mean_gradient(arriving, tl.load(totals + b * C + c, mask=c < C, other=0.0), H, W)
    arriving = (tl.zeros([R, BC], tl.float32) + arriving,) * TW
    level_gradient(
        arriving, grad, z, gates, grad_z, contexts, gate_parts, h, w, live, c, b, column, g_p, B, H, W, C,
        L - 1, GATES, False, TW,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def level_gradient_kernel(
    grad, z, gates, taps, grad_z, contexts, gate_parts, g_p, B, H, W, C, per_row, blocks, columns,
    K: tl.constexpr, LEVEL: tl.constexpr, GATES: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Backward through the convolution above LEVEL (of size K, with weights ``taps``) and through LEVEL."""
    program = tl.program_id(0)
    column = program % columns
    c = channels_of(column, BC)
    image = program // columns
    b = (image // blocks).to(tl.int64)
    h, w, live = strips_of(image % blocks, H, W, per_row, TW, R)
    above = grad_z + ((LEVEL + 1) * B + b) * H * W * C
    arriving = convolve(above, C, taps, h, w, c, live, H, W, C, K, TW, BC, True)
    level_gradient(
        arriving, grad, z, gates, grad_z, contexts, gate_parts, h, w, live, c, b, column, g_p, B, H, W, C,
        LEVEL, GATES, True, TW,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def input_gradient_kernel(
    grad_z, taps, out, H, W, C, per_row, blocks, columns,
    K: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Backward through the first level's convolution to the operation's input, (B, H, W, C)."""
    program = tl.program_id(0)
    c = channels_of(program % columns, BC)
    image = program // columns
    b = (image // blocks).to(tl.int64)
    h, w, live = strips_of(image % blocks, H, W, per_row, TW, R)
    descend(grad_z + b * H * W * C, taps, out + b * H * W * C, h, w, live, c, H, W, C, K, TW, BC)


@triton.jit
def descend(above, taps, out, h, w, live, c, H, W, C, K: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr):
    """Gradient of a convolution's input, ``out``, from that of its output, ``above``; both contiguous."""
    sums = convolve(above, C, taps, h, w, c, live, H, W, C, K, TW, BC, True)
    for t in tl.static_range(TW):
        mine = live & (w + t < W) & (c < C)
        tl.store(out + (h * W + w + t) * C + c, sums[t].to(out.dtype.element_ty), mask=mine)


@triton.jit(do_not_specialize=SIZES)
def plane_gradient_kernel(
    grad, x, gates, taps, total_gradients, z, contexts, out, gate_parts, x_p, g_p, B, H, W, C, per_row, blocks, columns,
    KERNELS: tl.constexpr, L: tl.constexpr, GATES: tl.constexpr, TAPS: tl.constexpr,
    TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """All gradients except the kernel weights', for one image and block of channels; recomputes the levels first.

    Afterwards ``z`` holds the gradients of all levels' convolutions and ``contexts`` the contexts, both
    (L, B, H, W, C), as input of ``weight_gradient_kernel``. TAPS is the number of kernel weights of all levels. Only
    without the global level, ``total_gradients`` is read: the gradient of the forward pass's ``totals``, (B, C).
    """
    program = tl.program_id(0)
    column = program % columns
    c = channels_of(column, BC)
    b = (program // columns).to(tl.int64)
    total = climb(x, taps, contexts, z, x_p, b, c, B, H, W, C, per_row, blocks, KERNELS, L, True, TW, R, BC)
    if GATES > L:
        everywhere = gelu(total / (H * W))
        through_mean = tl.zeros([R, BC], tl.float32)
        for block in range(blocks):
            h, w, live = strips_of(block, H, W, per_row, TW, R)
            through_mean += global_gradient(
                grad, gates, everywhere, gate_parts, h, w, live, c, b, column, g_p, B, H, W, C, L, TW, R, BC
            )
        arriving_mean = mean_gradient(tl.sum(through_mean, 0)[None, :], total, H, W)
    else:
        arriving_mean = tl.load(total_gradients + b * C + c, mask=c < C, other=0.0)
    arriving_mean = tl.zeros([R, BC], tl.float32) + arriving_mean
    kernel = taps + TAPS * C
    for down in tl.static_range(L):
        if down > 0:
            kernel -= size_of(KERNELS, L - down) * size_of(KERNELS, L - down) * C
        for block in range(blocks):
            h, w, live = strips_of(block, H, W, per_row, TW, R)
            arriving = (arriving_mean,) * TW
            if down > 0:
                above = z + ((L - down) * B + b) * H * W * C
                arriving = convolve(above, C, kernel, h, w, c, live, H, W, C, size_of(KERNELS, L - down), TW, BC, True)
            level_gradient(
                arriving, grad, z, gates, z, contexts, gate_parts, h, w, live, c, b, column, g_p, B, H, W, C,
                L - 1 - down, GATES, False, TW,
            )  # fmt: skip
        tl.debug_barrier()  # the level below reads values written by other threads
    for block in range(blocks):
        h, w, live = strips_of(block, H, W, per_row, TW, R)
        descend(z + b * H * W * C, taps, out + b * H * W * C, h, w, live, c, H, W, C, size_of(KERNELS, 0), TW, BC)


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    x, grad_z, parts, x_p, B, H, W, C, per_row, steps, columns, groups, first_tap, taps_of_all,
    K: tl.constexpr, ROWS: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradient of ROWS rows of a kernel, summed over ``steps`` blocks of strips numbered through all images.

    Args:
        x: the convolution's input, pixel stride ``x_p``; grad_z: (B, H, W, C).
        parts: (chunks, ``taps_of_all``, C), kernel weights of all levels; this level's start at ``first_tap``.
    """
    program = tl.program_id(0)
    c = channels_of(program % columns, BC)
    first = ((program // columns) % groups) * ROWS
    chunk = program // (columns * groups)
    sums = (tl.zeros([R, BC], tl.float32),) * (ROWS * K)
    for step in range(steps):
        s = (chunk * steps + step) * R + tl.arange(0, R)[:, None]
        b = (s // (per_row * H)).to(tl.int64)
        h = (s // per_row) % H
        w = (s % per_row) * TW
        inside = (b < B) & (c < C)
        start = grad_z + b * H * W * C + (h * W + w) * C + c
        grads = ()
        for t in tl.static_range(TW):
            grads = grads + (tl.load(start + t * C, mask=inside & (w + t < W), other=0.0).to(tl.float32),)
        for ky in tl.static_range(ROWS):
            y = h + first + (ky - K // 2)
            row = inside & (y.to(tl.uint32, bitcast=True) < H)
            below = x + b * H * W * x_p + (y * W + w - K // 2) * x_p + c
            for j in tl.static_range(TW + K - 1):
                seen = row & ((w + (j - K // 2)).to(tl.uint32, bitcast=True) < W)
                value = tl.load(below + j * x_p, mask=seen, other=0.0).to(tl.float32)
                for t in tl.static_range(TW):
                    if j - t >= 0 and j - t < K:
                        more = tl.fma(value, grads[t], sums[ky * K + j - t])
                        sums = sums[: ky * K + j - t] + (more,) + sums[ky * K + j - t + 1 :]
    for ky in tl.static_range(ROWS):
        for kx in tl.static_range(K):
            tap = parts + (chunk.to(tl.int64) * taps_of_all + first_tap + (first + ky) * K + kx) * C + c
            if first + ky < K:
                tl.store(tap, tl.sum(sums[ky * K + kx], 0)[None, :], mask=c < C)
