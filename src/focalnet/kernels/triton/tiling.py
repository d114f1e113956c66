"""How the work is cut: fixed rules, so that equal inputs give equal bits on every run and nothing is timed at start."""

from __future__ import annotations

from dataclasses import dataclass

WIDTHS = (8, 7, 6, 5)  # pixels of a strip: each loaded pixel serves as many sums, each of which takes registers
LANE = 4  # channels a thread holds: 8 bytes in half precision, 16 in single
WIDE = 64  # from here on the widest strip wastes little, and every width shares one compiled kernel
PLANE_PIXELS = 16 * 16  # up to here one program does a whole plane
PLANE_TAPS = 100  # of all levels, up to which the gradient of a whole plane compiles in seconds
PROGRAMS = 1024  # that share the sum of a kernel's gradient: several for every multiprocessor, and a bounded workspace
WEIGHT_SUMS = 32  # at most so many sums of a kernel's gradient in the registers of a thread, times two channels


@dataclass(frozen=True)
class Tile:
    """A block: ``R`` strips of ``TW`` pixels by ``BC`` channels, on ``warps`` warps."""

    TW: int
    R: int
    BC: int
    warps: int

    def per_row(self, width: int) -> int:
        """Strips of a row."""
        return -(-width // self.TW)

    def blocks(self, height: int, width: int) -> int:
        """Blocks of an image."""
        return -(-height * self.per_row(width) // self.R)

    def columns(self, channels: int) -> int:
        """Blocks of channels."""
        return -(-channels // self.BC)


def strip_width(width: int) -> int:
    """The strip that wastes the fewest sums at the end of a row, the widest of the best; the widest for a wide map."""
    if width >= WIDE:
        return max(WIDTHS)
    return min(WIDTHS, key=lambda tw: (-(-width // tw) * tw, -tw))


def channel_block(channels: int) -> int:
    """64 side by side are a cache line in half precision; 32 where 64 would leave a block half empty."""
    return 64 if channels % 64 == 0 or channels > 256 else 32


def convolution_tile(height: int, width: int, channels: int) -> Tile:
    """For the kernels that hold the sums of a convolution.

    Sizes are only compared, never put through ``int``: a compiler that sees symbols then makes a graph for each tile,
    not for each size.
    """
    tw, bc = strip_width(width), channel_block(channels)
    strips, rows = height * -(-width // tw), 8 * 32 * LANE // bc
    while rows > 1 and rows // 2 >= strips:
        rows //= 2
    return Tile(tw, rows, bc, max(1, rows * bc // (32 * LANE)))


def weight_tile(width: int, channels: int) -> Tile:
    """For the gradient of kernels, whose sums are many: two channels a thread."""
    bc = channel_block(channels)
    return Tile(strip_width(width), 4 * 64 // bc, bc, 4)


def weight_rows(kernel: int) -> int:
    """Rows of a kernel whose gradient one program sums."""
    rows = max(1, min(kernel, WEIGHT_SUMS // kernel))
    return -(-kernel // -(-kernel // rows))  # as few as needed for as many programs


def whole_plane(height: int, width: int, taps: int = 0) -> bool:
    """Whether one program takes a plane through every level; ``taps`` are those of all levels if gradients follow."""
    return height * width <= PLANE_PIXELS and taps <= PLANE_TAPS
