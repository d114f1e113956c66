"""How often the GPU kernels are compiled, counted without compiling; and who may look at them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

from focalnet.errors import InputError
from focalnet.kernels import backend, dispatch, focal_context, reference
from focalnet.kernels.triton import proof

pytest.importorskip("triton", reason="the GPU kernels need the package triton")
tiling = pytest.importorskip("focalnet.kernels.triton.tiling")
op = pytest.importorskip("focalnet.kernels.triton.op")
sizes_of_images = pytest.importorskip("focalnet.kernels.triton.kernels").SIZES

interpreted = pytest.mark.skipif(not op.INTERPRETED, reason="nothing is launched here: needs the interpreter")
# As detection, classification and segmentation give them to the stages of a network.
MAPS = [(56, 56), (64, 64), (72, 80), (80, 72), (96, 128), (100, 152), (25, 38), (50, 76), (200, 304), (13, 19)]
MAPS += [(14, 14), (28, 28), (7, 7)]


class Split(nn.Module):
    """The operation on slices of one projection of 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(8, 1, k, k) for k in (3, 5))

    def forward(self, projection: torch.Tensor) -> torch.Tensor:
        context, gates = projection.split((8, 3), -1)
        return focal_context(context, gates, list(self.weights))


def graphs_of(inputs: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    """How many graphs ``torch.compile`` makes of the operation for these inputs."""
    made = []

    def count(module: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        made.append(module)
        return module.forward

    monkeypatch.setattr(op, "_launch", lambda *_, **__: None)
    torch._dynamo.reset()
    compiled = torch.compile(Split(), backend=count, fullgraph=True, **options)
    with backend.use("triton"), torch._dynamo.config.patch(recompile_limit=64):
        for projection in inputs:
            compiled(projection)
    torch._dynamo.reset()
    return len(made)


@interpreted
def test_a_compiled_model_has_few_graphs_for_many_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graphs_of([torch.randn(2, *size, 11) for size in MAPS], monkeypatch, dynamic=True) <= 7
    wide = [torch.randn(2, H, W, 11) for H, W in MAPS if W >= tiling.WIDE]
    assert graphs_of(wide, monkeypatch, dynamic=True) <= 2  # a square has its own


@interpreted
def test_sizes_can_be_marked_as_dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    first = torch.randn(2, 96, 128, 11)
    torch._dynamo.mark_dynamic(first, (1, 2))
    assert graphs_of([first, torch.randn(2, 100, 152, 11)], monkeypatch) == 1


def specialization(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> tuple[Any, ...]:
    """What Triton's launcher tells compiled kernels apart by."""
    known = []
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(value, torch.Tensor):
            known.append((value.dtype, value.storage_offset() * value.element_size() % 16 == 0))
        else:
            known.append((value < 2**31, name not in sizes_of_images and (value == 1, value % 16 == 0)))
    return kernel.arg_names[0], len(arguments), tuple(sorted(constants.items())), tuple(known)


@pytest.mark.parametrize("kernels", [[3, 5], [9, 11, 13]], ids=str)
def test_detection_compiles_few_specializations(kernels: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()

    def record(kernel: Any, _: int, tile: Any, *arguments: Any, **constants: Any) -> None:
        constants |= {"TW": tile.TW, "R": tile.R, "BC": tile.BC, "num_warps": tile.warps}
        found.add((kernel.__name__, *specialization(kernel, arguments, constants)))

    monkeypatch.setattr(op, "_launch", record)
    draw = random.Random(0)
    for _ in range(300):
        H, W, B = draw.randint(480, 800), draw.randint(480, 1333), draw.randint(1, 2)
        for stage in range(4):
            C, stride = 96 * 2**stage, 4 * 2**stage
            shape = (B, -(-H // stride), -(-W // stride), 2 * C + len(kernels) + 1)
            _, context, gates = torch.empty(shape, dtype=torch.bfloat16, device="meta").split(
                (C, C, len(kernels) + 1), -1
            )
            taps = torch.empty(sum(k * k for k in kernels), C, device="meta")
            out, z, totals = op.focal_context._init_fn(context, gates, taps, kernels, True, True)
            op.focal_context_backward._init_fn(out, None, context, gates, taps, kernels, z, totals, True)
    assert len(found) <= 60


def test_the_gradient_of_a_plane_is_one_kernel_only_where_that_compiles_fast() -> None:
    assert tiling.whole_plane(7, 7, 9 + 25 + 49)
    assert not tiling.whole_plane(7, 7, 25 + 49 + 81)
    assert tiling.whole_plane(7, 7)  # the forward pass alone
    assert not tiling.whole_plane(17, 18)


@pytest.mark.parametrize(("strips", "rows"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (31, 16), (400, 16)])
def test_a_block_holds_as_many_strips_as_there_are(strips: int, rows: int) -> None:
    assert tiling.convolution_tile(strips, 8, 64).R == rows


def compiled(function: Callable[..., Any], made: list[str]) -> Callable[..., Any]:
    """``function`` compiled by AOTAutograd; ``made`` gets the operations of its graphs, forward and backward."""

    def note(module: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        made.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    return torch.compile(function, backend=aot_autograd(fw_compiler=note, bw_compiler=note), fullgraph=True)


@interpreted
@pytest.mark.parametrize("failing", [None, "level_kernel", "weight_gradient_kernel"])
def test_a_compiled_graph_holds_operations_that_fall_back(failing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler gets no kernel of ours to compile; one that does not start costs speed, not the model."""
    launch, made = op._launch, []

    def fail(kernel: Any, *arguments: Any, **constants: Any) -> None:
        if kernel.__name__ == failing:
            raise RuntimeError("out of resource: registers")
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(op, "_launch", fail)
    monkeypatch.setattr(tiling, "WIDTHS", (1,))
    monkeypatch.setattr(tiling, "PLANE_PIXELS", 0)
    monkeypatch.setattr(dispatch, "implementation", lambda *_: "triton")  # as auto does on a GPU
    module = Split()
    projection = torch.randn(1, 4, 5, 11, requires_grad=True)

    def slopes(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        out = function(projection)
        return out, *torch.autograd.grad(out.square().sum(), [projection, *module.parameters()])

    try:
        with pytest.warns(RuntimeWarning, match="out of resource") if failing else contextlib.nullcontext():
            ours = slopes(compiled(module, made))
    finally:
        proof._denied.clear()
        proof.warn.cache_clear()
    names = [name for name in made if "focalnet" in name]
    assert names == ["focalnet.focal_context_triton.default", "focalnet.focal_context_triton_backward.default"]
    with backend.use("eager"):
        monkeypatch.setattr(dispatch, "implementation", lambda *_: "eager")
        torch.testing.assert_close(ours, slopes(module), rtol=1e-4, atol=1e-4)


@interpreted
def test_function_transforms_take_the_plain_operations() -> None:
    context, gates, weight = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 2), torch.randn(8, 1, 3, 3)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return focal_context(x, gates, [weight])

    def plain(x: torch.Tensor) -> torch.Tensor:
        return reference.focal_context(x, gates, [weight])

    tangent = torch.randn_like(context)
    with backend.use("triton"):
        torch.testing.assert_close(
            torch.func.jvp(ours, (context,), (tangent,)), torch.func.jvp(plain, (context,), (tangent,))
        )
        slopes = [torch.func.grad(lambda x, f=f: f(x).square().sum())(context) for f in (ours, plain)]
    torch.testing.assert_close(*slopes)
    with forward_ad.dual_level(), pytest.raises(InputError, match="no forward-mode derivative"):
        torch.ops.focalnet.focal_context_triton(context, gates, weight.flatten(1).t(), [3], False, True)


@interpreted
def test_nothing_kept_is_an_error_in_the_backward_pass() -> None:
    context = torch.randn(1, 17, 16, 8, requires_grad=True)
    taps = torch.randn(9, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "_launch", lambda *_, **__: None)
        out, *_ = torch.ops.focalnet.focal_context_triton(context, torch.randn(1, 17, 16, 2), taps, [3], False, True)
        with pytest.raises(InputError, match="keep=False"):
            out.sum().backward()
