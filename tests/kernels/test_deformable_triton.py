"""Deformable attention by the GPU kernels: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kernels.deformable import Inputs, differentiated, example, worst
from torch import Tensor
from torch.autograd import forward_ad

from focalnet.errors import InputError
from focalnet.kernels import backend, deformable_attention, triton
from focalnet.kernels.triton import proof
from focalnet.ops.deformable import by_sampling, multi_scale_deformable_attention

pytest.importorskip("triton", reason="the GPU kernels need the package triton")
op = pytest.importorskip("focalnet.kernels.triton.deformable")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
interpreted = pytest.mark.skipif(CUDA, reason="simulates what a GPU does")


@pytest.fixture(autouse=True)
def _by_name() -> Iterator[None]:
    with backend.use("triton"):
        yield


def on_device(inputs: Inputs) -> Inputs:
    values, shapes, locations, weights = inputs
    return values.to(DEVICE), shapes, locations.to(DEVICE), weights.to(DEVICE)


@pytest.mark.parametrize("channels", [1, 5, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_errors_are_at_most_twice_those_of_eager(channels: int, dtype: torch.dtype) -> None:
    """The numerical contract: against float64, at most twice the error of eager in the same dtype."""
    inputs = on_device(example(queries=5, channels=channels, dtype=dtype))
    truth = differentiated(by_sampling, inputs, torch.float64)
    eager = worst(differentiated(multi_scale_deformable_attention, inputs), truth)
    ours = worst(differentiated(deformable_attention, inputs), truth)
    for mine, theirs, true in zip(ours, eager, truth, strict=True):
        assert mine <= 2 * theirs + torch.finfo(torch.float32).eps * float(true.abs().max())


@pytest.mark.parametrize("seed", range(4))
def test_odd_shapes(seed: int) -> None:
    shapes = [[(1, 1)], [(3, 1), (1, 4)], [(2, 2)] * 8, [(5, 3), (4, 4), (2, 1)]][seed]
    inputs = on_device(example(shapes, 1 + seed % 2, 3 + seed, 1 + seed % 3, 1 + seed // 2, 3 * seed + 1, seed))
    truth = differentiated(by_sampling, inputs, torch.float64)
    for a, t in zip(differentiated(deformable_attention, inputs), truth, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=1e-4, atol=1e-5 * max(1.0, float(t.abs().max())))


def test_sums_are_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of other sizes add to the gradient of the values in another order: equal bits all the same."""
    inputs = on_device(example([(2, 2)], queries=4, channels=8))
    runs = []
    for numbers in (32, 1024):
        monkeypatch.setattr(op, "_NUMBERS", numbers)
        runs.append(differentiated(deformable_attention, inputs))
    assert all(torch.equal(run[1], runs[0][1]) for run in runs[1:])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_any_size(scale: float) -> None:
    values, shapes, locations, weights = on_device(example([(2, 3)], 1, 4, 1, 2, 3))
    leaf = values.requires_grad_()
    for compute in (deformable_attention, by_sampling):
        out = compute(leaf, shapes, locations, weights)
        (gradient,) = torch.autograd.grad(out, leaf, torch.full_like(out, scale))
        if compute is deformable_attention:
            mine = gradient
    torch.testing.assert_close(mine, gradient, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, in the interpreter
def test_edges_and_what_is_no_number() -> None:
    places = [0.25, 0.0, -0.25, -0.3, 1.0, 1.25, 1.3, 1e30, torch.inf, -torch.inf, torch.nan]
    locations = torch.tensor([[x, 0.5] for x in places], device=DEVICE)[None, :, None, None, None].requires_grad_()
    weights = torch.ones(locations.shape[:-1], device=DEVICE)
    ones = torch.ones(1, 4, 1, 5, device=DEVICE, requires_grad=True)
    out = deformable_attention(ones, [(2, 2)], locations, weights)
    expected = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.5, *[0.0] * 5, torch.nan], device=DEVICE)
    torch.testing.assert_close(out[0, :, 0], expected, equal_nan=True)
    slope, grad_locations = torch.autograd.grad(out.sum(), (ones, locations))
    assert grad_locations[0, :, 0, 0, 0, 0].tolist()[:-1] == [0.0, 10.0, 10.0, 0.0, -10.0, *[0.0] * 5]
    assert grad_locations[0, -1].isnan().any()
    torch.testing.assert_close(slope.sum(), torch.tensor(10.0, device=DEVICE))
    up = torch.ones_like(out)
    up[0, 0, 0] = torch.inf
    (slope,) = torch.autograd.grad(deformable_attention(ones, [(2, 2)], locations, weights), ones, up)
    assert slope.isnan().all()  # never a finite number that is wrong


def test_strides() -> None:
    values, shapes, locations, weights = on_device(example(queries=4, channels=5))
    truth = differentiated(deformable_attention, (values, shapes, locations, weights))
    heads_first = values.transpose(1, 2).contiguous().transpose(1, 2)
    points_first = locations.permute(4, 5, 0, 1, 2, 3).contiguous().permute(2, 3, 4, 5, 0, 1)
    found = differentiated(deformable_attention, (heads_first, shapes, points_first, weights))
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))


def test_refusals() -> None:
    values, shapes, locations, weights = on_device(example())
    with pytest.raises(InputError, match=r"triton takes float32, bfloat16 or float16, got \['torch\.float64'"):
        deformable_attention(values.double(), shapes, locations, weights)
    with pytest.raises(InputError, match="at least one cell and one query"):
        deformable_attention(values, shapes, locations[:, :0], weights[:, :0])
    with pytest.raises(InputError, match="at most 8 levels and 256 channels"):
        deformable_attention(*on_device(example([(1, 1)] * 9)))
    with pytest.raises(InputError, match="at most 8 levels and 256 channels"):
        deformable_attention(*on_device(example(channels=257)))
    assert "experimental" in backend.available()["triton, deformable attention"]
    many = torch.zeros(1).expand(2**16, 2**12, 8, 1, 1)
    reason = triton.why_not_deformable(torch.zeros(1).expand(2**16, 1, 8, 1), [(1, 1)], many[..., None], many)
    assert "32 bits" in str(reason)


@pytest.mark.skipif(CUDA, reason="on a GPU auto takes these kernels")
def test_the_interpreter_runs_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_launch", None)
    with backend.use("auto"):
        deformable_attention(*example())


@interpreted
def test_transforms_take_the_plain_operations_and_second_derivatives_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, shapes, locations, weights = example(queries=2)

    def penalty(compute: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (values, locations, weights)]
        out = compute(leaves[0], shapes, leaves[1], leaves[2])
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for mine, theirs in zip(penalty(deformable_attention), penalty(multi_scale_deformable_attention), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(op, "_launch", None)
    torch.func.jvp(lambda x: deformable_attention(x, shapes, locations, weights), (values,), (values.cos(),))
    with forward_ad.dual_level(), pytest.raises(InputError, match="no forward-mode derivative"):
        torch.ops.focalnet.deformable_attention_triton(values, [4, 5, 2, 3, 1, 1], locations, weights, True)


@interpreted
@pytest.mark.parametrize("failing", ["forward_kernel", "backward_kernel"])
def test_what_does_not_start_is_denied(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward or backward: the numbers are the reference's, and the next call does not try again."""
    launch = op._launch

    def fail(kernel: Any, *arguments: Any, **constants: Any) -> None:
        if kernel.__name__ == failing:
            raise RuntimeError("out of resource: registers\nand more")
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(op, "_launch", fail)
    inputs = example(queries=2)
    with pytest.raises(RuntimeError, match="out of resource"):  # by name
        differentiated(deformable_attention, inputs)

    def by_auto(values: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
        sizes = [side for shape in shapes for side in shape]
        with backend.use("auto"):
            return triton.deformable_attention(values, sizes, locations, weights)

    proof.warn.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="kernels of deformable attention in float32 .* registers;"):
            found = differentiated(by_auto, inputs)
        truth = differentiated(multi_scale_deformable_attention, inputs)
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match=r"cannot run: .*deformable attention .*out of resource"):
            deformable_attention(*inputs)
    finally:
        proof._denied.clear()
        proof.warn.cache_clear()


@interpreted
def test_the_check_accepts_these_kernels_and_finds_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proof.disagreement(torch.device("cpu"), torch.float32, triton.DEFORMABLE) is None
    backward = op.deformable_attention_backward

    def wrong(*arguments: Any) -> tuple[Tensor, ...]:
        grad_values, grad_locations, grad_weights = backward(*arguments)
        return grad_values, 1.01 * grad_locations, grad_weights

    monkeypatch.setattr(op, "deformable_attention_backward", wrong)
    found = str(proof.disagreement(torch.device("cpu"), torch.float32, triton.DEFORMABLE))
    assert found.startswith("the gradient of the locations of deformable attention in float32 is off by")


@interpreted
def test_one_graph_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def count(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        made.append(module)
        return module.forward

    def attend(low: Tensor, high: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = [(x.shape[2], x.shape[3]) for x in (low, high)]
        values = torch.cat([x.flatten(2) for x in (low, high)], 2).transpose(1, 2).unflatten(2, (2, 4))
        return deformable_attention(values, shapes, locations, weights)

    monkeypatch.setattr(op, "_launch", lambda *_, **__: None)
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend=count, fullgraph=True, dynamic=True)
    for queries, low, high in [(11, (6, 7), (9, 5)), (13, (4, 5), (2, 3)), (10, (9, 4), (5, 2))]:
        locations, weights = torch.rand(1, queries, 2, 2, 3, 2), torch.rand(1, queries, 2, 2, 3)
        compiled(torch.rand(1, 8, *low), torch.rand(1, 8, *high), locations, weights)
    torch._dynamo.reset()
    assert len(made) == 1


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """The interpreter forgives what the compiler does not; compiling needs no GPU."""
    script = Path(__file__).parents[2] / "benchmarks" / "gpu" / "compile_only.py"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", str(script), "--deformable"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backward_kernel" in done.stdout
    assert all("stack 0," in line for line in done.stdout.splitlines())  # no registers were spilled
