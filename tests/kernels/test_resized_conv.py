"""The convolution of maps of several sizes is the one of the maps brought to one size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.kernels.resized_conv import resized_conv

sides = st.tuples(st.integers(1, 9), st.integers(1, 9))


def plainly(maps: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    resized = [F.interpolate(x, maps[0].shape[2:], mode="bilinear") for x in maps]
    return F.conv2d(torch.cat(resized, 1), weight, padding=1)


def random(sizes: list[tuple[int, int]], batch: int = 2) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, 2 + i, *size, generator=generator, dtype=torch.double) for i, size in enumerate(sizes)]
    weight = torch.randn(5, sum(x.shape[1] for x in maps), 3, 3, generator=generator, dtype=torch.double)
    return [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in maps], weight.requires_grad_()


@settings(max_examples=30)
@given(sizes=st.lists(sides, min_size=1, max_size=4))
def test_any_sizes(sizes: list[tuple[int, int]]) -> None:
    maps, weight = random(sizes)
    out, expected = resized_conv(maps, weight), plainly(maps, weight)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last) or 1 in out.shape
    seeds = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, [*maps, weight], seeds) for y in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision_is_as_exact_as_the_convolution_itself() -> None:
    maps, weight = random([(24, 20), (12, 10), (6, 5), (3, 3)])
    expected = plainly(maps, weight)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (f([x.float() for x in maps], weight.float()) for f in (resized_conv, plainly))
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).norm() <= 2 * (theirs - expected).norm()


def test_a_gradient_keeps_only_what_comes_in() -> None:
    maps, weight = random([(16, 16), (8, 8), (4, 4)])
    kept: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.untyped_storage().nbytes() // x.itemsize)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        resized_conv(maps, weight)
    assert max(kept) == max(x.numel() for x in maps)
