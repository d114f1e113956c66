"""Forward kernels, and functions shared with ``gradients.py``.

B batch, H height, W width, C channels, L levels. A *strip* is ``TW`` neighboring pixels of a row; a block is ``R``
strips times ``BC`` channels. Each thread computes one strip of a few channels: it keeps the ``TW`` sums of a
convolution in registers and uses each input pixel it loads for up to ``TW`` of them. Tuples are such per-thread lists,
whose loops are unrolled at compile time. Sums are float32 for all dtypes.

Tensors are addressed by pixel, with any pixel stride and contiguous channels; rows and images follow each other.
Offsets within an image have 32 bits, those of images 64 bits. If the gates have no channel for the global level
(``GATES`` is L, not L + 1), it is not added; it is then a rank-1 term after ``h``, see ``rank_one.py``.
"""
# Triton interprets type annotations in these signatures itself.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,assignment"
# ruff: noqa: ANN001, ANN201, D417, RUF005

import triton
import triton.language as tl

# Arguments that depend on the image size: specializing kernels on their divisibility by 16 would recompile them for
# many sizes. For the gates' stride it has no benefit, since single values are read.
SIZES = ("B", "H", "W", "per_row", "blocks", "columns", "steps", "groups", "first_tap", "taps_of_all", "g_p")

# log2 of the normal distribution function at -a, a in [0, 8], lowest order first (benchmarks/gpu/fit_gelu.py).
_R0 = tl.constexpr(-0.9999999345794706)
_R1 = tl.constexpr(-1.1511082868453921)
_R2 = tl.constexpr(-0.45918206374100273)
_R3 = tl.constexpr(-0.05257818496109626)
_R4 = tl.constexpr(0.007185786977887236)
_R5 = tl.constexpr(-0.00023311440595435214)
_R6 = tl.constexpr(-0.00014549845424690266)
_R7 = tl.constexpr(3.0663124467763246e-05)
_R8 = tl.constexpr(-2.0965931667473164e-06)


@triton.jit
def normal_cdf(x):
    """Phi(x) to 1e-7, where the exact GELU is ``x * Phi(x)``; half the instructions of erf, no cancellation below 0."""
    a = tl.abs(x)
    r = tl.fma(a, _R8, _R7)
    r = tl.fma(a, r, _R6)
    r = tl.fma(a, r, _R5)
    r = tl.fma(a, r, _R4)
    r = tl.fma(a, r, _R3)
    r = tl.fma(a, r, _R2)
    r = tl.fma(a, r, _R1)
    tail = tl.exp2(tl.fma(a, r, _R0))
    return tl.where(x > 0, 1 - tail, tail)


@triton.jit
def gelu(x):
    """The exact GELU."""
    return x * normal_cdf(x)


@triton.constexpr_function
def size_of(kernels, level):
    """The kernel size of a level, from four bits of ``kernels``; the first level has the lowest bits."""
    return (kernels >> (4 * level)) & 15


@triton.jit
def strips_of(block, H, W, per_row, TW: tl.constexpr, R: tl.constexpr):
    """Row, first column and validity of the R strips of a block, each (R, 1)."""
    s = block * R + tl.arange(0, R)[:, None]
    h = s // per_row
    return h, (s % per_row) * TW, h < H


@triton.jit
def channels_of(column, BC: tl.constexpr):
    """The channels of a block: (1, BC)."""
    return column * BC + tl.arange(0, BC)[None, :]


@triton.jit
def convolve(
    x, x_p, taps, h, w, c, live, H, W, C, K: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, FLIP: tl.constexpr
):
    """Depthwise convolution of one image at a block of strips; with FLIP, of the mirrored kernel (its transpose).

    Args:
        x: pointer to the image; ``x_p`` its pixel stride.
        taps: pointer to the kernel weights, (K * K, C), float32.
        h, w, c, live: position, see ``strips_of`` and ``channels_of``.

    Returns:
        A tuple of TW sums, each (R, BC).
    """
    inside = c < C
    sums = (tl.zeros([live.shape[0], BC], tl.float32),) * TW
    for ky in range(K):
        y = h + (ky - K // 2)
        row = live & inside & (y.to(tl.uint32, bitcast=True) < H)  # negative values are large as unsigned
        start = x + (y * W + w - K // 2) * x_p + c
        kernel = ()
        for kx in tl.static_range(K):
            tap = ky * K + kx
            if FLIP:
                tap = K * K - 1 - tap
            kernel = kernel + (tl.load(taps + tap * C + c, mask=inside, other=0.0),)
        for j in tl.static_range(TW + K - 1):
            seen = row & ((w + (j - K // 2)).to(tl.uint32, bitcast=True) < W)
            value = tl.load(start + j * x_p, mask=seen, other=0.0).to(tl.float32)
            for t in tl.static_range(TW):
                if j - t >= 0 and j - t < K:
                    sums = sums[:t] + (tl.fma(value, kernel[j - t], sums[t]),) + sums[t + 1 :]
    return sums


@triton.jit(do_not_specialize=SIZES)
def level_kernel(
    x, taps, gates, contexts, z, out, totals, x_p, g_p, B, H, W, C, per_row, blocks, columns,
    K: tl.constexpr, LEVEL: tl.constexpr, LAST: tl.constexpr, KEEP: tl.constexpr,
    TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One level: convolution and GELU. The last level also sums the gated levels, and its own context for the mean.

    Args:
        x: the operation's input, pixel stride ``x_p``, read by level 0; taps: (K * K, C); gates: (B, H, W, GATES).
        contexts: (L - 1, B, H, W, C), contexts of all levels but the last.
        z: (L, B, H, W, C), output of the convolutions for the backward pass if KEEP.
        out: (B, H, W, C), the gated sum, written by the last level.
        totals: (B, blocks, C), sums of the last context over each block, which are added in a fixed order afterwards.
    """
    program = tl.program_id(0)
    c = channels_of(program % columns, BC)
    image = program // columns
    block = image % blocks
    b = (image // blocks).to(tl.int64)
    h, w, live = strips_of(block, H, W, per_row, TW, R)
    below = x + b * H * W * x_p
    below_p = x_p
    if LEVEL > 0:
        below = contexts + ((LEVEL - 1) * B + b) * H * W * C
        below_p = C
    sums = convolve(below, below_p, taps, h, w, c, live, H, W, C, K, TW, BC, False)
    total = tl.zeros([R, BC], tl.float32)
    for t in tl.static_range(TW):
        pixel = h * W + w + t
        exists = live & (w + t < W)
        mine = exists & (c < C)
        here = (LEVEL * B + b) * H * W * C + pixel * C + c
        if KEEP:
            tl.store(z + here, sums[t].to(z.dtype.element_ty), mask=mine)
        value = gelu(sums[t])
        if LAST:
            total += tl.where(mine, value, 0.0)
            gate = gates + (b * H * W + pixel) * g_p
            value *= tl.load(gate + LEVEL, mask=exists, other=0.0).to(tl.float32)
            value = add_gated(value, contexts, gate, b, pixel * C + c, exists, mine, B, H * W * C, LEVEL)
            tl.store(out + b * H * W * C + pixel * C + c, value.to(out.dtype.element_ty), mask=mine)
        else:
            tl.store(contexts + here, value.to(contexts.dtype.element_ty), mask=mine)
    if LAST:
        tl.store(totals + (b * blocks + block) * C + c, tl.sum(total, 0)[None, :], mask=c < C)


@triton.jit
def add_gated(value, contexts, gate, b, here, exists, mine, B, image, LEVELS: tl.constexpr):
    """Adds ``gate_l * context_l`` of the first LEVELS levels at one pixel of every strip."""
    for level in tl.static_range(LEVELS):
        context = tl.load(contexts + (level * B + b) * image + here, mask=mine, other=0.0).to(tl.float32)
        value = tl.fma(context, tl.load(gate + level, mask=exists, other=0.0).to(tl.float32), value)
    return value


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(
    out, gates, totals, g_p, H, W, C, per_row, blocks, columns,
    L: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Adds the global level, ``gelu(mean) * gate``, to the gated sum in place; totals: (B, C)."""
    program = tl.program_id(0)
    c = channels_of(program % columns, BC)
    image = program // columns
    b = (image // blocks).to(tl.int64)
    h, w, live = strips_of(image % blocks, H, W, per_row, TW, R)
    everywhere = gelu(tl.load(totals + b * C + c, mask=c < C, other=0.0) / (H * W))
    for t in tl.static_range(TW):
        pixel = h * W + w + t
        exists = live & (w + t < W)
        here = out + b * H * W * C + pixel * C + c
        gate = tl.load(gates + (b * H * W + pixel) * g_p + L, mask=exists, other=0.0).to(tl.float32)
        value = tl.load(here, mask=exists & (c < C), other=0.0).to(tl.float32)
        tl.store(here, tl.fma(everywhere, gate, value).to(out.dtype.element_ty), mask=exists & (c < C))


@triton.jit(do_not_specialize=SIZES)
def plane_kernel(
    x, taps, gates, contexts, out, totals, x_p, g_p, B, H, W, C, per_row, blocks, columns,
    KERNELS: tl.constexpr, L: tl.constexpr, GATES: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The whole operation for one image and block of channels, without recomputed halos or a separate mean.

    The levels communicate through ``contexts``, (L, B, H, W, C), which stays in the caches. ``totals`` gets the sum of
    the last one, (B, C). KERNELS: see ``size_of``.
    """
    program = tl.program_id(0)
    c = channels_of(program % columns, BC)
    b = (program // columns).to(tl.int64)
    total = climb(x, taps, contexts, contexts, x_p, b, c, B, H, W, C, per_row, blocks, KERNELS, L, False, TW, R, BC)
    tl.store(totals + b * C + c, total, mask=c < C)
    everywhere = gelu(total / (H * W))
    for block in range(blocks):
        h, w, live = strips_of(block, H, W, per_row, TW, R)
        for t in tl.static_range(TW):
            pixel = h * W + w + t
            exists = live & (w + t < W)
            mine = exists & (c < C)
            gate = gates + (b * H * W + pixel) * g_p
            value = tl.zeros([R, BC], tl.float32)
            if GATES > L:
                value = everywhere * tl.load(gate + L, mask=exists, other=0.0).to(tl.float32)
            value = add_gated(value, contexts, gate, b, pixel * C + c, exists, mine, B, H * W * C, L)
            tl.store(out + b * H * W * C + pixel * C + c, value.to(out.dtype.element_ty), mask=mine)


@triton.jit
def climb(
    x, taps, contexts, z, x_p, b, c, B, H, W, C, per_row, blocks,
    KERNELS: tl.constexpr, L: tl.constexpr, KEEP: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Computes all levels of one plane in order, into ``contexts`` (and the inputs of GELU into ``z`` if KEEP).

    Returns:
        The last context's sum over the plane, (1, BC).
    """
    total = tl.zeros([R, BC], tl.float32)
    for level in tl.static_range(L):
        below = x + b * H * W * x_p
        below_p = x_p
        if level > 0:
            below = contexts + ((level - 1) * B + b) * H * W * C
            below_p = C
        for block in range(blocks):
            h, w, live = strips_of(block, H, W, per_row, TW, R)
            sums = convolve(below, below_p, taps, h, w, c, live, H, W, C, size_of(KERNELS, level), TW, BC, False)
            for t in tl.static_range(TW):
                mine = live & (w + t < W) & (c < C)
                here = (level * B + b) * H * W * C + (h * W + w + t) * C + c
                value = gelu(sums[t])
                if KEEP:
                    tl.store(z + here, sums[t].to(z.dtype.element_ty), mask=mine)
                if level == L - 1:
                    total += tl.where(mine, value, 0.0)
                tl.store(contexts + here, value.to(contexts.dtype.element_ty), mask=mine)
        tl.debug_barrier()  # the next level reads values written by other threads
        taps += size_of(KERNELS, level) * size_of(KERNELS, level) * C
    return tl.sum(total, 0)[None, :]
