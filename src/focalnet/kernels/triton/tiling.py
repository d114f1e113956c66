"""Tile sizes by fixed rules, so that results are deterministic and no autotuning is needed."""

from __future__ import annotations

from dataclasses import dataclass

WIDTHS = (8, 7, 6, 5)  # pixels per strip: each loaded pixel is used by as many sums, which take registers
LANE = 4  # channels per thread: 8 bytes in half precision, 16 in single
WIDE = 64  # from this width, the widest strip wastes little, and all widths share one compiled kernel
PLANE_PIXELS = 16 * 16  # up to this size, one program computes a whole plane
PLANE_TAPS = 100  # kernel weights of all levels, up to which the gradient of a whole plane compiles in seconds
PROGRAMS = 1024  # programs that share a kernel's gradient: several per multiprocessor, with a bounded workspace
WEIGHT_SUMS = 32  # maximum sums of a kernel's gradient in the registers of a thread, times two channels


@dataclass(frozen=True)
class Tile:
    """A block: ``R`` strips of ``TW`` pixels by ``BC`` channels, on ``warps`` warps."""

    TW: int
    R: int
    BC: int
    warps: int

    def per_row(self, width: int) -> int:
        """Strips per row."""
        return -(-width // self.TW)

    def blocks(self, height: int, width: int) -> int:
        """Blocks per image."""
        return -(-height * self.per_row(width) // self.R)

    def columns(self, channels: int) -> int:
        """Blocks of channels."""
        return -(-channels // self.BC)


def strip_width(width: int) -> int:
    """The strip width that wastes the fewest sums at the end of a row, preferably wide; the widest for wide inputs."""
    if width >= WIDE:
        return max(WIDTHS)
    return min(WIDTHS, key=lambda tw: (-(-width // tw) * tw, -tw))


def channel_block(channels: int) -> int:
    """64 channels, a cache line in half precision; 32 if 64 would leave a block half empty."""
    return 64 if channels % 64 == 0 or channels > 256 else 32


def convolution_tile(height: int, width: int, channels: int) -> Tile:
    """Tile for the kernels that compute a convolution.

    Sizes are only compared, never converted to ``int``, so that a compiler with symbolic sizes makes one graph per
    tile, not per size.
    """
    tw, bc = strip_width(width), channel_block(channels)
    strips, rows = height * -(-width // tw), 8 * 32 * LANE // bc
    while rows > 1 and rows // 2 >= strips:
        rows //= 2
    return Tile(tw, rows, bc, max(1, rows * bc // (32 * LANE)))


def weight_tile(width: int, channels: int) -> Tile:
    """Tile for the gradient of kernels: two channels per thread, since there are many sums."""
    bc = channel_block(channels)
    return Tile(strip_width(width), 4 * 64 // bc, bc, 4)


def weight_rows(kernel: int) -> int:
    """Number of kernel rows whose gradient one program computes."""
    rows = max(1, min(kernel, WEIGHT_SUMS // kernel))
    return -(-kernel // -(-kernel // rows))  # balanced over the programs


def whole_plane(height: int, width: int, taps: int = 0) -> bool:
    """Whether one program computes all levels of a plane; ``taps``: kernel weights of all levels, for gradients."""
    return height * width <= PLANE_PIXELS and taps <= PLANE_TAPS
