"""ROAD's linear imputation (Rong et al., ICML 2022, arXiv 2202.00449): removed pixels from what surrounds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import InputError

SMALL = 64  # longer side up to which solving directly is faster than iterating
FACTORS = 2**21  # values of the factors of images that are solved together
IN_CACHE = 2**15  # values of images that are iterated together: five float64 tensors of them stay in the cache
TOLERANCE = 1e-9  # of the largest residual, relative to the largest value


def impute(images: Tensor, gone: Tensor) -> Tensor:
    """Each missing pixel becomes the weighted mean of its eight neighbors, without ROAD's noise.

    The weights are 1/6 for direct and 1/12 for diagonal neighbors, divided by their sum at the border of the image. The
    linear systems are solved in float64 without a sparse solver: those of small images directly, row by row of the
    image, since smooth maps leave large holes that take many iterations; those of large images by conjugate gradients,
    where the product with the symmetric matrix is a separable filter.

    Args:
        images: ``(B, C, H, W)``.
        gone: bool ``(B, H, W)``; no image may be without any pixel.

    Raises:
        InputError: an image without any pixel left.
    """
    if gone.flatten(1).all(1).any():
        raise InputError("gone: an image without any pixel left cannot be imputed")
    height, width = images.shape[2:]
    small = max(height, width) <= SMALL
    solve = _solved if small else _approached
    at_once = max(FACTORS // (height * width**2) if small else IN_CACHE // images[0].numel(), 1)
    parts = zip(torch.split(images, at_once), torch.split(gone, at_once), strict=True)
    return torch.cat([solve(some, missing) for some, missing in parts])


def _solved(images: Tensor, gone: Tensor) -> Tensor:
    """By a Cholesky factorization, a block for each row of the image: pixels are neighbors of the next row only."""
    missing = gone.double()
    height, width = missing.shape[1:]
    weight = _neighbor_sums(torch.ones_like(missing[:1, None]))[0, 0]
    right = _neighbor_sums(images.double() * (1 - missing[:, None])) * missing[:, None]
    rows = missing.unbind(1)
    rights = right.permute(2, 0, 3, 1).unbind()  # (B, W, C) for each row
    same = torch.eye(width, dtype=missing.dtype, device=missing.device)
    beside = same.roll(1, 0).tril(-1) + same.roll(-1, 0).triu(1)
    within, between = beside / 6, same / 6 + beside / 12
    factors: list[Tensor] = []
    couplings: list[Tensor] = []  # of a row with the next one
    halfway: list[Tensor] = []
    for y, row in enumerate(rows):
        block = torch.diag_embed(weight[y] * row + (1 - row)) - row[:, :, None] * within * row[:, None]
        value = rights[y]
        if y:
            block = block - couplings[-1].mT @ couplings[-1]
            value = value - couplings[-1].mT @ halfway[-1]
        factors.append(torch.linalg.cholesky(block))
        halfway.append(torch.linalg.solve_triangular(factors[-1], value, upper=False))
        if y + 1 < height:
            coupling = -row[:, :, None] * between * rows[y + 1][:, None]
            couplings.append(torch.linalg.solve_triangular(factors[-1], coupling, upper=False))
    found: list[Tensor] = []  # from the last row to the first
    for y in reversed(range(height)):
        value = halfway[y] - couplings[y] @ found[-1] if found else halfway[y]
        found.append(torch.linalg.solve_triangular(factors[y].mT, value, upper=True))
    x = torch.stack(found[::-1]).permute(1, 3, 0, 2)
    return torch.where(gone[:, None], x.to(images), images)


def _approached(images: Tensor, gone: Tensor) -> Tensor:
    """By conjugate gradients, until no residual is larger than ``TOLERANCE`` times the largest value."""
    missing = gone[:, None].double()
    known = images.double() * (1 - missing)
    weight = _neighbor_sums(torch.ones_like(missing[:1]))
    right = _neighbor_sums(known) * missing
    precondition = _preconditioner(missing, weight)
    x = known.flatten(2).sum(2)[..., None, None] / (1 - missing).flatten(2).sum(2)[..., None, None] * missing
    residual = (right - missing * (weight * x - _neighbor_sums(x))) * missing
    preconditioned = precondition(residual)
    direction = preconditioned
    energy = (residual * preconditioned).sum((2, 3), keepdim=True)
    limit = TOLERANCE * images.abs().max().double().clamp(min=1e-30)
    for _ in range(10 * sum(images.shape[2:])):
        if residual.abs().max() <= limit:
            break
        applied = (weight * direction - _neighbor_sums(direction)) * missing
        length = energy / (direction * applied).sum((2, 3), keepdim=True).clamp(min=1e-300)
        x = x + length * direction
        residual = residual - length * applied
        preconditioned = precondition(residual)
        new_energy = (residual * preconditioned).sum((2, 3), keepdim=True)
        direction = preconditioned + new_energy / energy.clamp(min=1e-300) * direction
        energy = new_energy
    return torch.where(gone[:, None], x.to(images), images)


def _preconditioner(missing: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """An approximate inverse of the matrix: its diagonal, and that on ever larger squares.

    On squares of 2, 4, 8, ... pixels, as in multilevel preconditioning (Bramble, Pasciak and Xu, 1990): the residual of
    the missing pixels in a square is divided by the energy of the function that is 1 on them. At 224 pixels it takes a
    quarter of the iterations that the diagonal alone takes.
    """
    height, width = missing.shape[2:]
    levels: list[tuple[int, Tensor]] = []
    side = 2
    while side < max(height, width):
        rows, columns = (torch.arange(n, device=missing.device) // side % 2 for n in (height, width))
        energy = torch.zeros_like(missing)
        for row in (0, 1):  # squares of one color do not touch
            for column in (0, 1):
                ones = missing * ((rows == row)[:, None] & (columns == column)[None])
                energy += ones * (weight * ones - _neighbor_sums(ones))
        sums = _square_sums(energy, side)
        levels.append((side, torch.where(sums > 1e-12, 1 / sums.clamp(min=1e-12), torch.zeros_like(sums))))
        side *= 2

    def apply(residual: Tensor) -> Tensor:
        result = residual / weight
        for side, inverse in levels:
            coarse = _square_sums(residual, side) * inverse
            result = result + coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :height, :width]
        return result * missing

    return apply


def _square_sums(x: Tensor, side: int) -> Tensor:
    """The sums over squares of so many pixels a side, ``(B, C, h, w)``."""
    padded = F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))
    return F.avg_pool2d(padded, side) * side**2


def _neighbor_sums(x: Tensor) -> Tensor:
    """The weighted sum of the eight neighbors: (1 2 1) along both axes over 12, without the pixel's own 1/3."""
    total = x / 6
    total[..., 1:] += x[..., :-1] / 12
    total[..., :-1] += x[..., 1:] / 12
    sums = 2 * total
    sums[..., 1:, :] += total[..., :-1, :]
    sums[..., :-1, :] += total[..., 1:, :]
    return sums - x / 3
