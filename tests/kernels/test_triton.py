"""The GPU kernels against the reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from focalnet import create_model
from focalnet.errors import InputError
from focalnet.kernels import backend, focal_context, reference, triton

pytest.importorskip("triton", reason="the GPU kernels need the package triton")
tiling = pytest.importorskip("focalnet.kernels.triton.tiling")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a GPU: the interpreter cannot be compiled")
bf16 = pytest.param(
    torch.bfloat16,
    id="bf16",
    marks=pytest.mark.skipif(not CUDA, reason="the interpreter truncates float32 to bfloat16, GPUs round to nearest"),
)
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.float16, id="fp16"), bf16]
KERNEL_SETS = [(3, 5), (3, 5, 7), (3, 5, 7, 9), (5, 7, 9), (9, 11), (9, 11, 13), (11, 13, 15), (1,), ()]
# Odd sizes, one pixel, maps smaller than the kernels, channels that fill no block; a GPU also gets many blocks.
SHAPES = [(2, 5, 7, 5), (1, 1, 1, 3), (2, 31, 18, 40), (3, 14, 14, 384), (1, 57, 61, 96)] if CUDA else [(1, 4, 5, 5)]
Context = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], torch.Tensor]


@pytest.fixture(params=["levels", "plane"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the triton backend with one kernel a level, or with one for the whole plane."""
    monkeypatch.setattr(tiling, "PLANE_PIXELS", 0 if request.param == "levels" else 2**30)
    if not CUDA:  # the interpreter's time goes with the length of the unrolled code
        monkeypatch.setattr(tiling, "WIDTHS", (1,))
    with backend.use("triton"):
        yield request.param


def values_and_gradients(
    function: Context, shape: tuple[int, ...], kernels: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> list[torch.Tensor]:
    """Output, and gradients of the projection that context and gates are slices of, and of every kernel."""
    generator = torch.Generator().manual_seed(seed)
    channels, levels = shape[3], len(kernels)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(DEVICE, dtype)

    projection = random(*shape[:3], 2 * channels + levels + 1).requires_grad_()
    leaves = [(random(channels, 1, k, k) / k).requires_grad_() for k in kernels]
    _, context, gates = projection.split((channels, channels, levels + 1), -1)
    out = function(context, gates, leaves)
    return [out.detach(), *torch.autograd.grad(out, [projection, *leaves], random(*shape))]


def worst(actual: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    return [float((a.double() - t).abs().max()) for a, t in zip(actual, truth, strict=True)]


@pytest.mark.parametrize("kernels", KERNEL_SETS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_at_most_twice_those_of_eager(variant: str, kernels: tuple[int, ...], dtype: torch.dtype) -> None:
    """The numerical contract: against float64, at most twice the error of eager in the same dtype."""
    if not CUDA and sum(kernels) > 8 and (variant == "levels") != (dtype == torch.float32):
        pytest.skip("the interpreter takes seconds: larger sets with fp32 one by one, with fp16 as a plane")
    for shape in SHAPES:
        exact = values_and_gradients(reference.focal_context, shape, kernels, torch.float64)
        eager = worst(values_and_gradients(reference.focal_context, shape, kernels, dtype), exact)
        ours = worst(values_and_gradients(focal_context, shape, kernels, dtype), exact)
        unit = torch.finfo(dtype).eps * max(float(t.abs().max()) for t in exact)
        for mine, theirs in zip(ours, eager, strict=True):
            assert mine <= 2 * theirs + unit


@settings(max_examples=60 if CUDA else 3)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 12), st.integers(1, 40)),
    kernels=st.lists(st.sampled_from([k for k in triton.KERNELS if CUDA or k < 6]), max_size=3 if CUDA else 2),
    plane=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape: tuple[int, ...], kernels: list[int], plane: bool, seed: int) -> None:
    """With the strips and blocks of real runs."""
    exact = values_and_gradients(reference.focal_context, shape, tuple(kernels), torch.float64, seed)
    with pytest.MonkeyPatch.context() as patch, backend.use("triton"):
        patch.setattr(tiling, "PLANE_PIXELS", 2**30 if plane else 0)
        ours = values_and_gradients(focal_context, shape, tuple(kernels), torch.float32, seed)
    for a, t in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=1e-4, atol=1e-5 * max(1.0, float(t.abs().max())))


def test_several_blocks_images_and_chunks(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that meet from many blocks: the mean, the kernels' gradient, the gates'."""
    monkeypatch.setattr(tiling, "WIDTHS", (2,))
    monkeypatch.setattr(tiling, "LANE", 1)
    monkeypatch.setattr(tiling, "PROGRAMS", 4)
    shape, kernels = (2, 5, 7, 34), (3,)
    assert tiling.convolution_tile(5, 7, 34).blocks(5, 7) > 1
    exact = values_and_gradients(reference.focal_context, shape, kernels, torch.float64)
    ours = values_and_gradients(focal_context, shape, kernels, torch.float32)
    assert max(worst(ours, exact)) < 5e-5
    again = values_and_gradients(focal_context, shape, kernels, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.usefixtures("variant")
def test_strides_and_layouts() -> None:
    context, gates = torch.randn(2, 16, 5, 6, device=DEVICE), torch.randn(2, 2, 5, 6, device=DEVICE)
    weights = [torch.randn(16, 1, 3, 3, device=DEVICE)]
    nchw = (context.permute(0, 2, 3, 1), gates.permute(0, 2, 3, 1))  # channels are not dense here
    window = (torch.randn(3, 7, 9, 20, device=DEVICE)[1:, 1:6, 2:8, 3:19], nchw[1])  # rows do not follow each other
    expanded = (torch.randn(1, 5, 6, 16, device=DEVICE).expand(2, 5, 6, 16), nchw[1])
    for given_context, given_gates in (nchw, window, expanded):
        torch.testing.assert_close(
            focal_context(given_context, given_gates, weights),
            reference.focal_context(given_context, given_gates, weights),
        )


def test_nan_and_infinity_stay_visible(variant: str) -> None:
    context, gates = torch.randn(1, 6, 6, 8, device=DEVICE), torch.randn(1, 6, 6, 2, device=DEVICE)
    context[0, 3, 3, 2] = torch.nan
    out = focal_context(context, gates, [torch.randn(8, 1, 3, 3, device=DEVICE)])
    assert out[..., 2].isnan().all()  # through the global level
    assert out[..., 3].isfinite().all()


@pytest.mark.usefixtures("variant")
def test_kernels_may_stay_in_single_precision() -> None:
    """As under autocast: maps in half precision, parameters and their gradients in single."""
    context = torch.randn(2, 5, 6, 8, device=DEVICE).half()
    gates, weight = torch.randn(2, 5, 6, 2, device=DEVICE).half(), torch.randn(8, 1, 3, 3, device=DEVICE)
    weight.requires_grad_()
    focal_context(context, gates, [weight]).float().square().sum().backward()
    mine, weight.grad = weight.grad, None
    reference.focal_context(context.float(), gates.float(), [weight]).square().sum().backward()
    assert mine is not None
    assert weight.grad is not None
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, weight.grad, rtol=0.02, atol=0.02 * float(weight.grad.abs().max()))


@pytest.mark.usefixtures("variant")
def test_checkpointing_gives_the_same_gradients() -> None:
    def checkpointed(context: torch.Tensor, gates: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = checkpoint(focal_context, context, gates, weights, use_reentrant=False)
        return out

    plain = values_and_gradients(focal_context, (2, 4, 5, 6), (3,), torch.float32)
    again = values_and_gradients(checkpointed, (2, 4, 5, 6), (3,), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    context, gates = torch.randn(1, 4, 4, 8, device=DEVICE), torch.randn(1, 4, 4, 2, device=DEVICE)
    weights = [torch.randn(8, 1, 3, 3, device=DEVICE)]
    with backend.use("triton"):
        with pytest.raises(InputError, match=r"triton takes float32, bfloat16 or float16, got context torch\.float64"):
            focal_context(context.double(), gates.double(), weights)
        with pytest.raises(InputError, match="kernel sizes from 1 to 15"):
            focal_context(context, gates, [torch.randn(8, 1, 17, 17, device=DEVICE)])
        with pytest.raises(InputError, match="empty feature map"):
            focal_context(context[:0], gates[:0], weights)
        with pytest.raises(InputError, match="kernels are on"):
            focal_context(context, gates, [weights[0].to("meta")])
    with pytest.raises(InputError, match="32 bits"):
        raise InputError(str(triton.why_not(*_huge())))
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError, match="need the package triton"):
        triton.load(torch.device("cuda"))
    assert backend.available()["triton"].startswith("no: the GPU kernels need the package triton")


def _huge() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A map of 2**31 numbers that takes the memory of one."""
    context = torch.zeros(1).expand(1, 2**11, 2**11, 2**9)
    return context, torch.zeros(1).expand(1, 2**11, 2**11, 2), [torch.zeros(2**9, 1, 3, 3)]


@pytest.mark.skipif(CUDA, reason="on a GPU auto takes these kernels")
def test_the_interpreter_runs_only_when_asked_for() -> None:
    context, gates = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 2)
    called = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "focal_context", lambda *_: called.append(1))
        focal_context(context, gates, [torch.randn(8, 1, 3, 3)])
    assert not called


def test_flops_are_counted_as_those_of_the_plain_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    context, gates = torch.randn(2, 4, 5, 20, device=DEVICE), torch.randn(2, 4, 5, 2, device=DEVICE)
    weights = [torch.randn(20, 1, 3, 3, device=DEVICE)]
    counted = {}
    with backend.use("triton"):
        focal_context(context, gates, weights)  # a counter knows what was loaded before it
    for name in ("eager", "triton"):
        with backend.use(name), FlopCounterMode(display=False) as counter:
            focal_context(context, gates, weights)
            counted[name] = counter.get_total_flops()
    assert counted["triton"] == counted["eager"] == 2 * 2 * 4 * 5 * 20 * 9


COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
from compile_only import compiled, launches, resources
import torch
done = set()
for side in (17, 4):  # one kernel a level; one for the whole plane
    for forms in ((), ("rank-1", "padded")):
        for kernel, arguments, constants in launches((1, side, side, 16), [1, 3], torch.bfloat16, forms):
            strides = tuple(x for x in arguments if not isinstance(x, torch.Tensor))
            if (kernel.__name__, str(constants), strides) not in done:
                done.add((kernel.__name__, str(constants), strides))
                binary = compiled(kernel, arguments, constants, 90).asm["cubin"]
                print(kernel.__name__, resources(binary)["stack"])
"""


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """The interpreter forgives what the compiler does not; compiling needs no GPU."""
    folder = Path(__file__).parents[2] / "benchmarks" / "gpu"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stack = [line.split() for line in done.stdout.splitlines()]
    assert len({name for name, _ in stack}) == 11  # 3 forward, 6 backward, 2 of the rank-1 form
    assert {size for _, size in stack} == {"0"}  # no registers were spilled


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it itself
@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("gates", [2, 1])
def test_opcheck(gates: int) -> None:
    """With the global level, and without."""
    context = torch.randn(2, 3, 2, 5, device=DEVICE, requires_grad=True)
    gate = torch.randn(2, 3, 2, gates, device=DEVICE, requires_grad=True)
    taps = torch.randn(9, 5, device=DEVICE, requires_grad=True)
    triton.load(torch.device(DEVICE), torch.float32)
    arguments = (context, gate, taps, [3], True, True)
    torch.library.opcheck(torch.ops.focalnet.focal_context_triton.default, arguments)


@needs_gpu
@pytest.mark.usefixtures("variant")
def test_in_a_model_compiled_and_under_autocast() -> None:
    torch.manual_seed(0)
    model = create_model("focalnet_nano", depths=(1, 1, 1)).train().to(DEVICE)
    images = torch.randn(2, 3, 64, 64, device=DEVICE)

    def step(network: Callable[[torch.Tensor], torch.Tensor], name: backend.Backend) -> list[torch.Tensor]:
        model.zero_grad()
        with backend.use(name), torch.autocast(DEVICE, torch.bfloat16):
            network(images).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    truth = step(model, "eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    for gradients in (step(model, "triton"), step(compiled, "triton")):
        for mine, theirs in zip(gradients, truth, strict=True):
            assert float((mine - theirs).norm()) <= 0.03 * float(theirs.norm()) + 1e-6


@needs_gpu
def test_more_numbers_than_32_bits_count() -> None:
    """A large batch of detection: the last image's addresses need 64 bits."""
    shape, kernels = (380, 200, 304, 96), [3]
    projection = torch.randn(*shape[:3], shape[3] + 2, device=DEVICE, dtype=torch.bfloat16)
    context, gates = projection.split((shape[3], 2), -1)
    weights = [torch.randn(shape[3], 1, k, k, device=DEVICE, dtype=torch.bfloat16) for k in kernels]
    assert context.numel() > 2**31
    last = focal_context(context, gates, weights)[-1:]
    truth = reference.focal_context(context[-1:], gates[-1:], weights)
    torch.testing.assert_close(last, truth, rtol=0.05, atol=0.1)
