"""The forms of the GPU kernels that are off by default: right in every combination with a module's options."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from focalnet.errors import ConfigError, InputError
from focalnet.kernels import backend, modulator, triton
from focalnet.kernels.fuse import fuse
from focalnet.kernels.fused import FusedFocalModulation
from focalnet.kernels.triton import forms, proof
from focalnet.nn import FocalModulation

pytest.importorskip("triton", reason="the GPU kernels need the package triton")
tiling = pytest.importorskip("focalnet.kernels.triton.tiling")
rank_one = pytest.importorskip("focalnet.kernels.triton.rank_one")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
interpreted = pytest.mark.skipif(CUDA, reason="simulates what a GPU does")
EVERY = [(forms.RANK_ONE,), (forms.PADDED,), forms.FORMS]
OPTIONS = [dict(zip(("post_norm", "normalize"), values, strict=True)) for values in itertools.product((0, 1), repeat=2)]


@pytest.fixture(autouse=True)
def _by_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tiles, which the interpreter runs faster."""
    if not CUDA:
        monkeypatch.setattr(tiling, "WIDTHS", (1,))
        monkeypatch.setattr(rank_one, "STEPS", 2)
    with backend.use("triton"):
        yield


@pytest.fixture(params=["levels", "plane"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One kernel a level, or one for the whole plane."""
    monkeypatch.setattr(tiling, "PLANE_PIXELS", 0 if request.param == "levels" else 2**30)
    return str(request.param)


def modulation(levels: int = 2, **options: Any) -> FocalModulation:
    torch.manual_seed(0)
    module = FusedFocalModulation(6, levels, 1, **options)
    return module.to(DEVICE)


def values_and_gradients(module: nn.Module, x: torch.Tensor, *, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, and gradients of the input and all parameters."""
    module = module.to(dtype)
    leaf = x.to(dtype).requires_grad_()
    out = module(leaf)
    grad = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).cos()
    return [out.detach(), *torch.autograd.grad(out, [leaf, *module.parameters()], grad.to(dtype))]


def assert_at_most_twice_the_error_of_eager(
    run: Callable[[torch.dtype], list[torch.Tensor]], dtype: torch.dtype
) -> None:
    """Against float64, as for the operation itself."""
    ours = run(dtype)
    with backend.use("eager"):
        eager, exact = run(dtype), run(torch.float64)
    unit = torch.finfo(dtype).eps * max(float(t.abs().max()) for t in exact)
    for mine, theirs, true in zip(ours, eager, exact, strict=True):
        assert float((mine.double() - true).abs().max()) <= 2 * float((theirs.double() - true).abs().max()) + unit


@pytest.mark.parametrize("chosen", EVERY, ids="+".join)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_values_and_gradients(chosen: tuple[str, ...], options: dict[str, Any], recompute: bool, variant: str) -> None:
    if variant == "levels" and chosen != forms.FORMS:
        pytest.skip("the interpreter takes seconds: one form alone as a plane, which is one kernel")
    module = modulation(1, **options)
    module.recompute = recompute
    x = torch.randn(2, 3, 5, 6, device=DEVICE)
    with forms.use(*chosen):
        assert_at_most_twice_the_error_of_eager(lambda d: values_and_gradients(module, x, dtype=d), torch.float32)


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.usefixtures("variant")
def test_half_precision_and_any_number_of_levels(levels: int) -> None:
    module = modulation(levels)
    x = torch.randn(2, 3, 4, 6, device=DEVICE)
    with forms.use(*forms.FORMS):
        assert_at_most_twice_the_error_of_eager(lambda d: values_and_gradients(module, x, dtype=d), torch.float16)


def test_the_forms_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only then: otherwise the tests above would compare the usual form with itself."""
    widths, products = [], []
    levels, product = triton.levels, triton.rank_one_product

    def note_levels(context: torch.Tensor, gates: torch.Tensor, weights: Any) -> Any:
        widths.append((gates.shape[3], context.stride(2)))
        return levels(context, gates, weights)

    def note_product(*arguments: torch.Tensor) -> torch.Tensor:
        products.append(1)
        return product(*arguments)

    monkeypatch.setattr(triton, "levels", note_levels)
    monkeypatch.setattr(triton, "rank_one_product", note_product)
    x, module = torch.randn(1, 3, 3, 6, device=DEVICE), modulation()
    for chosen in ((), *EVERY):
        with forms.use(*chosen), torch.no_grad():
            module(x)
    assert widths == [(3, 15), (2, 15), (3, 16), (2, 16)]
    assert len(products) == 2


def test_the_product_alone() -> None:
    """Blocks that pixels and channels do not fill, several blocks, and every layout."""
    B, H, W, C = 2, 7, 9, 35
    torch.manual_seed(0)
    projection = torch.randn(B, H, W, 2 * C + 3, device=DEVICE)
    layouts = [projection[..., :C], torch.randn(B, C, H, W, device=DEVICE).permute(0, 2, 3, 1)]
    gate, v = projection[..., -1:], torch.randn(B, C, device=DEVICE)
    grad = torch.randn(B, H, W, C, device=DEVICE)

    def differentiated(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> list[torch.Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    for query, factor in (layouts, layouts[::-1]):
        ours = differentiated(triton.rank_one_product, query, factor, gate, v)
        exact = differentiated(rank_one._by_reference, *(t.double() for t in (query, factor, gate, v)))
        for mine, true in zip(ours, exact, strict=True):
            torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_in_models_of_other_libraries(name: str) -> None:
    if name == "timm":
        module: nn.Module = pytest.importorskip("timm.models.focalnet").FocalModulation(6, 1, 2)
        x = torch.randn(1, 6, 3, 4, device=DEVICE)
    else:
        focalnet = pytest.importorskip("transformers.models.focalnet.modeling_focalnet")
        config = pytest.importorskip("transformers").FocalNetConfig(focal_levels=[2], focal_windows=[1])
        module, x = focalnet.FocalNetModulation(config, index=0, dim=6), torch.randn(1, 3, 4, 6, device=DEVICE)
    module = fuse(module.to(DEVICE))
    for chosen in EVERY:
        with forms.use(*chosen):
            assert_at_most_twice_the_error_of_eager(lambda d: values_and_gradients(module, x, dtype=d), torch.float32)


def test_compiled_and_second_derivatives() -> None:
    module = modulation()
    x = torch.randn(1, 3, 4, 6, device=DEVICE)

    def penalty(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf).square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), leaf)
        return second

    with forms.use(*forms.FORMS):
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        plain = values_and_gradients(module, x, dtype=torch.float32)
        torch.testing.assert_close(values_and_gradients(compiled, x, dtype=torch.float32), plain)
        torch._dynamo.reset()
        second = penalty(module)
    with backend.use("eager"):
        torch.testing.assert_close(second, penalty(module), rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level(), pytest.raises(InputError, match="no forward-mode derivative"):
        torch.ops.focalnet.rank_one_product_triton(x, x, x[..., :1], x[:, 0, 0], True)


@interpreted
@pytest.mark.parametrize("failing", ["product_kernel", "product_gradient_kernel"])
def test_a_kernel_that_does_not_start_is_replaced(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = rank_one._launch

    def fail(kernel: Any, *arguments: Any, **constants: Any) -> None:
        if kernel.__name__ == failing:
            raise RuntimeError("out of resource: registers")
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(rank_one, "_launch", fail)
    module, x = modulation(), torch.randn(1, 3, 4, 6)
    proof.warn.cache_clear()
    try:
        with forms.use(forms.RANK_ONE):
            with pytest.raises(RuntimeError, match="out of resource"):  # the backend was requested by name
                values_and_gradients(module, x, dtype=torch.float32)
            monkeypatch.setattr(modulator, "_takes_rank_one", lambda *_: True)  # as auto decides on a GPU
            with backend.use("auto"), pytest.warns(RuntimeWarning, match="rank-1 global level in float32 .*registers"):
                ours = values_and_gradients(module, x, dtype=torch.float32)
            monkeypatch.undo()
            with pytest.raises(InputError, match=r"cannot run the rank-1 global level: .*out of resource"):
                module(x)
        with backend.use("eager"):
            torch.testing.assert_close(ours, values_and_gradients(module, x, dtype=torch.float32), rtol=1e-4, atol=1e-5)
    finally:
        proof._denied.clear()
        proof.warn.cache_clear()


@interpreted
def test_the_check_accepts_these_kernels_and_finds_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_SHAPES", ((1, 3, 4, 5),))
    assert proof.disagreement(torch.device("cpu"), torch.float32, triton.RANK_ONE) is None
    backward = rank_one.product_backward

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        *others, grad_v = backward(*arguments)
        return *others, 1.01 * grad_v

    monkeypatch.setattr(rank_one, "product_backward", wrong)
    found = str(proof.disagreement(torch.device("cpu"), torch.float32, triton.RANK_ONE))
    assert found.startswith("the gradient of")


def test_names() -> None:
    with (
        pytest.raises(ConfigError, match='no form "rank1" of the GPU kernels; did you mean "rank-1"'),
        forms.use("rank1"),
    ):
        pass
    assert not forms.chosen(forms.RANK_ONE)
