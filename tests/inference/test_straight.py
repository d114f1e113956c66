"""Blocks as a straight line of operations: the same outputs, and never behind the back of their modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from focalnet.nn.linear import Linear
from focalnet.nn.straight import _opaque_blocks
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import focalnet
from focalnet.backbones.focalnet import Stage
from focalnet.kernels import backend, cpu
from focalnet.kernels.matmul import DTYPES
from focalnet.nn import FocalNetBlock, StraightBlocks

pytestmark = pytest.mark.skipif(not (DTYPES and cpu.built()), reason="needs oneDNN's products and our CPU kernels")


@pytest.fixture(params=[(True, True), (True, False), (False, False)], ids=["intel", "amd", "avx2"], autouse=True)
def every_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file as on each kind of processor: products come another way, GELU inside them or after."""
    for name, value in zip(("AVX512", "GELU_INSIDE"), request.param, strict=True):
        monkeypatch.setattr(matmul, name, value)


MAP = torch.linspace(-1, 1, 2 * 5 * 7 * 32).view(2, 5, 7, 32).sin()


def optimized(dtype: torch.dtype | None = None, **options: object) -> Stage:
    """The first stage of a small model, two blocks."""
    torch.manual_seed(0)
    model = focalnet.create_model("focalnet_tiny_lrf", depths=(2, 1, 1, 1), embed_dim=32, **options)
    focalnet.optimize(model, dtype=dtype)
    return next(m for m in model.modules() if isinstance(m, Stage))


def through_modules(stage: Stage, x: torch.Tensor) -> torch.Tensor:
    straight, stage.straight = stage.straight, None
    out: torch.Tensor = stage(x)
    stage.straight = straight
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_gives_the_bits_of_the_modules(dtype: torch.dtype) -> None:
    stage, x = optimized(dtype), MAP.to(dtype)
    assert stage.straight is not None
    assert stage.straight.applies(x)
    assert torch.equal(stage(x), through_modules(stage, x))
    assert torch.equal(x, MAP.to(dtype))  # others may look at it


@pytest.mark.parametrize(
    "options",
    [{"post_norm": True}, {"layer_scale": 0.1}, {"post_norm_in_modulation": True}, {"normalize_modulator": True}],
)
def test_only_plain_blocks(options: dict[str, object]) -> None:
    assert optimized(**options).straight is None


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # said by the switch of oneDNN, on any machine
def test_not_for_other_dtypes_gradients_training_autocast_or_backends() -> None:
    stage = optimized()
    straight = stage.straight
    assert straight is not None
    with torch.no_grad():
        assert straight.applies(MAP)
        assert not straight.applies(MAP.double())
        assert not straight.applies(MAP[:0])
        with torch.autocast("cpu"):
            assert not straight.applies(MAP)
        with backend.use("eager"):
            assert not straight.applies(MAP)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not straight.applies(MAP)
        with FlopCounterMode(display=False) as counter:
            assert not straight.applies(MAP)
            stage(MAP)
        assert counter.get_total_flops() > 0
    assert not straight.applies(MAP)  # gradients

    def fail(_: torch.Tensor) -> bool:
        raise AssertionError("asked in training")

    stage.train()
    straight.applies = fail  # type: ignore[method-assign]
    with torch.no_grad():
        stage(MAP)


class Doubled(Linear):
    def forward(self, input: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        return 2 * super().forward(input) + (0 if plus is None else plus)


class Half(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def double_in_place(block: FocalNetBlock) -> None:
    with torch.no_grad():
        block.modulation.f.weight.mul_(2)


def new_data(block: FocalNetBlock) -> None:
    block.modulation.h.weight.data = block.modulation.h.weight.data.flip(0).contiguous()


def new_bias(block: FocalNetBlock) -> None:
    block.mlp.fc2.bias = nn.Parameter(torch.ones(32))


def new_kernel(block: FocalNetBlock) -> None:
    conv = block.modulation.convs[0]
    conv.weight = nn.Parameter(torch.ones_like(conv.weight))


def new_layer(block: FocalNetBlock) -> None:
    block.mlp.fc1 = Linear(32, 128)


def new_class(block: FocalNetBlock) -> None:
    block.mlp.fc2.__class__ = Doubled


def new_norm(block: FocalNetBlock) -> None:
    block.norm2 = nn.Identity()  # type: ignore[assignment]


def parametrized(block: FocalNetBlock) -> None:
    parametrize.register_parametrization(block.modulation.proj, "weight", Half())


def hooked(block: FocalNetBlock) -> None:
    block.modulation.register_forward_hook(lambda _module, _inputs, output: 3 * output)


CHANGES = [double_in_place, new_data, new_bias, new_kernel, new_layer, new_class, new_norm, parametrized, hooked]


@pytest.mark.parametrize("change", CHANGES)
def test_goes_back_to_the_modules_once_they_change(change: Callable[[FocalNetBlock], None]) -> None:
    stage = optimized()
    with torch.no_grad():
        before = stage(MAP)
        change(stage.blocks[1])
        after = stage(MAP)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, through_modules(stage, MAP))


@pytest.mark.parametrize("change", CHANGES)
def test_compiled_it_is_one_operation_until_the_modules_change(change: Callable[[FocalNetBlock], None]) -> None:
    torch._dynamo.reset()  # it counts how often the same code was compiled
    stage, graphs = optimized(), []

    def note(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(stage, fullgraph=True, backend=note)
    with torch.no_grad():
        before = compiled(MAP)
        torch.testing.assert_close(before, through_modules(stage, MAP))
        change(stage.blocks[1])
        after = compiled(MAP)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, through_modules(stage, MAP))
    assert [len(graph) for graph in graphs] == [1]


def test_compiled_it_is_taken_back_by_undo() -> None:
    torch.manual_seed(0)
    model = focalnet.create_model("focalnet_nano")
    done = focalnet.optimize(model)
    compiled, images = torch.compile(model, fullgraph=True, backend="aot_eager"), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))
        done.undo()
        model.eval()
        torch.testing.assert_close(compiled(images), model(images))


def test_is_registered_as_it_behaves() -> None:
    straight = optimized().straight
    assert straight is not None
    torch.library.opcheck(_opaque_blocks, (MAP, straight.name))


def test_an_export_has_plain_operations_only() -> None:
    with torch.no_grad():
        exported = torch.export.export(optimized(), (MAP,))
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert "aten.linear.default" in called
    assert not any("focalnet" in target or "mkldnn" in target for target in called)


def other_blocks(stage: Stage) -> None:
    stage.blocks = optimized(drop_path_rate=0.1).blocks


def fewer_blocks(stage: Stage) -> None:
    del stage.blocks[-1]


def other_block(stage: Stage) -> None:
    stage.blocks[0] = copy.deepcopy(stage.blocks[1])


@pytest.mark.parametrize("change", [other_blocks, fewer_blocks, other_block])
def test_goes_back_once_there_are_other_blocks(change: Callable[[Stage], None]) -> None:
    stage = optimized()
    assert stage.straight is not None
    change(stage)
    with torch.no_grad():
        assert not stage.straight.applies(MAP)
        torch.testing.assert_close(stage(MAP), through_modules(stage, MAP))


@pytest.mark.parametrize("hook", [False, True])
def test_patch_embeddings_follow_their_weights(hook: bool) -> None:
    torch.manual_seed(0)
    model = focalnet.create_model("focalnet_nano")
    focalnet.optimize(model)
    embed, images = model.patch_embed, torch.randn(1, 3, 32, 32)
    assert embed.packed is not None
    with torch.no_grad():
        before = embed(images)
        if hook:
            embed.proj.register_forward_hook(lambda _module, _inputs, output: output.flip(1))
        else:
            embed.proj.weight.copy_(embed.proj.weight.flip(0))
            embed.proj.bias.copy_(embed.proj.bias.flip(0))
        torch.testing.assert_close(embed(images), embed.norm(embed.proj(images).permute(0, 2, 3, 1)))
        assert not torch.allclose(embed(images), before)


def test_explanations_see_an_optimized_model() -> None:
    from focalnet.explanations import record

    torch.manual_seed(0)
    model = focalnet.create_model("focalnet_nano").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), record(model) as plain:
        model(images)
    focalnet.optimize(model)
    with torch.no_grad(), record(model) as through:
        model(images)
    assert plain.keys() == through.keys()
    for name, seen in plain.items():
        torch.testing.assert_close(through[name].modulator, seen.modulator, rtol=1e-4, atol=1e-5)


def test_is_neither_copied_nor_saved() -> None:
    stage = optimized()
    assert isinstance(stage.straight, StraightBlocks)
    for twin in (copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
        assert twin.straight is None
        with torch.no_grad():
            torch.testing.assert_close(twin(MAP), stage(MAP))


# Both are said of any trace: that there are newer ways, and that questions about shapes are answered once.
@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_trace_runs_without_this_library() -> None:
    stage = optimized()
    with torch.no_grad():
        traced = torch.jit.trace(stage, MAP)
        torch.testing.assert_close(traced(2 * MAP), stage(2 * MAP))
    assert {node.kind().partition("::")[0] for node in traced.inlined_graph.nodes()} <= {"aten", "prim"}
