"""The CPU kernels against the reference: in float64 as the truth, in every instruction set this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet import create_model, kernels
from focalnet.errors import ConfigError, InputError
from focalnet.kernels import backend, cpu, focal_context, reference
from focalnet.kernels.cpu import library_file

try:
    LIBRARY: cpu.Library | None = cpu.load()
except InputError as error:
    LIBRARY, REASON = None, str(error)
else:
    REASON = ""
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=REASON)
VARIANTS = list(LIBRARY.variants) if LIBRARY else []

# Shapes of the published models' stages (shrunk), odd sizes, one pixel, maps smaller than the kernels.
SHAPES = [(2, 14, 14, 48), (1, 7, 9, 20), (1, 1, 1, 3), (2, 5, 4, 16), (1, 31, 18, 33)]
KERNEL_SETS = [(3, 5), (3, 5, 7), (3, 5, 7, 9), (5, 7, 9), (9, 11), (9, 11, 13), (11, 13, 15), (1,), ()]
Context = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], torch.Tensor]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs the native backend with the kernels of one instruction set."""
    library = cpu.Library(next(library_file.candidates()), request.param)
    monkeypatch.setattr(cpu, "load", lambda: library)
    with backend.use("native"):
        yield


def values_and_gradients(
    function: Context, shape: tuple[int, int, int, int], kernels: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> list[torch.Tensor]:
    """Output, and gradients of the projection that context and gates are slices of, and of every kernel."""
    generator = torch.Generator().manual_seed(seed)
    channels, levels = shape[3], len(kernels)
    projection = torch.randn(*shape[:3], 2 * channels + levels + 1, generator=generator).to(dtype).requires_grad_()
    weights = [torch.randn(channels, 1, k, k, generator=generator) / k for k in kernels]
    leaves = [weight.to(dtype).requires_grad_() for weight in weights]
    _, context, gates = projection.split((channels, channels, levels + 1), -1)
    out = function(context, gates, leaves)
    grad = torch.randn(shape, generator=generator).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, [projection, *leaves], grad)]


def worst(actual: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    return [float((a.double() - t).abs().max()) for a, t in zip(actual, truth, strict=True)]


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("kernels", KERNEL_SETS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_errors_are_at_most_twice_those_of_eager(kernels: tuple[int, ...], dtype: torch.dtype) -> None:
    """The numerical contract: against float64, at most twice the error of eager in the same dtype."""
    for shape in SHAPES:
        exact = values_and_gradients(reference.focal_context, shape, kernels, torch.float64)
        # The inputs are rounded alike on both sides; the truth is that of the unrounded ones.
        eager = worst(values_and_gradients(reference.focal_context, shape, kernels, dtype), exact)
        ours = worst(values_and_gradients(focal_context, shape, kernels, dtype), exact)
        unit = torch.finfo(dtype).eps * max(float(t.abs().max()) for t in exact)
        for mine, theirs in zip(ours, eager, strict=True):
            assert mine <= 2 * theirs + unit


@pytest.mark.usefixtures("variant")
def test_is_deterministic_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            runs.append(values_and_gradients(focal_context, (3, 12, 10, 40), (3, 5, 7), torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 40)),
    kernels=st.lists(st.sampled_from(cpu.KERNELS), max_size=4),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape: tuple[int, int, int, int], kernels: list[int], seed: int) -> None:
    exact = values_and_gradients(reference.focal_context, shape, tuple(kernels), torch.float64, seed)
    with backend.use("native"):
        ours = values_and_gradients(focal_context, shape, tuple(kernels), torch.float32, seed)
    for a, t in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=1e-4, atol=1e-5 * max(1.0, float(t.abs().max())))


def test_strides_and_layouts() -> None:
    context, gates = torch.randn(2, 16, 9, 7), torch.randn(2, 3, 9, 7)
    weights = [torch.randn(16, 1, 3, 3), torch.randn(16, 1, 5, 5)]
    nchw = (context.permute(0, 2, 3, 1), gates.permute(0, 2, 3, 1))  # channels are not dense here
    dense = tuple(t.contiguous() for t in nchw)
    torch.testing.assert_close(focal_context(*nchw, weights), focal_context(*dense, weights))
    expanded = torch.randn(1, 9, 7, 16).expand(2, 9, 7, 16)
    torch.testing.assert_close(
        focal_context(expanded, dense[1], weights), reference.focal_context(expanded, dense[1], weights)
    )


def test_nan_and_infinity_stay_visible() -> None:
    context, gates = torch.randn(1, 6, 6, 8), torch.randn(1, 6, 6, 2)
    context[0, 3, 3, 2] = torch.nan
    out = focal_context(context, gates, [torch.randn(8, 1, 3, 3)])
    assert out[..., 2].isnan().all()  # through the global level
    assert out[..., 3].isfinite().all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it itself
def test_opcheck() -> None:
    context = torch.randn(2, 6, 5, 20, requires_grad=True)
    gates = torch.randn(2, 6, 5, 3, requires_grad=True)
    weights = [torch.randn(20, 1, k, k, requires_grad=True) for k in (3, 5)]
    torch.library.opcheck(torch.ops.focalnet.focal_context.default, (context, gates, weights))


def test_in_a_model_compiled_and_under_autocast() -> None:
    torch.manual_seed(0)
    model, images = create_model("focalnet_nano", depths=(1, 1, 1)).train(), torch.randn(2, 3, 32, 32)

    def step(
        network: Callable[[torch.Tensor], torch.Tensor], name: backend.Backend, autocast: bool = True
    ) -> list[torch.Tensor]:
        model.zero_grad()
        with backend.use(name), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            network(images).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    truth, eager = step(model, "eager", autocast=False), step(model, "eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for gradients in (step(model, "native"), step(compiled, "native")):
        for mine, theirs, true in zip(gradients, eager, truth, strict=True):
            assert float((mine - true).norm()) <= 1.5 * float((theirs - true).norm()) + 1e-3 * float(true.norm())


def test_defaults_of_dtype_and_device_are_not_those_of_the_kernels() -> None:
    tensors = [
        torch.randn(shape) for shape in ((1, 7, 9, 20), (1, 7, 9, 3), (20, 1, 3, 3), (20, 1, 5, 5), (20,), (20,))
    ]
    context, gates, *levels, weight, bias = (t.requires_grad_() for t in tensors)

    def run() -> list[torch.Tensor]:
        out = kernels.layer_norm(focal_context(context, gates, levels), weight, bias, 1e-5)
        return [out, *torch.autograd.grad(out.square().sum(), tensors)]

    expected, before = run(), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            found = run()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_refusals() -> None:
    context, gates = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 2)
    weights = [torch.randn(8, 1, 3, 3)]
    with backend.use("native"):
        with pytest.raises(InputError, match=r"native takes float32 or bfloat16, got context torch\.float64"):
            focal_context(context.double(), gates.double(), weights)
        with pytest.raises(InputError, match="kernel sizes from 1 to 15"):
            focal_context(context, gates, [torch.randn(8, 1, 17, 17)])
        with pytest.raises(InputError, match="empty feature map"):
            focal_context(context[:0], gates[:0], weights)
    assert focal_context(context[:0], gates[:0], weights).shape == (0, 4, 4, 8)
    with pytest.raises(ConfigError, match='no backend "nativ"; did you mean "native"'), backend.use("nativ"):  # type: ignore[arg-type]
        pass


def test_environment_variable() -> None:
    code = "from focalnet.kernels import backend; print(backend.current())"
    environment = {**os.environ, "FOCALNET_BACKEND": "eager"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "eager"


def test_finds_the_openmp_runtime_of_pytorch_builds_that_hide_it() -> None:
    code = """
import ctypes
plain = ctypes.CDLL
ctypes.CDLL = lambda name, mode=0, **options: plain(name, ctypes.RTLD_LOCAL, **options)
import torch  # as its wheels for ARM are: what they bring is visible to their own libraries only
ctypes.CDLL = plain
from focalnet.kernels import cpu
print(cpu.load().variant)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert LIBRARY
    assert done.stdout.strip() == LIBRARY.variant


def test_flops_are_counted_as_those_of_the_plain_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    context, gates = torch.randn(2, 6, 5, 20, requires_grad=True), torch.randn(2, 6, 5, 3)
    weights = [torch.randn(20, 1, k, k) for k in (3, 5)]
    counted = {}
    for name in ("eager", "native"):
        with backend.use(name), FlopCounterMode(display=False) as counter:
            out = focal_context(context, gates, weights)
            counted[name] = counter.get_total_flops()
            out.sum().backward()
    assert counted["native"] == counted["eager"] == 2 * 2 * 6 * 5 * 20 * (9 + 25)
    assert counter.get_total_flops() == 4 * counted["native"]  # backward: forward again, and two gradients
