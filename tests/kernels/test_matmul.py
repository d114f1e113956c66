"""Linear layers through oneDNN against PyTorch's own, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from focalnet import kernels
from focalnet.kernels import backend, processor
from focalnet.kernels import matmul as implementation
from focalnet.kernels.fuse import fuse
from focalnet.kernels.matmul import PackedWeight, packed_convolution, product
from focalnet.nn import Mlp

needs_onednn = pytest.mark.skipif(not implementation.ONEDNN, reason="oneDNN products are called by hand on x86 only")

# What is set on each kind of processor. One without AVX-512 can be played anywhere, one with a slow MKL only with it:
# without, oneDNN adds up less exactly.
PROCESSORS = {
    "intel": {"MKL_IS_SLOW": False, "AVX512": True, "GELU_INSIDE": True},
    "amd": {"MKL_IS_SLOW": True, "AVX512": True, "GELU_INSIDE": False},
    "without_avx512": {"MKL_IS_SLOW": False, "AVX512": False, "GELU_INSIDE": False},
}
if not (implementation.ONEDNN and processor.has_avx512()):
    del PROCESSORS["amd"]


@pytest.fixture(params=PROCESSORS, autouse=True)
def every_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file as on each kind of processor."""
    for name, value in PROCESSORS[request.param].items():
        monkeypatch.setattr(implementation, name, value)


def plain_mlp(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    return F.linear(F.gelu(F.linear(x, *parameters[:2])), *parameters[2:])


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


# Without gradients GELU runs inside the product, before it is rounded to bfloat16.
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 6e-2}}
MLP = ((2, 5, 7, 8), (12, 8), (12,), (6, 12), (6,))


def values_and_gradients(function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    out = function(*inputs)
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def assert_within_twice_eager(
    ours: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], inputs: list[torch.Tensor]
) -> None:
    """The numerical contract of every kernel: against float64, at most twice the error of plain PyTorch."""
    truth = values_and_gradients(plain, [x.detach().double().requires_grad_() for x in inputs])
    eager = values_and_gradients(plain, inputs)
    for mine, theirs, true in zip(values_and_gradients(ours, inputs), eager, truth, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        floor = 4 * torch.finfo(mine.dtype).eps * float(true.abs().max())
        assert float((mine - true).abs().max()) <= max(2 * float((theirs - true).abs().max()), floor)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8), (2, 5, 7, 8), (0, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_pytorch(shape: tuple[int, ...], bias: bool) -> None:
    inputs = tensors(shape, (12, 8), (12,)) if bias else tensors(shape, (12, 8))
    if shape[0] == 0:
        assert kernels.linear(*inputs).shape == (0, 12)
    else:
        assert_within_twice_eager(kernels.linear, F.linear, inputs)


@pytest.mark.parametrize(("dtype", "many"), implementation._MANY_ROWS.items())
@pytest.mark.parametrize("more", [-1, 0, 476])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_many_rows(dtype: torch.dtype, many: int, more: int, bias: bool) -> None:
    shapes = ((many + more, 24), (40, 24), (40,))
    assert_within_twice_eager(kernels.linear, F.linear, tensors(*shapes[: 2 + bias], dtype=dtype))


@pytest.mark.parametrize(("dtype", "many"), implementation._MANY_ROWS.items())
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_only_wanted_gradients_are_made(dtype: torch.dtype, many: int, frozen: int) -> None:
    inputs = tensors((many, 24), (40, 24), (40,), dtype=dtype)
    inputs[frozen].requires_grad_(False)
    out = kernels.linear(*inputs)
    out.sum().backward()
    assert [x.grad is None for x in inputs] == [i == frozen for i in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlp_equals_pytorch(dtype: torch.dtype) -> None:
    assert_within_twice_eager(kernels.mlp, plain_mlp, tensors(*MLP, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_of_a_product_equals_pytorch(dtype: torch.dtype) -> None:
    inputs = tensors((2, 5, 8), (2, 5, 8), (12, 8), (12,), dtype=dtype)
    assert_within_twice_eager(
        kernels.linear_of_product,
        lambda a, b, w, c: F.linear(a * b, w, c),
        inputs,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlp_without_gradients(dtype: torch.dtype) -> None:
    inputs = [x.detach() for x in tensors((43, 59, 8), *MLP[1:], dtype=dtype)]
    with torch.no_grad():
        torch.testing.assert_close(kernels.mlp(*inputs), plain_mlp(*inputs), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", [False, True])
def test_mlp_plus_another_map(dtype: torch.dtype, recompute: bool) -> None:
    inputs = tensors((2, 5, 7, 6), *MLP, dtype=dtype)
    assert_within_twice_eager(
        lambda plus, *inputs: kernels.mlp(*inputs, residual=plus, recompute=recompute),
        lambda plus, *inputs: plus + plain_mlp(*inputs),
        inputs,
    )
    with torch.no_grad():
        torch.testing.assert_close(
            kernels.mlp(*inputs[1:], residual=inputs[0]), inputs[0] + plain_mlp(*inputs[1:]), **CLOSE[dtype]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plus_dtype", [torch.float32, torch.bfloat16])
def test_linear_plus_another_map(dtype: torch.dtype, plus_dtype: torch.dtype) -> None:
    inputs = [*tensors((2, 5, 12), dtype=plus_dtype), *tensors((2, 5, 8), (12, 8), (12,), dtype=dtype)]

    def recomputing(plus: torch.Tensor, x: torch.Tensor, *layer: torch.Tensor) -> torch.Tensor:
        return kernels.linear_of_product(x, torch.ones_like(x), *layer, residual=plus)

    def plain(plus: torch.Tensor, *layer: torch.Tensor) -> torch.Tensor:
        return plus + F.linear(*layer)

    for ours in (lambda plus, *layer: kernels.linear(*layer, residual=plus), recomputing):
        assert_within_twice_eager(ours, plain, inputs)
        with torch.no_grad():
            torch.testing.assert_close(ours(*inputs), plain(*inputs), **CLOSE[dtype])


def recomputing_mlp(*inputs: torch.Tensor) -> torch.Tensor:
    return kernels.mlp(*inputs, recompute=True)


@pytest.mark.parametrize("mlp", [kernels.mlp, recomputing_mlp])
def test_autocast_gives_what_it_gives_pytorch(mlp: Callable[..., torch.Tensor]) -> None:
    inputs = tensors(*MLP)
    with torch.autocast("cpu", torch.bfloat16):
        ours = values_and_gradients(mlp, inputs)
        theirs = values_and_gradients(plain_mlp, inputs)
        with torch.no_grad():
            torch.testing.assert_close(kernels.mlp(*inputs), theirs[0], **CLOSE[torch.bfloat16])
    assert ours[0].dtype == torch.bfloat16
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE[torch.bfloat16])


def test_float16_autocast_without_gradients() -> None:
    inputs = tensors(*MLP)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(kernels.mlp(*inputs), plain_mlp(*inputs))


def test_an_mlp_that_recomputes_keeps_less() -> None:
    def kept(mlp: Callable[..., torch.Tensor]) -> int:
        inputs, sizes = tensors((1000, 8), *MLP[1:]), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            mlp(*inputs)
        return sum(sizes)

    assert kept(kernels.mlp) - kept(recomputing_mlp) >= 12_000


@needs_onednn
@pytest.mark.parametrize("grad", [False, True])
def test_flops_are_counted(grad: bool) -> None:
    inputs = tensors(*MLP)
    counts = []
    for function in (kernels.mlp, plain_mlp):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            out = function(*inputs)
            if grad:
                out.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@needs_onednn
def test_flops_of_packed_weights_are_counted() -> None:
    x, weight, bias, plus = (t.detach() for t in tensors((2, 3, 5, 8), (12, 8), (12,), (2, 3, 5, 12)))
    packed = PackedWeight(weight)
    for more in ({}, {"residual": plus}):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            product(x, packed.to_multiply(x), bias, **more)
        assert counter.get_total_flops() == 2 * 30 * 8 * 12


@needs_onednn
def test_backend_eager_is_pytorch_alone() -> None:
    x, weight = tensors((3, 8), (12, 8))

    def goes_to_onednn() -> bool:
        with torch.profiler.profile(acc_events=True) as profile:
            kernels.linear(x, weight)
        return any("mkldnn" in event.key for event in profile.key_averages())

    assert goes_to_onednn()  # with gradients
    with torch.no_grad():
        assert goes_to_onednn()
        with backend.use("eager"):
            assert not goes_to_onednn()
    with backend.use("eager"):
        assert not goes_to_onednn()


def test_compiles_to_one_graph() -> None:
    mlp = fuse(Mlp(8, 12))
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 3, 8)
    torch.testing.assert_close(compiled(x), mlp(x))


@needs_onednn
@pytest.mark.parametrize("dtype", implementation.DTYPES)
def test_the_compiler_leaves_products_to_onednn_and_exporters_see_plain_ones(dtype: torch.dtype) -> None:
    mlp, x, graphs = fuse(Mlp(8, 12)).to(dtype), torch.randn(2, 3, 3, 8, dtype=dtype), []

    def note(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph.code)
        return graph.forward

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(mlp, fullgraph=True, backend=note)(x), mlp(x))
        (code,) = graphs
        assert "focalnet.linear" in code
        exported = torch.export.export(mlp, (x,))
    assert {node.target.namespace for node in exported.graph.nodes if node.op == "call_function"} == {"aten"}


def test_function_transforms_get_pytorchs_own() -> None:
    x, *layer = tensors((5, 8), (12, 8), (12,))
    found = torch.func.grad(lambda x: kernels.linear(x, *layer).square().sum())(x)
    torch.testing.assert_close(found, torch.autograd.grad(F.linear(x, *layer).square().sum(), x)[0])


def test_hooks_and_adapters_inside_an_mlp_are_called() -> None:
    mlp, seen = fuse(Mlp(8, 12)), []
    x = torch.randn(2, 8)
    expected = mlp(x)
    handle = mlp.fc1.register_forward_hook(lambda *_: seen.append("hook"))
    torch.testing.assert_close(mlp(x), expected)
    handle.remove()

    class Adapter(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.append("adapter")
            return super().forward(input) + 1

    mlp.fc2.__class__ = Adapter
    torch.testing.assert_close(mlp(x), expected + 1)
    assert seen == ["hook", "adapter"]


def test_dropout_inside_an_mlp_acts_in_training() -> None:
    torch.manual_seed(0)
    mlp, x = fuse(Mlp(64, 64, drop=0.5)), torch.ones(1, 64)
    assert (mlp(x) == 0).any()
    assert not (mlp.eval()(x) == 0).any()


@needs_onednn
@pytest.mark.parametrize("dtype", implementation.DTYPES)
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 5, 8), (1, 1, 1, 8)])
def test_packed_weights_give_the_same(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = (t.detach() for t in tensors(shape, (12, 8), (12,), dtype=dtype))
    packed = PackedWeight(weight)
    for scale in (1, 3):
        found = product(scale * x, packed.to_multiply(x), bias)
        torch.testing.assert_close(found, F.linear(scale * x, weight, bias), **CLOSE[dtype])


@needs_onednn
@given(shape=st.tuples(*[st.integers(1, 4)] * 4), columns=st.integers(1, 20), order=st.permutations(range(4)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_weights_with_maps_of_any_layout(shape: tuple[int, ...], columns: int, order: list[int]) -> None:
    def laid_out(shape: tuple[int, ...]) -> torch.Tensor:
        (values,) = tensors(tuple(shape[i] for i in order))
        return values.detach().permute(*map(order.index, range(4)))

    x, residual = laid_out(shape), laid_out((*shape[:3], columns))
    weight, bias = (t.detach() for t in tensors((columns, shape[-1]), (columns,)))
    packed = PackedWeight(weight)
    expected, before = F.linear(x, weight, bias), residual.clone()
    torch.testing.assert_close(product(x, packed.to_multiply(x), bias), expected, **CLOSE[x.dtype])
    added = product(x, packed.to_multiply(x), bias, residual=residual)
    torch.testing.assert_close(added, residual + expected, **CLOSE[x.dtype])
    assert torch.equal(residual, before)
    activated = product(x, packed.to_multiply(x), bias, "gelu")
    torch.testing.assert_close(activated, F.gelu(expected), **CLOSE[x.dtype])


@needs_onednn
@pytest.mark.parametrize("dtype", implementation.DTYPES)
@pytest.mark.parametrize(("stride", "padding"), [(4, 0), (2, 1)])
def test_packed_convolutions(stride: int, padding: int, dtype: torch.dtype) -> None:
    x, weight, bias = (t.detach() for t in tensors((2, 3, 12, 20), (8, 3, 4, 4), (8,), dtype=dtype))
    x = x.contiguous(memory_format=torch.channels_last)
    packed = PackedWeight(weight, stride=stride, padding=padding)
    counts = []
    for function in (
        lambda: packed_convolution(x, packed, bias, stride=stride, padding=padding),
        lambda: F.conv2d(x, weight, bias, stride, padding),
    ):
        with FlopCounterMode(display=False) as counter:
            out = function()
        counts.append(counter.get_total_flops())
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, F.conv2d(x, weight, bias, stride, padding), **CLOSE[dtype])
    assert counts[0] == counts[1] > 0
