"""Whatever is done to a model, it equals what the plain modules give after the same, or there was an error.

Models (ours, timm's, transformers') x states (fused, optimized, optimized in bfloat16, compiled) x ways to change one.
``make matrix`` runs the compiled cells with inductor; the suite takes a quicker backend.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tests.integrations.foreign import lively, timm_model, transformers_model
from tests.kernels.changes import NORMED, OF_A_MODEL, OF_A_WEIGHT, Change, Half, Roles, of_a_layer
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

import focalnet
from focalnet.errors import FrozenError
from focalnet.kernels import cpu, matmul
from focalnet.kernels.frozen import Frozen
from focalnet.kernels.fuse import fuse
from focalnet.models import ClassifierConfig

BACKEND = os.environ.get("FOCALNET_MATRIX_BACKEND", "aot_eager")
IMAGES = torch.linspace(-3, 3, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()
SMALL = {"embed_dim": 8, "depths": (1, 1), "focal_levels": (2, 2), "focal_windows": (3, 3)}
LARGE = {"post_norm": True, "post_norm_in_modulation": True, "layer_scale": 0.5, "normalize_modulator": True}

_OURS = {
    **{role: f"layers.0.blocks.0.modulation.{role}" for role in ("f", "h", "proj")},
    **{role: f"layers.0.blocks.0.mlp.{role}" for role in ("fc1", "fc2", "act")},
    **{role: f"layers.0.blocks.0.{role}" for role in ("norm1", "norm2")},
    "conv": "layers.0.blocks.0.modulation.focal_layers.0.0",
    "embed": "patch_embed.proj",
}
_THEIRS = {
    "f": "modulation.projection_in",
    "h": "modulation.projection_context",
    "proj": "modulation.projection_out",
    "conv": "modulation.focal_layers.0.0",
    "act": "mlp.activation",
    **{role: f"mlp.{role}" for role in ("fc1", "fc2")},
    **{role: role for role in ("norm1", "norm2")},
}
ROLES: dict[str, Roles] = {
    "ours": _OURS,
    "ours, large": _OURS,
    "timm": {**_OURS, "embed": "stem.proj"},
    "transformers": {
        **{role: f"focalnet.encoder.stages.0.layers.0.{name}" for role, name in _THEIRS.items()},
        "embed": "focalnet.embeddings.patch_embeddings.projection",
    },
}
STATES = ("fused", "optimized", "bfloat16")


def plain(kind: str) -> Any:
    """A model of plain modules, in evaluation mode, whose every branch counts."""
    if kind == "timm":
        return timm_model(depths=(1, 1), focal_levels=(2, 2), focal_windows=(3, 3))
    if kind == "transformers":
        options = {"depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3], "hidden_sizes": [8, 16]}
        return transformers_model(image_size=32, **options)
    config = focalnet.FocalNetConfig(**SMALL, **(LARGE if "large" in kind else {}))
    return lively(fuse(ClassifierConfig(backbone=config, num_classes=5).build(), undo=True))


def fast(kind: str, state: str) -> Any:
    model = focalnet.accelerate(plain(kind))
    if state != "fused":
        focalnet.optimize(model, dtype=torch.bfloat16 if state == "bfloat16" else None)
    return model


def output(model: Any) -> Tensor:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        found = model(IMAGES.to(dtype))
    logits: Tensor = getattr(found, "logits", found)
    return logits.double()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def check(kind: str, state: str, change: Change, *, changes_numbers: bool = True) -> None:
    """One cell: the model after the change is what the plain modules are after it, or there was an error."""
    truth_of, ours = plain(kind), fast(kind, state)
    if state == "bfloat16":
        truth_of = truth_of.bfloat16()
    before = output(truth_of)
    rounding = distance(before, output(copy.deepcopy(truth_of).float()))
    tolerance = 1e-4 if state != "bfloat16" else 3 * rounding + 1e-2
    assert distance(output(ours), before) < tolerance
    expected, reason = attempt(truth_of, change, kind)
    if expected is not None and changes_numbers and state != "bfloat16":  # there, rounding hides small changes
        assert distance(expected, before) > 2 * tolerance, "a change that changes nothing proves nothing"
    frozen = any(isinstance(module, Frozen) for module in ours.modules())
    found, refusal = attempt(ours, change, kind)
    if found is None:  # what is frozen refuses, and what plain modules cannot do, fused ones need not
        assert frozen or reason is not None, repr(refusal)
        assert not isinstance(refusal, FrozenError) or "undo()" in str(refusal)
        return
    assert expected is not None, f"fused modules gave numbers where plain ones raise {reason!r}"
    assert distance(found, expected) < tolerance


def attempt(model: Any, change: Change, kind: str) -> tuple[Tensor | None, Exception | None]:
    """The output after the change, or the error."""
    torch.manual_seed(3)
    try:
        return output(change(model, ROLES[kind]) or model), None
    except Exception as error:
        return None, error


def needs(name: str) -> None:
    for word, package in (("LoRA", "peft"), ("DoRA", "peft"), ("torchao", "torchao")):
        if word in name and importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


WEIGHTS = [
    (role, name, change)
    for role in ("f", "h", "proj", "conv", "fc1", "fc2", "norm1", "norm2", "embed")
    for name, change in (OF_A_WEIGHT if "norm" in role else OF_A_WEIGHT | NORMED).items()
    if not (role == "conv" and "bias" in name)
]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ROLES)
@pytest.mark.parametrize("name", OF_A_MODEL)
def test_changes_of_a_model(name: str, kind: str, state: str) -> None:
    needs(name)
    check(kind, state, OF_A_MODEL[name], changes_numbers=name != "in double precision")


# Of other libraries' models nothing is frozen: optimized, they are fused as before.
CELLS = [(kind, state) for kind in ROLES for state in (STATES if "ours" in kind else ("fused",))]


@pytest.mark.parametrize(("kind", "state"), CELLS)
@pytest.mark.parametrize(("role", "name", "change"), WEIGHTS, ids=lambda value: value if isinstance(value, str) else "")
def test_changes_of_a_layer(role: str, name: str, change: Any, kind: str, state: str) -> None:
    check(kind, state, of_a_layer(role, change))


COMPILED = [
    "load_state_dict",
    "load_state_dict, assign",
    "sgd, fused",
    "every parameter by data",
    "LoRA",
    "a layer replaced",
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ROLES)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str, kind: str, when: str) -> None:
    """Compiled before or after the change, the numbers are those after it."""
    needs(name)
    torch._dynamo.reset()

    def change(model: nn.Module, roles: Roles) -> Any:
        compiled = torch.compile(model, backend=BACKEND) if when == "before" else None
        if compiled is not None:
            output(compiled)
        changed = OF_A_MODEL[name](model, roles)
        if compiled is not None and changed is None:
            return compiled
        return torch.compile(changed or model, backend=BACKEND)

    check(kind, "fused", change)


@pytest.mark.parametrize("kind", ROLES)
@pytest.mark.parametrize("name", ["load_state_dict", "sgd, fused", "a layer replaced", "every parameter by data"])
def test_optimized_and_compiled(name: str, kind: str) -> None:
    torch._dynamo.reset()

    def change(model: nn.Module, roles: Roles) -> Any:
        compiled = torch.compile(model, backend=BACKEND)
        output(compiled)
        OF_A_MODEL[name](model, roles)
        return compiled

    check(kind, "optimized", change)


@pytest.mark.parametrize("kind", ROLES)
def test_hooks_fire_as_often_as_on_plain_modules(kind: str) -> None:
    counts = []
    for model in (plain(kind), fast(kind, "fused")):
        fired: dict[str, int] = {}
        for name, module in model.named_modules():
            if ".0." not in name:  # in a block; transformers' models give no tensors
                continue
            for event, register in (
                ("forward", module.register_forward_hook),
                ("before", module.register_forward_pre_hook),
                ("backward", module.register_full_backward_hook),
            ):
                register(partial(count, fired, f"{event} {name}"))
        out = model(IMAGES.clone().requires_grad_())
        getattr(out, "logits", out).sum().backward()
        counts.append(fired)
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 50


def count(fired: dict[str, int], key: str, *_: Any) -> None:
    fired[key] = fired.get(key, 0) + 1


@pytest.fixture
def everywhere() -> Iterator[list[str]]:
    seen: list[str] = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    yield seen
    handle.remove()


@pytest.mark.parametrize("kind", ROLES)
def test_hooks_of_all_modules_fire(kind: str, everywhere: list[str]) -> None:
    output(fast(kind, "fused"))
    assert everywhere.count("Conv2d") >= 4
    assert sum("GELU" in name for name in everywhere) >= 6


@pytest.mark.parametrize("kind", ROLES)
@pytest.mark.parametrize("patched", [nn.Linear, nn.Conv2d, nn.LayerNorm])
def test_a_patched_class_is_called(kind: str, patched: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    if (kind, patched) == ("timm", nn.LayerNorm):
        pytest.skip("timm's norms have a class of their own")
    truth_of, ours = plain(kind), fast(kind, "fused")
    before, forward = output(truth_of), patched.forward
    monkeypatch.setattr(patched, "forward", lambda self, x: 1.5 * forward(self, x))
    assert distance(output(truth_of), before) > 1e-2
    assert distance(output(ours), output(truth_of)) < 1e-4


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ROLES)
def test_function_modes_see_the_plain_operations(kind: str) -> None:
    seen = []
    for model in (plain(kind), fast(kind, "fused")):
        with Counting() as mode:
            output(model)
        seen.append([name for name in mode.names if name in ("conv2d", "linear", "layer_norm", "gelu")])
    assert seen[0] == seen[1]
    assert len(seen[0]) > 20


def test_a_default_device_keeps_modules_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not cpu.built():
        pytest.skip("the CPU kernels were not built")
    calls = []
    forward = cpu.Library.forward
    monkeypatch.setattr(cpu.Library, "forward", lambda self, *tensors: calls.append(1) or forward(self, *tensors))
    model = fast("ours", "fused")
    with torch.device("cpu"):
        output(model)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ROLES)
@pytest.mark.parametrize("state", ["fused", "optimized"])
def test_autocast_is_as_exact_as_on_plain_modules(kind: str, state: str) -> None:
    exact, truth_of, ours = output(plain(kind)), plain(kind), fast(kind, state)
    with torch.autocast("cpu", torch.bfloat16):
        error = distance(output(truth_of), exact)
        assert distance(output(ours), exact) <= 2 * error + 1e-3


@pytest.mark.skipif(not (matmul.DTYPES and cpu.built()), reason="nothing is frozen without oneDNN and our kernels")
@pytest.mark.parametrize("kind", ["ours", "ours, large"])
def test_optimized_models_are_frozen_here(kind: str) -> None:
    frozen = [module for module in fast(kind, "optimized").modules() if isinstance(module, Frozen)]
    assert len(frozen) == 4


@pytest.mark.parametrize("kind", ROLES)
def test_a_copy_of_a_fused_model_is_apart(kind: str) -> None:
    model = fast(kind, "fused")
    before, twin = output(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert torch.equal(output(model), before)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]


def halved_gamma(model: nn.Module, roles: Roles) -> None:
    parametrize.register_parametrization(model.get_submodule("layers.0.blocks.0"), "gamma_1", Half())


def half_in_double(model: nn.Module, roles: Roles) -> None:
    conv: Any = model.get_submodule(roles["conv"])
    conv.weight = nn.Parameter(conv.weight.detach().double())


@pytest.mark.parametrize("state", STATES)
def test_a_parametrized_scale_of_a_block(state: str) -> None:
    check("ours, large", state, halved_gamma)


@pytest.mark.parametrize("kind", ROLES)
def test_kernels_of_another_dtype_are_refused_as_by_plain_modules(kind: str) -> None:
    model = fast(kind, "fused")
    half_in_double(model, ROLES[kind])
    with pytest.raises(RuntimeError, match="type"):
        output(model)
