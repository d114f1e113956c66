"""Every operation: registered as PyTorch wants it, and right at any order of derivative, by kernels and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from focalnet import kernels
from focalnet.errors import InputError
from focalnet.kernels import backend, cpu, matmul, triton
from focalnet.ops.roi_align import roi_align

needs_kernels = pytest.mark.skipif(not cpu.built(), reason="the CPU kernels were not built")
ROIS = torch.tensor([[0, 1.0, 2.0, 17.0, 12.0], [1, -3.0, 0.0, 9.5, 20.0]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2


# Each operation with inputs that make every one of them count: function, inputs.
OPERATIONS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "focal_context": (
        lambda c, g, *w: kernels.focal_context(c, g, w),
        [random(2, 4, 5, 3), random(2, 4, 5, 3, seed=1), random(3, 1, 3, 3, seed=2), random(3, 1, 5, 5, seed=3)],
    ),
    "layer_norm": (
        lambda x, w, b: kernels.layer_norm(x, w, b, 1e-5),
        [random(2, 3, 7), random(7, seed=1), random(7, seed=2)],
    ),
    "fork_and_norm": (
        lambda x, w, b: torch.cat(kernels.fork_and_norm(x, w, b, 1e-5)),
        [random(2, 3, 7), random(7, seed=1), random(7, seed=2)],
    ),
    "linear": (
        lambda x, w, b, p: kernels.linear(x, w, b, residual=p),
        [random(2, 3, 4), random(5, 4, seed=1), random(5, seed=2), random(2, 3, 5, seed=3)],
    ),
    "linear_of_product": (
        lambda x, y, w, b: kernels.linear_of_product(x, y, w, b),
        [random(2, 3, 4), random(2, 3, 4, seed=3), random(5, 4, seed=1), random(5, seed=2)],
    ),
    "mlp": (
        lambda x, v, a, w, b: kernels.mlp(x, v, a, w, b),
        [random(2, 3, 4), random(6, 4, seed=1), random(6, seed=2), random(5, 6, seed=3), random(5, seed=4)],
    ),
    "mlp that recomputes": (
        lambda x, v, a, w, b: kernels.mlp(x, v, a, w, b, recompute=True),
        [random(2, 3, 4), random(6, 4, seed=1), random(6, seed=2), random(5, 6, seed=3), random(5, seed=4)],
    ),
    "deformable attention": (
        lambda v, p, w: kernels.deformable_attention(v, [(2, 3), (1, 2)], (p * 0.3 + 0.5).clamp(0.05, 0.95), w),
        [random(1, 8, 2, 3), random(1, 2, 2, 2, 2, 2, seed=5), random(1, 2, 2, 2, 2, seed=2)],
    ),
    "roi_align": (lambda f: roi_align(f, ROIS.to(f), 2, 0.25), [random(2, 3, 5, 4)]),
}


def leaves(inputs: list[Tensor], **options: Any) -> list[Tensor]:
    return [x.detach().clone().to(**options).requires_grad_() for x in inputs]


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradcheck(name: str) -> None:
    """In float64, which the kernels leave to PyTorch: backward and forward, once and twice, batched or not."""
    function, inputs = OPERATIONS[name]
    inputs = leaves(inputs)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_float32_by_the_kernels(name: str) -> None:
    """Gradients, their gradients, and tangents of the kernels equal those of PyTorch's operations in float64."""
    function, inputs = OPERATIONS[name]

    def derivatives(inputs: list[Tensor]) -> list[Tensor]:
        out = function(*inputs).sin()
        up = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)
        first = torch.autograd.grad(out, inputs, up, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, materialize_grads=True)
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x.detach(), x.detach().cos()) for x in inputs]
            tangent = forward_ad.unpack_dual(function(*duals).sin()).tangent
            with torch.no_grad():
                again = forward_ad.unpack_dual(function(*duals).sin()).tangent
        return [x.detach() for x in (out, *first, *second, tangent, again)]

    with backend.use("eager"):
        truth = derivatives(leaves(inputs))
    for a, b in zip(derivatives(leaves(inputs, dtype=torch.float32)), truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_an_input_made_from_another() -> None:
    """The second derivative of an operation ends at its inputs, also where one is a function of another."""

    def value(x: Tensor, w: Tensor) -> Tensor:
        return kernels.linear_of_product(x, x.sin() * 2, w, w[:, 0] * 3).square().sum()

    def penalty(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(value(x, w), (x, w), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, w))

    inputs = [random(2, 3, 4), random(4, 4, seed=1)]
    with backend.use("eager"):
        truth = penalty(*leaves(inputs))
    for a, b in zip(penalty(*leaves(inputs, dtype=torch.float32)), truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def of_kernels() -> dict[str, tuple[Any, ...]]:
    """Arguments for each registered operation of the CPU kernels."""
    x, weight, bias = (random(*shape).float() for shape in ((2, 4, 5, 7), (7,), (7,)))
    gates, kernels = random(2, 4, 5, 2).float(), [random(7, 1, 3, 3).float()]
    moments = torch.stack([x.mean(-1), (x.var(-1, correction=0) + 1e-5).rsqrt()], -1).view(-1, 2)
    arguments: dict[str, tuple[Any, ...]] = {
        "focal_context": (x, gates, kernels),
        "focal_context_backward": (x.cos(), x, gates, kernels),
        "layer_norm": (x, weight, bias, 1e-5),
        "layer_norm_backward": (x.cos(), x, weight, moments, None),
        "gelu_backward": (x.cos(), x, True),
        "column_sum": (x,),
    }
    points = random(2, 3, 2, 1, 2, 2).float().sigmoid(), random(2, 3, 2, 1, 2).float()
    arguments["deformable_attention"] = (random(2, 6, 2, 5).float(), [2, 3], *points)
    arguments["deformable_attention_backward"] = (random(2, 3, 10).float(), *arguments["deformable_attention"])
    if matmul.ONEDNN:
        arguments["linear"] = (x, random(5, 7).float(), random(5).float(), "none", None)
    return arguments


@needs_kernels
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it itself
@pytest.mark.parametrize("name", of_kernels())
def test_opcheck(name: str) -> None:
    operation = getattr(torch.ops.focalnet, name).default
    torch.library.opcheck(operation, of_kernels()[name])


@needs_kernels
@pytest.mark.parametrize("name", of_kernels())
def test_a_registered_operation_refuses_tangents_by_name(name: str) -> None:
    """What has no forward-mode derivative of its own says so, instead of losing the tangent."""
    x, *others = of_kernels()[name]
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(InputError, match=f"focalnet::{name} has no forward"):
        getattr(torch.ops.focalnet, name)(forward_ad.make_dual(x, x.cos()), *others)


def test_compiled_transforms() -> None:
    """A transform inside a compiled function, and a compiled function called from outside of it."""
    function, inputs = OPERATIONS["focal_context"]
    x, *others = leaves(inputs, dtype=torch.float32)

    def tangent(x: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(lambda x: function(x, *others), (x,), (x.cos(),))[1]
        return out

    torch.testing.assert_close(torch.compile(tangent, backend="aot_eager")(x), tangent(x))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for the interpreter")
def test_triton_kernels_are_differentiated_twice() -> None:
    op = pytest.importorskip("focalnet.kernels.triton.op")
    if not op.INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1")
    function, inputs = OPERATIONS["focal_context"]

    def penalty(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)

    with backend.use("eager"):
        truth = penalty(leaves(inputs))
    with backend.use("triton"):
        assert triton.why_not(*inputs[:2], inputs[2:]) is not None  # float64 is not for it
        ours = penalty(leaves(inputs, dtype=torch.float32))
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
