"""Frozen blocks and patch embeddings: the outputs of the plain modules, and nothing that could change behind them.

One file, for every test asks the same of the same model: what a frozen module gives, and what it refuses.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import focalnet
from focalnet.errors import FrozenError, InputError
from focalnet.kernels import cpu, matmul
from focalnet.kernels.frozen import FrozenFocalNetBlock, FrozenPatchEmbed, _opaque_block
from focalnet.kernels.fuse import fuse
from focalnet.nn import FocalNetBlock, PatchEmbed

pytestmark = pytest.mark.skipif(
    not (matmul.DTYPES and cpu.built()), reason="needs oneDNN's products and our CPU kernels"
)


@pytest.fixture(params=[(True, True), (True, False), (False, False)], ids=["intel", "amd", "avx2"], autouse=True)
def every_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file as on each kind of processor: products come another way, GELU inside them or after."""
    for name, value in zip(("AVX512", "GELU_INSIDE"), request.param, strict=True):
        monkeypatch.setattr(matmul, name, value)


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"layer_scale": 0.5, "normalize_modulator": True},
    "post-norm": {"post_norm": True, "post_norm_in_modulation": True, "layer_scale": 0.5, "overlapped": True},
    "global only": {"focal_levels": (0, 0)},
}
IMAGES = torch.linspace(-2, 2, 2 * 3 * 24 * 40).view(2, 3, 24, 40).sin()


def network(shape: str = "plain", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    options = {"depths": (2, 1), "focal_levels": (2, 2), "focal_windows": (3, 3), "embed_dim": 32} | SHAPES[shape]
    return focalnet.FocalNetConfig(**options).build().eval().to(dtype)


def plain(model: Any) -> Any:
    return fuse(copy.deepcopy(model), undo=True)


def outputs(model: Any, images: torch.Tensor = IMAGES) -> list[torch.Tensor]:
    dtype = next(p.dtype for p in model.parameters())
    with torch.no_grad():
        return list(model(images.to(dtype)).values())


def frozen_block() -> tuple[Any, FrozenFocalNetBlock, Any]:
    model = network()
    done = focalnet.optimize(model)
    block = model.layers[0].blocks[1]
    assert isinstance(block, FrozenFocalNetBlock)
    return model, block, done


@pytest.mark.parametrize("dtype", matmul.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_are_those_of_the_plain_modules(shape: str, dtype: torch.dtype) -> None:
    model = network(shape, dtype)
    truth = outputs(plain(model).float())
    loose = outputs(plain(model))
    focalnet.optimize(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(FrozenFocalNetBlock) == 3
    assert kinds.count(FrozenPatchEmbed) == 2
    for sizes in (IMAGES, IMAGES[:1, :, :17], IMAGES):  # without AVX-512 weights are packed for a size
        truth, loose = (outputs(plain_, sizes) for plain_ in (plain_of(shape, dtype).float(), plain_of(shape, dtype)))
        for ours, exact, theirs in zip(outputs(model, sizes), truth, loose, strict=True):
            error = (theirs.float() - exact).abs().max() + 4 * torch.finfo(dtype).eps * exact.abs().max()
            assert (ours.float() - exact).abs().max() <= 2 * error


def plain_of(shape: str, dtype: torch.dtype) -> Any:
    return fuse(network(shape, dtype), undo=True)


def test_it_is_still_what_it_was_to_others() -> None:
    model = network()
    names = [name for name, _ in model.named_parameters()]
    shapes, before = [p.shape for p in model.parameters()], {k: v.clone() for k, v in model.state_dict().items()}
    macs = model.macs(64, 64)
    focalnet.optimize(model)
    assert isinstance(model.layers[0].blocks[0], FocalNetBlock)
    assert isinstance(model.patch_embed, PatchEmbed)
    assert [name for name, _ in model.named_parameters()] == names
    assert [p.shape for p in model.parameters()] == shapes
    assert next(model.parameters()).device.type == "cpu"
    assert model.macs(64, 64) == macs
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "frozen by focalnet.optimize" in repr(model)
    assert model.to(torch.float32).cpu().eval().requires_grad_(False) is model
    twin = network()
    twin.load_state_dict(after)
    with FlopCounterMode(display=False) as ours:
        outputs(model)
    with FlopCounterMode(display=False) as theirs:
        outputs(fuse(twin, undo=True))
    assert ours.get_total_flops() == theirs.get_total_flops()


Change = Callable[[Any, FrozenFocalNetBlock], object]
CHANGES: dict[str, Change] = {
    "a part": lambda model, block: block.mlp,
    "a part by name": lambda model, block: model.get_submodule("layers.0.blocks.1.mlp.fc1"),
    "a parameter by name": lambda model, block: model.get_parameter("layers.0.blocks.1.mlp.fc1.weight"),
    "a new part": lambda model, block: setattr(block, "mlp", nn.Identity()),
    "a new attribute": lambda model, block: setattr(block, "post_norm", True),
    "a new forward": lambda model, block: setattr(block, "forward", lambda x: x),
    "no part": lambda model, block: delattr(block, "mlp"),
    "in place": lambda model, block: weight(block).mul_(2),
    "by an operator": lambda model, block: weight(block).__iadd__(1),
    "an element": lambda model, block: weight(block).__setitem__(0, 1.0),
    "new data": lambda model, block: setattr(weight(block), "data", torch.ones(1)),
    "other memory": lambda model, block: weight(block).set_(torch.ones(128, 32)),
    "through data": lambda model, block: weight(block).data.mul_(2),
    "through detach": lambda model, block: weight(block).detach().mul_(2),
    "through a view": lambda model, block: weight(block).view(-1)[0].zero_(),
    "through numpy": lambda model, block: weight(block).detach().numpy().fill(0),
    "through an array": lambda model, block: np.asarray(weight(block)).fill(0),
    "through numpy of data": lambda model, block: weight(block).data.numpy().fill(0),
    "through a part of a view": lambda model, block: weight(block).detach()[1:].data.flatten()[::2].zero_(),
    "by an operator of aten": lambda model, block: torch.ops.aten.mul_.Tensor(weight(block), torch.tensor(2.0)),
    "by somebody's operator": lambda model, block: doubled(weight(block)),
    "through its storage": lambda model, block: weight(block).untyped_storage().fill_(0),
    "through an old storage": lambda model, block: weight(block).storage().fill_(0),
    "no storage": lambda model, block: weight(block).detach().untyped_storage().resize_(0),
    "by a function": lambda model, block: nn.functional.relu(weight(block), inplace=True),
    "through DLPack": lambda model, block: torch.from_dlpack(weight(block)).mul_(2),
    "swapped": lambda model, block: torch.utils.swap_tensors(weight(block), nn.Parameter(torch.ones(128, 32))),
    "in its parameters": lambda model, block: block._parameters.update({"mlp.fc1.weight": nn.Parameter(torch.ones(1))}),
    "in its parts": lambda model, block: block._modules.update(mlp=nn.Identity()),
    "as a result": lambda model, block: torch.add(torch.ones(1), 1, out=weight(block)),
    "through a state dict": lambda model, block: next(iter(model.state_dict().values())).mul_(2),
    "initialization": lambda model, block: nn.init.zeros_(weight(block)),
    "loading": lambda model, block: model.load_state_dict(network().state_dict()),
    "loading some": lambda model, block: model.load_state_dict({}, strict=False),
    "assigning": lambda model, block: model.load_state_dict(network().state_dict(), assign=True),
    "training": lambda model, block: model.train(),
    "gradients": lambda model, block: weight(block).requires_grad_(True),
    "gradients of all": lambda model, block: model.requires_grad_(True),
    "another dtype": lambda model, block: model.bfloat16(),
    "no memory": lambda model, block: model.to("meta"),
    "a parametrization": lambda model, block: parametrize.register_parametrization(block, "gamma_1", nn.Identity()),
    "pruning": lambda model, block: prune.random_unstructured(block, "mlp.fc1.weight", 0.5),
    "a gradient of the image": lambda model, block: model(IMAGES.clone().requires_grad_()),
    "a map over images": lambda model, block: torch.func.vmap(lambda x: model(x[None])["s4"])(IMAGES),
    "an export": lambda model, block: torch.export.export(model, (IMAGES,)),
    "explanations": lambda model, block: focalnet.explain(model, IMAGES[:1]),
    "other classes": lambda model, block: fuse(model, undo=True),
}


@torch.library.custom_op("focalnet_tests::doubled", mutates_args=("x",))
def doubled(x: torch.Tensor) -> None:
    x.mul_(2)


def weight(block: FrozenFocalNetBlock) -> torch.Tensor:
    return dict(block.named_parameters())["mlp.fc1.weight"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_an_error_and_changes_nothing(change: str) -> None:
    model, block, done = frozen_block()
    before = outputs(model)
    expected = (focalnet.FocalNetError, RuntimeError, ValueError, KeyError, AttributeError)
    with pytest.raises(expected) as told:
        CHANGES[change](model, block)
    if isinstance(told.value, FrozenError):
        assert "undo()" in str(told.value)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))
    done.undo()
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), outputs(network()), strict=True))


OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("way", ["fused", "foreach", "plain"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_from_before_cannot_step(name: str, way: str) -> None:
    model = network()
    options = {"fused": way == "fused", "foreach": way == "foreach"}
    optimizer = OPTIMIZERS[name](model.parameters(), lr=0.1, **options)
    sum(out.square().mean() for out in model(IMAGES).values()).backward()
    before = outputs(model)
    focalnet.optimize(model)
    with pytest.raises(FrozenError, match=r"cannot modify a weight.*undo\(\)"):
        optimizer.step()
    for ours, theirs in zip(outputs(model), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["patch_embed.", "layers.0.blocks.1.", "layers.0.downsample."])
def test_writes_past_the_guard_are_followed(part: str) -> None:
    """As those of C++ code, which broadcasts weights to other processes."""
    model = network()
    focalnet.optimize(model)
    before = outputs(model)
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter.mul_(1.5)
    twin = plain_of("plain", torch.float32)
    twin.load_state_dict(model.state_dict())
    for ours, theirs in zip(outputs(model), outputs(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs(model)[-1], before[-1])


def test_readers_and_gradients_may_come_and_go() -> None:
    model, block, _ = frozen_block()
    seen = weight(block)
    assert seen.shape == (128, 32)
    assert seen.float().abs().sum() > 0
    assert torch.equal(seen.clone(), seen.detach())
    seen.grad = None
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad()
    average = torch.zeros(seen.shape).lerp_(seen, 0.5)
    torch.testing.assert_close(2 * average, seen.detach())
    assert not seen.numpy().flags.writeable


HELD: dict[str, Callable[[Any], Any]] = {
    "detached": lambda weight: weight.detach(),
    "data": lambda weight: weight.data,
    "array": lambda weight: weight.detach().numpy(),
}


@pytest.mark.parametrize("view", HELD)
def test_a_view_from_before_keeps_a_block_from_being_frozen(view: str) -> None:
    model = network()
    held = HELD[view](model.layers[0].blocks[1].mlp.fc1.weight)
    done = focalnet.optimize(model)
    assert "1 blocks or patch embeddings are not frozen: a weight shares its memory" in str(done)
    before = outputs(model)
    held *= 2
    twin = plain_of("plain", torch.float32)
    twin.layers[0].blocks[1].mlp.fc1.weight.data.mul_(2)
    for ours, theirs in zip(outputs(model), outputs(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs(model)[0], before[0])


PARTS: dict[str, Callable[[Any], object]] = {
    "a hook": lambda part: part.register_forward_hook(lambda *_: None),
    "a pre-hook": lambda part: part.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda part: part.register_full_backward_hook(lambda *_: None),
    "a parameter": lambda part: setattr(part, "weight", nn.Parameter(torch.ones(1))),
    "an attribute": lambda part: setattr(part, "stride", 2),
    "a forward": lambda part: setattr(part, "forward", lambda x: x),
    "a class": lambda part: setattr(part, "__class__", nn.Identity),
    "a parametrization": lambda part: parametrize.register_parametrization(part, "weight", nn.Identity()),
    "pruning": lambda part: prune.random_unstructured(part, "weight", 0.5),
    "weight norm": lambda part: nn.utils.parametrizations.weight_norm(part),
    "loading": lambda part: part.load_state_dict({}, strict=False),
    "training": lambda part: part.train(),
    "a dtype": lambda part: part.double(),
    "a call": lambda part: part(torch.ones(1)),
}


GENERAL = PARTS.keys() - {"a parametrization", "pruning", "weight norm", "a dtype"}  # not of weights


@pytest.mark.parametrize("change", PARTS)
def test_a_part_from_before_refuses(change: str) -> None:
    model = network()
    before = outputs(model)
    names = ["modulation.f", "modulation.h", "modulation.focal_layers.0.0", "norm1", "mlp", "mlp.fc1", "mlp.act"]
    parts = [model.layers[0].blocks[1].get_submodule(name) for name in names]
    kinds = [type(part) for part in parts]
    done = focalnet.optimize(model)
    for part in parts:
        if hasattr(part, "weight") or change in GENERAL:
            refusal = "Creating a Parameter from an instance of type FrozenParameter" if change == "weight norm" else ""
            with pytest.raises((FrozenError, RuntimeError), match=refusal or r"undo\(\)"):
                PARTS[change](part)
    done.undo()
    assert [type(part) for part in parts] == kinds
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))


class WiderGelu(TorchDispatchMode):
    """Somebody's mode that changes the result of an operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return 1.5 * result if func is torch.ops.aten.gelu.default else result


@pytest.mark.parametrize("grad", [True, False])
def test_a_mode_of_operations_sees_all_of_them(grad: bool) -> None:
    model = network()
    with torch.set_grad_enabled(grad):
        before = model(IMAGES)["s8"]
        with WiderGelu():
            got, expected = model(IMAGES)["s8"], plain(model)(IMAGES)["s8"]
    assert not torch.allclose(got, before, atol=1e-2)
    torch.testing.assert_close(got, expected)


@pytest.fixture(params=["hook", "pre-hook", "patch", "mode", "mode of operations"])
def from_outside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Something that changes what every module gives."""
    everywhere = torch.nn.modules.module
    forward = nn.Linear.forward
    with contextlib.ExitStack() as stack:
        if request.param == "hook":
            handle = everywhere.register_module_forward_hook(lambda _module, _inputs, output: None)
            stack.callback(handle.remove)
        elif request.param == "pre-hook":
            handle = everywhere.register_module_forward_pre_hook(lambda _module, _inputs: None)
            stack.callback(handle.remove)
        elif request.param == "patch":
            monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * forward(self, x))
        elif request.param == "mode":
            stack.enter_context(BaseTorchFunctionMode())
        else:
            stack.enter_context(WiderGelu())
        yield


@pytest.mark.usefixtures("from_outside")
def test_what_changes_every_module_is_refused() -> None:
    model = network()
    focalnet.optimize(model)
    with torch.no_grad(), pytest.raises(FrozenError, match=r"every module.*undo\(\)"):
        model(IMAGES)


def test_hooks_on_the_block_itself_fire() -> None:
    model, block, _ = frozen_block()
    seen: list[torch.Size] = []
    handle = block.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    outputs(model)
    assert seen == [torch.Size([2, 6, 10, 32])]
    handle.remove()


def test_the_head_of_a_frozen_backbone_can_be_trained() -> None:
    torch.manual_seed(0)
    model = focalnet.create_model("focalnet_nano", num_classes=3)
    focalnet.optimize(model)
    assert not any(p.requires_grad for p in model.parameters())
    model.head.requires_grad_(True)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.5)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(torch.ones(1, 3, 32, 32)), torch.tensor([1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]


def test_within_autocast_it_keeps_its_dtype() -> None:
    model = network()
    truth = outputs(model)
    focalnet.optimize(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(model)
    for ours, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.float(), exact, rtol=2e-2, atol=2e-2)


def test_other_inputs_are_refused() -> None:
    model, block, _ = frozen_block()
    with torch.no_grad(), pytest.raises(InputError, match="optimized for float32 on cpu, its input is bfloat16"):
        model(IMAGES.bfloat16())
    with torch.no_grad(), pytest.raises(InputError, match="its input is float32 on meta"):
        block(torch.ones(1, 2, 2, 32, device="meta"))


def copies() -> dict[str, Callable[[Any], Any]]:
    def saved(model: Any) -> Any:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    return {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved}


@pytest.mark.parametrize("how", copies())
def test_copies_are_frozen_and_apart(how: str) -> None:
    model, _, done = frozen_block()
    twin = copies()[how](model)
    assert isinstance(twin.layers[0].blocks[1], FrozenFocalNetBlock)
    before = outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(outputs(twin), before, strict=True))
    done.undo()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(outputs(twin), before, strict=True))
    with pytest.raises(FrozenError):
        weight(twin.layers[0].blocks[1]).mul_(2)


def test_what_has_something_special_stays_as_it_is() -> None:
    model = network()
    model.layers[0].blocks[0].mlp.fc1 = nn.Sequential(nn.Linear(32, 128))
    model.layers[0].blocks[1].modulation.h.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    truth = outputs(plain(model))
    focalnet.optimize(model)
    assert [type(block) is FrozenFocalNetBlock for block in model.layers[0].blocks] == [False, False]
    assert isinstance(model.layers[1].blocks[0], FrozenFocalNetBlock)
    for ours, theirs in zip(outputs(model), truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.layers[0].blocks[1].mlp.fc1.weight.mul_(2)
    assert not torch.allclose(outputs(model)[0], truth[0])


def test_compiled_a_block_is_one_operation() -> None:
    torch._dynamo.reset()
    model, graphs = frozen_block()[0], []

    def note(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=note)
    with torch.no_grad():
        for ours, theirs in zip(compiled(IMAGES).values(), outputs(model), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert sum("frozen_block" in target for target in graphs[0]) == 3


def test_compiled_it_is_taken_back_by_undo() -> None:
    torch._dynamo.reset()
    model, _, done = frozen_block()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(IMAGES)
        done.undo()
        for parameter in model.parameters():
            parameter.mul_(1.5)
        for ours, theirs in zip(compiled(IMAGES).values(), outputs(plain(model)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_is_registered_as_it_behaves() -> None:
    _, block, _ = frozen_block()
    torch.library.opcheck(_opaque_block, (torch.randn(1, 3, 4, 32), block.__dict__["packed"].name))
