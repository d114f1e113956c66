"""References taken from a model before it is fused, optimized or compiled, which change it afterwards.

Each takes what it needs from a model of plain modules and the roles its layers play, and returns the change; that
returns the model to go on with, or None for the same one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tests.kernels.changes import OTHER, Half, Roles, gradients, others, ramp, reset
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel

Held = Callable[[nn.Module, Roles], Callable[[], Any]]
LAYERS = ("f", "h", "proj", "conv", "fc1", "fc2", "norm1", "norm2", "embed")


def layers(model: nn.Module, roles: Roles) -> list[Any]:
    return [model.get_submodule(roles[role]) for role in LAYERS]


def of_weights(take: Callable[[Tensor], Any], change: Callable[[Any], Any]) -> Held:
    """Changes every parameter of one block and the stem through kept references."""

    def hold(model: nn.Module, roles: Roles) -> Callable[[], Any]:
        taken = [take(p) for layer in layers(model, roles) for p in layer.parameters()]

        def changed() -> None:
            with torch.no_grad():
                for one in taken:
                    change(one)

        return changed

    return hold


def of_layers(change: Callable[[Any], Any], *only: str) -> Held:
    """Changes layers through kept references."""

    def hold(model: nn.Module, roles: Roles) -> Callable[[], Any]:
        kept = [model.get_submodule(roles[role]) for role in only or LAYERS]

        def changed() -> None:
            for layer in kept:
                change(layer)

        return changed

    return hold


def optimizer(kind: Any, **options: Any) -> Held:
    def hold(model: nn.Module, roles: Roles) -> Callable[[], Any]:
        stepper = kind(model.parameters(), lr=0.2, **options)

        def changed() -> None:
            gradients(model)
            stepper.step()

        return changed

    return hold


def whole(change: Callable[[nn.Module], Callable[[], Any]]) -> Held:
    return lambda model, roles: change(model)


def averaged(model: nn.Module) -> Callable[[], Any]:
    average = AveragedModel(copy.deepcopy(model))
    average.module.load_state_dict(others(model))

    def changed() -> None:
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), average.module.parameters(), strict=True):
                mine.copy_(theirs)

    return changed


def swapped_ema(model: nn.Module) -> Callable[[], Any]:
    """Swaps weights through ``data``, as trainers do for evaluation."""
    average = ModelEmaV3(model, decay=0.5)
    average.module.load_state_dict(others(model))

    def changed() -> None:
        for mine, theirs in zip(model.parameters(), average.module.parameters(), strict=True):
            mine.data, theirs.data = theirs.data.to(mine.dtype), mine.data

    return changed


def states(model: nn.Module) -> Callable[[], Any]:
    shown = model.state_dict()

    def changed() -> None:
        for tensor in shown.values():
            tensor.mul_(1.5)

    return changed


def tied(model: nn.Module, roles: Roles) -> Callable[[], Any]:
    """Shares a parameter with a layer outside the model."""
    outside = nn.Linear(8, 32)
    outside.weight = model.get_submodule(roles["fc1"]).weight  # type: ignore[assignment]
    return lambda: outside.load_state_dict({"weight": 2 * outside.weight.detach().reshape(32, 8), "bias": outside.bias})


def from_vector(model: nn.Module) -> Callable[[], Any]:
    parameters = list(model.parameters())
    return lambda: nn.utils.vector_to_parameters(1.5 * nn.utils.parameters_to_vector(parameters).detach(), parameters)


def unhooked(model: nn.Module, roles: Roles) -> Callable[[], Any]:
    handles = [m.register_forward_hook(lambda _m, _i, output: ramp(output)) for m in layers(model, roles)]
    return lambda: [handle.remove() for handle in handles]


def unparametrized(model: nn.Module, roles: Roles) -> Callable[[], Any]:
    kept = layers(model, roles)
    for layer in kept:
        parametrize.register_parametrization(layer, "weight", Half())
    return lambda: [parametrize.remove_parametrizations(m, "weight", leave_parametrized=False) for m in kept]


def parametrization_changed(model: nn.Module, roles: Roles) -> Callable[[], Any]:
    kept = layers(model, roles)
    for layer in kept:
        parametrize.register_parametrization(layer, "weight", Half())
    return lambda: [torch.no_grad()(m.parametrizations.weight.original.mul_)(3) for m in kept]


def pruned(model: nn.Module, roles: Roles) -> Callable[[], Any]:
    kept = layers(model, roles)
    for layer in kept:
        prune.l1_unstructured(layer, "weight", 0.4)
    return lambda: [(prune.remove(m, "weight"), m.weight.data.mul_(1.5)) for m in kept]


def mask_changed(model: nn.Module, roles: Roles) -> Callable[[], Any]:
    kept = layers(model, roles)
    for layer in kept:
        prune.l1_unstructured(layer, "weight", 0.4)
    return lambda: [m.weight_mask.fill_(1) for m in kept]


def adapted(change: Callable[[Any], Any], **options: Any) -> Held:
    """Adds LoRA before the model is fused, and changes it afterwards."""

    def hold(model: nn.Module, roles: Roles) -> Callable[[], Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft

            names = [roles[role] for role in ("f", "h", "fc1", "fc2", "proj")]
            config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=names, init_lora_weights=False, **options)
            torch.manual_seed(3)
            peft.inject_adapter_in_model(config, model)
            layer_kind = peft.tuners.tuners_utils.BaseTunerLayer

        def changed() -> None:
            for module in list(model.modules()):
                if isinstance(module, layer_kind):
                    with torch.no_grad():
                        change(module)

        return changed

    return hold


def child(model: nn.Module, roles: Roles, role: str, new: Callable[[nn.Module], nn.Module]) -> Callable[[], Any]:
    """Replaces a layer in its parent, to which a reference was kept."""
    owner, _, leaf = roles[role].rpartition(".")
    parent, kept = model.get_submodule(owner), model.get_submodule(roles[role])
    return lambda: setattr(parent, leaf, new(kept))


def in_the_dict(model: nn.Module, roles: Roles) -> Callable[[], Any]:
    owner, _, leaf = roles["proj"].rpartition(".")
    parent = model.get_submodule(owner)
    return lambda: parent._modules.update({leaf: nn.Identity()})


def in_the_sequence(model: nn.Module, roles: Roles) -> Callable[[], Any]:
    level: Any = model.get_submodule(roles["conv"].rpartition(".")[0])
    return lambda: level.__setitem__(1, nn.Tanh())


HELD: dict[str, Held] = {
    "a parameter, in place": of_weights(lambda p: p, lambda p: p.mul_(1.7)),
    "a parameter, by foreach": of_weights(lambda p: p, lambda p: torch._foreach_mul_([p], 1.7)),
    "a parameter, by an operator of aten": of_weights(
        lambda p: p, lambda p: torch.ops.aten.mul_.Tensor(p, torch.tensor(1.7))
    ),
    "a parameter, by data": of_weights(lambda p: p, lambda p: setattr(p, "data", 1.7 * p.data)),
    "a parameter, through data": of_weights(lambda p: p, lambda p: p.data.mul_(1.7)),
    "a parameter, resized and set": of_weights(lambda p: p, lambda p: p.set_((1.7 * p).clone())),
    "a detached view": of_weights(lambda p: p.detach(), lambda p: p.mul_(1.7)),
    "data": of_weights(lambda p: p.data, lambda p: p.mul_(1.7)),
    "a row": of_weights(lambda p: p.detach()[:1], lambda p: p.mul_(30)),
    "an array": of_weights(lambda p: p.detach().numpy(), lambda p: p.__imul__(1.7)),
    "by DLPack": of_weights(lambda p: torch.from_dlpack(p.detach()), lambda p: p.mul_(1.7)),
    "a state dict": whole(states),
    "a vector of parameters": whole(from_vector),
    "a tied parameter": tied,
    "sgd": optimizer(torch.optim.SGD, momentum=0.9),
    "sgd, foreach": optimizer(torch.optim.SGD, foreach=True),
    "sgd, fused": optimizer(torch.optim.SGD, fused=True),
    "adam": optimizer(torch.optim.Adam),
    "adam, foreach": optimizer(torch.optim.Adam, foreach=True),
    "adamw, fused": optimizer(torch.optim.AdamW, fused=True),
    "adagrad, fused": optimizer(torch.optim.Adagrad, fused=True),
    "rmsprop": optimizer(torch.optim.RMSprop),
    "swa": whole(averaged),
    "ema": whole(swapped_ema),
    "a layer: weight": of_layers(lambda m: setattr(m, "weight", nn.Parameter(1.7 * m.weight.detach()))),
    "a layer: loaded": of_layers(lambda m: m.load_state_dict({k: 1.7 * v for k, v in m.state_dict().items()})),
    "a layer: hook": of_layers(lambda m: m.register_forward_hook(lambda _m, _i, output: ramp(output))),
    "a layer: pre-hook": of_layers(lambda m: m.register_forward_pre_hook(lambda _m, i: (ramp(i[0]),))),
    "a layer: forward": of_layers(lambda m: setattr(m, "forward", lambda x, of=m.forward: ramp(of(x)))),
    "a layer: class": of_layers(lambda m: setattr(m, "__class__", OTHER[type(m)])),
    "a layer: parametrized": of_layers(lambda m: parametrize.register_parametrization(m, "weight", Half())),
    "a layer: pruned": of_layers(lambda m: prune.l1_unstructured(m, "weight", 0.6)),
    "a layer: in double precision": of_layers(lambda m: m.double(), "fc1", "proj"),
    "a layer: on meta": of_layers(lambda m: m.to("meta"), "fc1"),
    "a layer: initialized": of_layers(reset),
    "a layer: eps": of_layers(lambda m: setattr(m, "eps", 3.0), "norm1", "norm2"),
    "an activation: hook": of_layers(lambda m: m.register_forward_hook(lambda _m, _i, output: ramp(output)), "act"),
    "a child of a parent": lambda m, r: child(m, r, "fc2", lambda old: nn.Sequential(old, nn.Tanh())),
    "a norm of a parent": lambda m, r: child(m, r, "norm1", lambda old: nn.Identity()),
    "a parent's dict": in_the_dict,
    "a member of a sequence": in_the_sequence,
    "a hook removed": unhooked,
    "a parametrization removed": unparametrized,
    "a parametrization's original": parametrization_changed,
    "a pruning made final": pruned,
    "a mask of a pruning": mask_changed,
    "LoRA: weights": adapted(lambda m: m.lora_A["default"].weight.mul_(3)),
    "LoRA: merged": adapted(lambda m: (m.lora_A["default"].weight.mul_(3), m.merge())),
    "LoRA: merged and unmerged": adapted(lambda m: (m.merge(), m.unmerge(), m.lora_B["default"].weight.mul_(3))),
    "LoRA: disabled": adapted(lambda m: m.enable_adapters(False)),
    "LoRA: base weights": adapted(lambda m: m.get_base_layer().weight.mul_(1.7)),
    "DoRA: weights": adapted(lambda m: m.lora_A["default"].weight.mul_(3), use_dora=True),
}
