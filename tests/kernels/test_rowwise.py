"""Layer norm and the gradients of GELU and biases on the CPU kernels, against PyTorch's own in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from focalnet import kernels
from focalnet.errors import InputError
from focalnet.kernels import backend, cpu, rowwise
from focalnet.kernels.cpu import library_file

pytestmark = pytest.mark.skipif(not cpu.built(), reason="needs the CPU kernels: they are built where a compiler is")
VARIANTS = list(cpu.load().variants) if cpu.built() else []

EPS = 1e-5
# Rows of a published model, more than one chunk of them, odd channels, one number, rows too long for a group.
SHAPES = [(2, 7, 7, 96), (131, 33), (1, 1), (5, 3), (70, 2816)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the kernels of one instruction set."""
    library = cpu.Library(next(library_file.candidates()), request.param)
    monkeypatch.setattr(cpu, "load", lambda: library)


def random(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def residual(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A residual branch of nothing but a norm, in our operations."""
    fork, normed = kernels.fork_and_norm(x, weight, bias, EPS)
    return fork + normed


def plain_residual(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x + F.layer_norm(x, weight.shape, weight, bias, EPS)


def values_and_gradients(
    function: Callable[..., torch.Tensor], inputs: list[torch.Tensor], grad: torch.Tensor
) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def assert_within_twice_eager(
    ours: list[torch.Tensor], eager: list[torch.Tensor], truth: list[torch.Tensor], floor: float
) -> None:
    for mine, theirs, true in zip(ours, eager, truth, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        unit = floor * max(1.0, float(true.abs().max()))
        assert float((mine - true).abs().max()) <= 2 * float((theirs - true).abs().max()) + unit


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
@pytest.mark.parametrize("pair", [(residual, plain_residual), (kernels.layer_norm, F.layer_norm)], ids=["fork", "norm"])
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype, pair: tuple[Callable[..., torch.Tensor], ...]) -> None:
    x, grad, weight, bias = random(shape, shape, shape[-1:], shape[-1:])
    mine, plain = pair
    if plain is F.layer_norm:
        mine, plain = partial(kernels.layer_norm, eps=EPS), lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS)
    ours = values_and_gradients(mine, [x.to(dtype), weight, bias], grad.to(dtype))
    eager = values_and_gradients(plain, [x.to(dtype), weight, bias], grad.to(dtype))
    truth = [t.to(dtype).double() for t in (x, grad)]
    exact = values_and_gradients(plain, [truth[0], weight.double(), bias.double()], truth[1])
    assert_within_twice_eager(ours, eager, exact, 8 * torch.finfo(dtype).eps)


@DTYPES
def test_layer_norm_of_a_large_map_without_gradients(dtype: torch.dtype) -> None:
    x, weight, bias = random((rowwise._LARGE_NORM // 64, 64), (64,), (64,))
    x = x.to(dtype)
    with torch.no_grad():
        ours, eager = kernels.layer_norm(x, weight, bias, EPS), F.layer_norm(x, (64,), weight, bias, EPS)
    exact = F.layer_norm(x.double(), (64,), weight.double(), bias.double(), EPS)
    assert_within_twice_eager([ours], [eager], [exact], torch.finfo(dtype).eps)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_of_gelu(shape: tuple[int, ...], dtype: torch.dtype, recompute: bool) -> None:
    x, grad = (3 * t for t in random(shape, shape))
    x, grad = x.to(dtype), grad.to(dtype)
    found, total, output = rowwise.gelu_gradient(grad, x, recompute=recompute)
    exact = torch.ops.aten.gelu_backward(grad.double(), x.double())
    eager = torch.ops.aten.gelu_backward(grad, x)
    assert_within_twice_eager([found], [eager], [exact], 4 * torch.finfo(dtype).eps)
    assert total.dtype == dtype
    torch.testing.assert_close(
        total.double(), exact.flatten(0, -2).sum(0), rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-4
    )
    assert (output is not None) == recompute
    if output is not None:
        assert_within_twice_eager([output], [F.gelu(x)], [F.gelu(x.double())], torch.finfo(dtype).eps)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
def test_gelu_in_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    (x,) = random(shape)
    x = (4 * x).to(dtype)
    eager, exact = F.gelu(x), F.gelu(x.double())
    found = cpu.load().gelu_(x)
    assert found is x
    assert_within_twice_eager([found], [eager], [exact], torch.finfo(dtype).eps)


@pytest.mark.usefixtures("variant")
@DTYPES
def test_gelu_far_out(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e30, -30, -7, 7, 30, 1e30, torch.nan], dtype=dtype).repeat(5)
    slope, *_ = rowwise.gelu_gradient(torch.ones_like(x), x, recompute=False)
    near = {"rtol": 1e-6, "atol": 1e-7, "equal_nan": True}
    torch.testing.assert_close(slope, torch.where(x.isnan(), x, (x > 0).to(dtype)), **near)
    torch.testing.assert_close(cpu.load().gelu_(x.clone()), F.relu(x), **near)


@pytest.mark.usefixtures("variant")
@DTYPES
def test_column_sum(dtype: torch.dtype) -> None:
    (x,) = random((3, 700, 513))
    x = x.to(dtype)
    assert x.numel() >= rowwise._LARGE_SUM
    exact = x.double().sum((0, 1))
    found = rowwise.column_sum(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
    torch.testing.assert_close(
        rowwise.column_sum(x[..., ::2]).double(), exact[::2], rtol=torch.finfo(dtype).eps, atol=1e-4
    )


def test_gradients_of_norm_parameters_are_not_summed_in_bfloat16() -> None:
    """PyTorch's own drift with the number of rows."""
    x, grad, weight, bias = random((20_000, 16), (20_000, 16), (16,), (16,))
    x, grad = x.bfloat16(), grad.bfloat16()
    _, _, *exact = values_and_gradients(plain_residual, [x.double(), weight.double(), bias.double()], grad.double())
    _, _, *ours = values_and_gradients(residual, [x, weight, bias], grad)
    for mine, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-3)


@given(st.integers(1, 200), st.integers(1, 70), st.integers(0, 2**31), st.booleans())
@settings(max_examples=40)
def test_any_shape(count: int, channels: int, seed: int, bf16: bool) -> None:
    dtype = torch.bfloat16 if bf16 else torch.float32
    x, grad, weight, bias = random((count, channels), (count, channels), (channels,), (channels,), seed=seed)
    ours = values_and_gradients(residual, [x.to(dtype), weight, bias], grad.to(dtype))
    with backend.use("eager"):
        eager = values_and_gradients(residual, [x.to(dtype).float(), weight, bias], grad.to(dtype).float())
    scale = float(x.float().var(-1, correction=0).add(EPS).rsqrt().max())  # where a row hardly varies, errors grow
    for mine, theirs in zip(ours, eager, strict=True):
        close = torch.finfo(dtype).eps * 16 * max(1.0, scale)
        torch.testing.assert_close(mine.float(), theirs, rtol=close, atol=close * max(1.0, float(theirs.abs().max())))


def test_is_deterministic_for_any_number_of_threads() -> None:
    x, grad, weight, bias = random((1000, 48), (1000, 48), (48,), (48,))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(residual, [x, weight, bias], grad))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_nan_and_infinity_stay_visible() -> None:
    x, grad, weight, bias = random((3, 20), (3, 20), (20,), (20,))
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    out, grad_x, *_ = values_and_gradients(residual, [x, weight, bias], grad)
    for values in (out, grad_x):
        assert values[0].isfinite().all()
        assert not values[1].isfinite().any()
        assert values[2].isnan().any()


def test_only_one_of_the_two_paths_is_used() -> None:
    x, weight, bias = (t.requires_grad_() for t in random((4, 8), (8,), (8,)))
    fork, normed = kernels.fork_and_norm(x, weight, bias, EPS)
    assert torch.equal(torch.autograd.grad(fork.sum(), x, retain_graph=True)[0], torch.ones(4, 8))
    (alone,) = torch.autograd.grad(normed.sum(), x)
    torch.testing.assert_close(alone, torch.autograd.grad(F.layer_norm(x, (8,), weight, bias, EPS).sum(), x)[0])


@pytest.mark.parametrize("operation", ["layer_norm", "layer_norm_backward", "gelu_backward", "column_sum"])
def test_opcheck(operation: str) -> None:
    x, grad, residual_grad, weight, bias, moments = random((2, 5, 20), (2, 5, 20), (2, 5, 20), (20,), (20,), (10, 2))
    arguments = {
        "layer_norm": (x, weight, bias, EPS),
        "layer_norm_backward": (grad, x, weight, moments.abs(), residual_grad),
        "gelu_backward": (grad, x, True),
        "column_sum": (x,),
    }[operation]
    torch.library.opcheck(getattr(torch.ops.focalnet, operation).default, arguments)


def test_compilers_tracers_and_function_transforms_get_a_graph_that_runs() -> None:
    x, weight, bias = random((4, 6), (6,), (6,))
    expected = residual(x, weight, bias)
    compiled = torch.compile(residual, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), expected)
    traced = make_fx(residual)(x, weight, bias)
    torch.testing.assert_close(traced(2 * x, weight, bias), residual(2 * x, weight, bias))
    grad = torch.func.grad(lambda x: residual(x, weight, bias).square().sum())(x)
    x.requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(residual(x, weight, bias).square().sum(), x)[0])
    batched = torch.func.vmap(residual, in_dims=(0, None, None))(x[:, None], weight, bias)
    torch.testing.assert_close(batched[:, 0], expected)


def test_without_kernels_everything_is_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> cpu.Library:
        raise InputError("not built")

    monkeypatch.setattr(cpu, "load", missing)
    x, grad, weight, bias = random((4, 6), (4, 6), (6,), (6,))
    ours = values_and_gradients(residual, [x, weight, bias], grad)
    eager = values_and_gradients(plain_residual, [x, weight, bias], grad)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))
    found, total, output = rowwise.gelu_gradient(grad, x, recompute=True)
    assert torch.equal(found, torch.ops.aten.gelu_backward(grad, x))
    assert torch.equal(total, found.sum(0))
    assert output is not None
    assert torch.equal(output, F.gelu(x))
