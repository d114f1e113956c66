"""``focalnet.accelerate``: the same model, other kernels."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

import focalnet
from focalnet.errors import ConfigError
from focalnet.kernels import fused_timm, modulator
from tests.integrations.foreign import (
    TIMM,
    TRANSFORMERS,
    config,
    distance,
    lively,
    tensor,
    timm_model,
    transformers_model,
)

MODELS = {
    **{f"timm-{shape}": (timm_model, {"shape": shape}) for shape in TIMM},
    **{f"transformers-{shape}": (transformers_model, {"shape": shape}) for shape in TIMM},
    **{f"transformers-{kind}": (transformers_model, {"kind": kind}) for kind in TRANSFORMERS},
}
EACH = pytest.mark.parametrize("name", MODELS)
BOTH = pytest.mark.parametrize("name", ["timm-large_fl4_normalized", "transformers-large_fl4_normalized"])


def build(name: str, **options) -> nn.Module:
    function, settings = MODELS[name]
    return function(**settings, **options)


def images(batch: int = 2, side: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that our operation was called with."""
    shapes: list[tuple[int, ...]] = []
    original = modulator.focal_context

    def counted(context, gates, weights):
        shapes.append(tuple(context.shape))
        return original(context, gates, weights)

    monkeypatch.setattr(modulator, "focal_context", counted)
    return shapes


@EACH
@pytest.mark.parametrize("side", [64, 72])
def test_outputs_are_the_same(name: str, side: int, calls: list) -> None:
    model, x = build(name), images(side=64 if name == "transformers-masked" else side)
    want = tensor(model(x))
    assert not calls
    assert focalnet.accelerate(model) is model
    assert distance(tensor(model(x)), want) < 1e-5
    with torch.no_grad():
        assert distance(tensor(model(x)), want) < 1e-5
    assert len(calls) == 2 * 5  # every block, both times


@EACH
def test_gradients_are_the_same(name: str) -> None:
    model, x = build(name).train(), images()
    twin = focalnet.accelerate(copy.deepcopy(model))
    for m in (model, twin):
        torch.manual_seed(0)
        tensor(m(x)).square().sum().backward()
    for (key, theirs), (_, ours) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if theirs.grad is None:  # the mask token, without a mask
            assert ours.grad is None, key
        else:
            assert distance(ours.grad, theirs.grad) < 1e-4, key


@BOTH
@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_low_precision_is_as_exact_as_before(name: str, how: str) -> None:
    model, x = build(name), images()
    truth = tensor(copy.deepcopy(model).double()(x.double()))
    if how == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    errors = []
    for m in (model, focalnet.accelerate(copy.deepcopy(model))):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            out = tensor(m(x))
        errors.append(distance(out, truth))
    assert errors[1] <= 2 * errors[0] + 1e-3


@BOTH
def test_training_goes_on_with_the_optimizer_made_before(name: str) -> None:
    model = build(name)
    names, ids = list(model.state_dict()), [id(p) for p in model.parameters()]
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-2) for m in (model, twin)]
    focalnet.accelerate(model)
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == ids
    for _ in range(2):
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            tensor(m(images())).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        assert distance(tensor(model(images())), tensor(twin(images()))) < 1e-4
    twin.load_state_dict(model.state_dict())
    assert torch.equal(next(twin.parameters()), next(model.parameters()))


@BOTH
def test_undo_gives_the_classes_back_and_twice_is_once(name: str) -> None:
    model, x = build(name), images()
    before, want = classes(model), tensor(model(x))
    focalnet.accelerate(model)
    once = classes(model)
    assert once != before
    assert classes(focalnet.accelerate(model)) == once
    assert focalnet.accelerate(model, undo=True) is model
    assert classes(model) == before
    assert torch.equal(tensor(model(x)), want)
    assert classes(focalnet.accelerate(model, undo=True)) == before


@BOTH
def test_copies_and_files_of_an_accelerated_model(name: str) -> None:
    model, x = focalnet.accelerate(build(name)), images()
    want = tensor(model(x))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)
    for twin in twins:
        assert classes(twin) == classes(model)
        assert torch.equal(tensor(twin(x)), want)
    assert tensor(model.double()(x.double())).dtype == torch.float64


@pytest.mark.parametrize("name", ["timm-srf", "transformers-classifier"])
@pytest.mark.parametrize("where", ["modulation", "modulation.focal_layers.1.0", "modulation.focal_layers.0", "mlp.fc1"])
def test_hooks_are_called(name: str, where: str) -> None:
    model, x = focalnet.accelerate(build(name)), images()
    want, seen = tensor(model(x)), []
    block = "layers.0.blocks.0" if "timm" in name else "focalnet.encoder.stages.0.layers.0"
    handle = model.get_submodule(f"{block}.{where}").register_forward_hook(lambda *_: seen.append(1))
    assert distance(tensor(model(x)), want) < 1e-5
    assert seen == [1]
    handle.remove()
    model(x)
    assert seen == [1]


class Double(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@pytest.mark.parametrize("name", ["timm-srf", "transformers-classifier"])
def test_changed_layers_are_respected(name: str) -> None:
    """A parametrization, another activation, another dilation: the model does what its modules now say."""

    def change(model: nn.Module) -> nn.Module:
        first, second, third, *_ = (m for n, m in model.named_modules() if n.endswith("modulation"))
        parametrize.register_parametrization(first.focal_layers[0][0], "weight", Double())
        second.focal_layers[1][1] = nn.ReLU()
        third.focal_layers[0][0].dilation, third.focal_layers[0][0].padding = (2, 2), (2, 2)
        mlps = [m for n, m in model.named_modules() if n.endswith("mlp")]
        parametrize.register_parametrization(mlps[0].fc1, "weight", Double())
        setattr(mlps[1], "act" if "timm" in name else "activation", nn.Tanh())
        mlps[2].fc2.forward = lambda x: x.new_zeros(())
        return model

    model = build(name)
    want = tensor(change(copy.deepcopy(model))(images()))
    assert distance(tensor(focalnet.accelerate(change(copy.deepcopy(model)))(images())), want) < 1e-5
    assert distance(tensor(change(focalnet.accelerate(copy.deepcopy(model)))(images())), want) < 1e-5


@BOTH
def test_weights_changed_in_place_are_seen(name: str) -> None:
    model = focalnet.accelerate(build(name))
    with torch.no_grad():
        model(images())
        for parameter in model.parameters():
            parameter.mul_(0.9)
        want = tensor(focalnet.accelerate(copy.deepcopy(model), undo=True)(images()))
        assert distance(tensor(model(images())), want) < 1e-5


@BOTH
def test_drop_path_and_dropout_follow_the_seed(name: str) -> None:
    options = {"drop_path_rate": 0.5} if "timm" in name else {"drop_path_rate": 0.5, "hidden_dropout_prob": 0.2}
    model = build(name, **options).train()
    twin = focalnet.accelerate(copy.deepcopy(model))
    outputs = []
    for m in (model, twin):
        torch.manual_seed(0)
        outputs.append(tensor(m(images())))
    assert distance(outputs[1], outputs[0]) < 1e-5


@BOTH
def test_compiles_to_one_graph(name: str) -> None:
    model, x = focalnet.accelerate(build(name, depths=[1, 1])), images()
    want = tensor(model(x))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = tensor(compiled(x))
    assert distance(out, want) < 1e-5
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_accelerating_a_compiled_model() -> None:
    model, x = timm_model(depths=(1,)), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        want = compiled(x)
        assert focalnet.accelerate(compiled) is compiled
        assert distance(compiled(x), want) < 1e-5


@BOTH
def test_gradient_checkpointing(name: str) -> None:
    model, x = focalnet.accelerate(build(name)).train(), images()
    twin = copy.deepcopy(model)
    if "timm" in name:
        twin.set_grad_checkpointing()
    else:
        getattr(twin, "activation_checkpointing_enable", twin.gradient_checkpointing_enable)()  # renamed in 5.x
    for m in (model, twin):
        torch.manual_seed(0)
        tensor(m(x)).square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@BOTH
def test_exports_to_plain_operations(name: str) -> None:
    program = torch.export.export(focalnet.accelerate(build(name)), (images(),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called
    assert not [target for target in called if "focalnet" in target or "mkldnn" in target]


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*deprecated:FutureWarning"
)  # they still work, and timm still tests them
def test_scripts_and_traces_run_without_this_library() -> None:
    model, x = timm_model("huge"), images()
    want = model(x)
    focalnet.accelerate(model)
    before = classes(model)
    scripted, traced, graph = torch.jit.script(model), torch.jit.trace(model, x), torch.fx.symbolic_trace(model)
    for other in (scripted, traced, graph):
        assert torch.equal(other(x), want)
    assert "focalnet::" not in str(traced.inlined_graph)
    assert classes(model) == before


def test_only_the_focalnet_inside_a_larger_model_changes() -> None:
    model = nn.Sequential(timm_model(num_classes=0), nn.Linear(64, 3))
    want = model(images())
    focalnet.accelerate(model)
    assert type(model[1]) is nn.Linear
    block = model[0].layers[0].blocks[0]
    assert (type(block.modulation), type(block.mlp)) == (fused_timm.FusedFocalModulation, fused_timm.FusedMlp)
    assert type(block.mlp.fc1) is nn.Conv2d  # layers stay PyTorch's own
    assert distance(model(images()), want) < 1e-5


def test_timm_features(calls: list) -> None:
    model = lively(timm.create_model("focalnet_tiny_srf", features_only=True, out_indices=(1, 3)))
    want = model(images(1))
    focalnet.accelerate(model)
    for ours, theirs in zip(model(images(1)), want, strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < 1e-5
    assert len(calls) == 12
    assert model.feature_info.reduction() == [8, 32]


def test_inside_upernet() -> None:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    # transformers' backbone gives each map after the down-sampling; these sizes are what its heads then see.
    backbone = config(out_features=["stage1", "stage2", "stage3", "stage4"], hidden_sizes=[16, 32, 64, 64])
    whole = UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_in_channels=64, num_labels=4)
    model = lively(UperNetForSemanticSegmentation(whole))
    want = model(images()).logits
    focalnet.accelerate(model)
    assert distance(model(images()).logits, want) < 1e-5


@pytest.mark.parametrize("order", ["before", "after"])
def test_distributed_data_parallel(order: str, tmp_path) -> None:
    model, x = timm_model(drop_path_rate=0.0).train(), images()
    twin = copy.deepcopy(model)
    twin(x).sum().backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        inner = focalnet.accelerate(model) if order == "before" else model
        wrapped = nn.parallel.DistributedDataParallel(inner)
        if order == "after":
            focalnet.accelerate(wrapped)
        wrapped(x).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for theirs, ours in zip(twin.parameters(), model.parameters(), strict=True):
        assert distance(ours.grad, theirs.grad) < 1e-4


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("other", [nn.Linear(2, 2), "focalnet_tiny_srf"])
def test_other_models_are_refused(other: object, undo: bool) -> None:
    with pytest.raises(ConfigError, match="no FocalNet of this library, timm or transformers"):
        focalnet.accelerate(other, undo=undo)


def test_ours_are_accelerated_from_the_start() -> None:
    model, x = focalnet.create_model("focalnet_nano").eval(), images(1, 32)
    kinds, want = classes(model), model(x)
    assert classes(focalnet.accelerate(model)) == kinds
    assert classes(focalnet.accelerate(model, undo=True)) != kinds
    assert distance(model(x), want) < 1e-5
    assert classes(focalnet.accelerate(model)) == kinds


@pytest.mark.parametrize("name", timm.list_models("focalnet_*"))
def test_every_published_architecture_is_known(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    focalnet.accelerate(model)
    blocks = [block for stage in model.layers for block in stage.blocks]
    assert {type(b.modulation).__name__ for b in blocks} == {"FusedFocalModulation"}
    assert {type(b.mlp).__name__ for b in blocks} == {"FusedMlp"}


def test_shapes_on_meta() -> None:
    with torch.device("meta"):
        model, x = focalnet.accelerate(timm.create_model("focalnet_tiny_lrf")), torch.empty(1, 3, 64, 64)
    assert model(x).shape == (1, 1000)


def test_a_library_that_is_not_in_use_is_not_imported() -> None:
    code = (
        "import sys, timm, focalnet; focalnet.accelerate(timm.create_model('focalnet_tiny_srf', device='meta'));"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
