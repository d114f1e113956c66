"""The GPU kernels of deformable attention, forward and backward.

EXPERIMENTAL: they pass their tests in Triton's interpreter and compile for GPUs, but have never run on one.

B batch, S cells of all levels, Q queries, H heads, D channels of a head, L levels, P points. A *row* is one query and
head; a program computes ``R`` rows times ``BD`` channels for all points of all levels. Sums are float32 for all dtypes,
except the gradient of the values, to which many programs add: it is summed in int64, whose sum does not depend on the
order.
"""
# Triton interprets type annotations in these signatures itself.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
# ruff: noqa: ANN001, ANN201, D417

import triton
import triton.language as tl

# Arguments that depend on the image size: specializing kernels on their divisibility by 16 would recompile them for
# many sizes.
SIZES = ("rows", "S", "Q", *(f"{side}{level}" for level in range(8) for side in "hw"))


@triton.jit
def locate(at, size):
    """Along one axis: the cell at or before a location, and the weight of the next cell.

    Outside the level the cell is -2, which does not exist. The weight at a location that is NaN is NaN.
    """
    place = tl.fma(at, size.to(tl.float32), -0.5)
    floor = tl.floor(place)
    inside = (place >= -1) & (place < size)
    share = tl.where(place == place, 0.0, place)
    return tl.where(inside, floor, -2.0).to(tl.int32), tl.where(inside, place - floor, share)


@triton.jit
def offsets_of(y, x, height, width, first, start, step):
    """Offsets in the values of a cell at each row's point, (R, BD), and whether the cell exists, (R, 1)."""
    exists = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    cell = first + y * width + x
    return start + cell.to(tl.int64)[:, None] * step, exists[:, None]


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    values, locations, weights, out, rows, S, Q, h0, w0, h1, w1, h2, w2, h3, w3, h4, w4, h5, w5, h6, w6, h7, w7,
    H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The weighted sums of R rows.

    Args:
        values: (B, S, H, D); locations: (rows, L, P, 2); weights: (rows, L, P); out: (rows, D), written. All dense.
        rows: B * Q * H; h0, w0 and so on: height and width of each level, of which the first L are used.
    """
    row = tl.program_id(0) * R + tl.arange(0, R)
    live = row < rows
    c = tl.arange(0, BD)[None, :]
    mine = live[:, None] & (c < D)
    start = ((row // (Q * H)).to(tl.int64) * S * H + row % H)[:, None] * D + c
    point = row.to(tl.int64) * (L * P)
    total = tl.zeros([R, BD], tl.float32)
    heights = (h0, h1, h2, h3, h4, h5, h6, h7)
    widths = (w0, w1, w2, w3, w4, w5, w6, w7)
    first = 0
    for level in tl.static_range(L):
        height = heights[level]
        width = widths[level]
        for p in range(P):
            here = point + level * P + p
            x, right = locate(tl.load(locations + 2 * here, mask=live, other=-2.0), width)
            y, below = locate(tl.load(locations + 2 * here + 1, mask=live, other=-2.0), height)
            weight = tl.load(weights + here, mask=live, other=0.0)
            sample = tl.zeros([R, BD], tl.float32)
            for corner in tl.static_range(4):
                dy = corner // 2
                dx = corner % 2
                offset, exists = offsets_of(y + dy, x + dx, height, width, first, start, H * D)
                share = (below if dy == 1 else 1 - below) * (right if dx == 1 else 1 - right)
                value = tl.load(values + offset, mask=exists & mine, other=0.0).to(tl.float32)
                sample = tl.fma(value, tl.zeros([R, BD], tl.float32) + share[:, None], sample)
            total = tl.fma(sample, tl.zeros([R, BD], tl.float32) + weight[:, None], total)
        first += height * width
    tl.store(out + row.to(tl.int64)[:, None] * D + c, total, mask=mine)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    grad, values, locations, weights, units, sums, grad_locations, grad_weights,
    rows, S, Q, h0, w0, h1, w1, h2, w2, h3, w3, h4, w4, h5, w5, h6, w6, h7, w7,
    H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradients of the locations and weights of R rows; adds their contribution to the gradient of the values.

    Args:
        grad: (rows, D); values, locations, weights: as in ``forward_kernel``.
        units: a scalar that contributions to ``sums`` are multiplied by before they are converted to int64.
        sums: (B, S, H, D), int64, added to; grad_locations: (rows, L, P, 2) and grad_weights: (rows, L, P), written.
        rows: B * Q * H; h0, w0 and so on: height and width of each level, of which the first L are used.
    """
    row = tl.program_id(0) * R + tl.arange(0, R)
    live = row < rows
    c = tl.arange(0, BD)[None, :]
    mine = live[:, None] & (c < D)
    start = ((row // (Q * H)).to(tl.int64) * S * H + row % H)[:, None] * D + c
    point = row.to(tl.int64) * (L * P)
    g = tl.load(grad + row.to(tl.int64)[:, None] * D + c, mask=mine, other=0.0)
    unit = tl.load(units)
    heights = (h0, h1, h2, h3, h4, h5, h6, h7)
    widths = (w0, w1, w2, w3, w4, w5, w6, w7)
    first = 0
    for level in tl.static_range(L):
        height = heights[level]
        width = widths[level]
        for p in range(P):
            here = point + level * P + p
            x, right = locate(tl.load(locations + 2 * here, mask=live, other=-2.0), width)
            y, below = locate(tl.load(locations + 2 * here + 1, mask=live, other=-2.0), height)
            weight = tl.load(weights + here, mask=live, other=0.0)
            along_x = tl.zeros([R], tl.float32)
            along_y = tl.zeros([R], tl.float32)
            sample = tl.zeros([R], tl.float32)
            for corner in tl.static_range(4):
                dy = corner // 2
                dx = corner % 2
                offset, exists = offsets_of(y + dy, x + dx, height, width, first, start, H * D)
                share_y = below if dy == 1 else 1 - below
                share_x = right if dx == 1 else 1 - right
                value = tl.load(values + offset, mask=exists & mine, other=0.0).to(tl.float32)
                product = tl.sum(g * value, 1)
                sample += share_y * share_x * product
                along_x += (share_y if dx == 1 else -share_y) * product
                along_y += (share_x if dy == 1 else -share_x) * product
                whole = (g * (share_y * share_x * weight)[:, None] * unit).to(tl.int64)
                tl.atomic_add(sums + offset, whole, mask=exists & mine, sem="relaxed")
            tl.store(grad_weights + here, sample, mask=live)
            tl.store(grad_locations + 2 * here, along_x * weight * width.to(tl.float32), mask=live)
            tl.store(grad_locations + 2 * here + 1, along_y * weight * height.to(tl.float32), mask=live)
        first += height * width
