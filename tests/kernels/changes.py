"""Every way to change a model that PyTorch and peft offer, for ``test_matrix.py``.

A change takes a model and the roles its layers play (``f``, ``conv``, ...: module names), changes it, and returns the
model to go on with, or None for the same one.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel

Roles = dict[str, str]
Change = Callable[[nn.Module, Roles], Any]


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def ramp(x: Tensor) -> Tensor:
    """Changes every value in a way that no norm undoes."""
    return x * torch.linspace(0.3, 3, x.numel(), dtype=x.dtype).view(x.shape).sin()


class Changed(nn.Module):
    """Replaces a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return ramp(self.layer(x))


class Other(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return ramp(super().forward(input))


class OtherConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return ramp(super().forward(input))


class OtherNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return ramp(super().forward(input))


OTHER: dict[type, type] = {nn.Linear: Other, nn.Conv2d: OtherConv, nn.LayerNorm: OtherNorm}


def others(model: nn.Module) -> dict[str, Tensor]:
    """A state dict of other weights with the same names."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: (t.detach() + 0.3 * torch.randn(t.shape, generator=generator).to(t.dtype)).clone()
        for name, t in model.state_dict().items()
    }


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._modules[leaf] = new
    assert model.get_submodule(name) is new


# ---- of one layer: function of the layer ----

OF_A_WEIGHT: dict[str, Callable[[nn.Module], Any]] = {
    "in place": lambda m: torch.no_grad()(m.weight.mul_)(2),
    "in place, bias": lambda m: torch.no_grad()(m.bias.add_)(ramp(torch.ones_like(m.bias))),
    "by data": lambda m: m.weight.data.mul_(2),
    "by new data": lambda m: setattr(m.weight, "data", 2 * m.weight.data),
    "by a detached view": lambda m: m.weight.detach().mul_(2),
    "by numpy": lambda m: m.weight.detach().numpy().__imul__(2),
    "by a new parameter": lambda m: setattr(m, "weight", nn.Parameter(2 * m.weight.detach())),
    "by a tensor of inference mode": lambda m: setattr(
        m, "weight", nn.Parameter(inference(2 * m.weight.detach()), False)
    ),
    "by initialization": lambda m: nn.init.constant_(m.weight, 0.1),
    "parametrized": lambda m: parametrize.register_parametrization(m, "weight", Half()),
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.6),
    "pruned for good": lambda m: prune.remove(prune.l1_unstructured(m, "weight", 0.6), "weight"),
    "forward hook": lambda m: m.register_forward_hook(lambda _module, _inputs, output: ramp(output)),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(lambda _module, inputs: (ramp(inputs[0]),)),
    "patched forward": lambda m: setattr(m, "forward", lambda x, of=m.forward: ramp(of(x))),
    "another class": lambda m: setattr(m, "__class__", OTHER[type(m)]),
}
NORMED = {
    "weight norm": lambda m: scaled(nn.utils.parametrizations.weight_norm(m)),
    "weight norm, by hooks": lambda m: (quietly(nn.utils.weight_norm)(m), m.weight_g.data.mul_(2)),
    "spectral norm, by hooks": lambda m: (m.weight.data.mul_(3), quietly(nn.utils.spectral_norm)(m)),
    "spectral norm": lambda m: (m.weight.data.mul_(3), nn.utils.parametrizations.spectral_norm(m)),
}


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Silences the warnings of a function, for deprecated APIs of PyTorch."""

    def call(*arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments)

    return call


def scaled(m: Any) -> None:
    with torch.no_grad():
        m.parametrizations.weight.original0.mul_(2)


def of_a_layer(role: str, change: Callable[[Any], Any]) -> Change:
    def changed(model: nn.Module, roles: Roles) -> None:
        change(model.get_submodule(roles[role]))

    return changed


# ---- of the whole model ----


def gradients(model: nn.Module) -> None:
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5).cos() * (1 + i % 3)


def stepped(kind: Any, **options: Any) -> Change:
    def change(model: nn.Module, roles: Roles) -> None:
        optimizer = kind(model.parameters(), lr=0.2, **options)
        gradients(model)
        optimizer.step()

    return change


def trained(model: nn.Module, roles: Roles) -> nn.Module:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    output = model(torch.ones(2, 3, 32, 32, dtype=next(model.parameters()).dtype).cumsum(-1) / 16)
    getattr(output, "logits", output).square().mean().backward()
    optimizer.step()
    return model.eval()


def reset(part: nn.Module) -> None:
    if getattr(part, "bias", None) is not None:
        nn.init.constant_(part.bias, 0.3)


def every_linear(model: nn.Module, roles: Roles) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: ramp(output))


def by_state_dict(model: nn.Module, roles: Roles) -> None:
    for tensor in model.state_dict().values():
        tensor.mul_(1.5)


def averaged_back(model: nn.Module, roles: Roles) -> None:
    average = AveragedModel(model)
    new = copy.deepcopy(model)
    new.load_state_dict(others(model))
    average.update_parameters(new)
    model.load_state_dict(average.module.state_dict())


def ema_back(model: nn.Module, roles: Roles) -> None:
    average = ModelEmaV3(model, decay=0.5)
    new = copy.deepcopy(model)
    new.load_state_dict(others(model))
    average.update(new)
    for mine, theirs in zip(model.state_dict().values(), average.module.state_dict().values(), strict=True):
        mine.copy_(theirs)


def copied_then(model: nn.Module, roles: Roles, how: Callable[[nn.Module], nn.Module]) -> nn.Module:
    twin = how(model)
    layer: Any = twin.get_submodule(roles["fc1"])
    with torch.no_grad():
        layer.weight.mul_(2)
    return twin


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    found: nn.Module = torch.load(buffer, weights_only=False)
    return found


def lora(dora: bool, end: str | None, *roles_of: str) -> Change:
    def change(model: nn.Module, roles: Roles) -> nn.Module | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft

            names = [roles[role] for role in roles_of]
            config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=names, use_dora=dora, init_lora_weights=False)
            torch.manual_seed(3)
            adapted = peft.get_peft_model(model, config)
            if end == "merged":
                adapted.merge_adapter()
            elif end == "unloaded":
                unloaded: nn.Module = adapted.merge_and_unload()
                return unloaded
            return adapted

    return change


def quantized(model: nn.Module, roles: Roles) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        return found


def quantized_by_torchao(model: nn.Module, roles: Roles) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig())


def other_gelu(model: nn.Module, roles: Roles) -> None:
    replace(model, roles["act"], nn.Tanh())


def of_attribute(role: str, name: str, value: Any) -> Change:
    return lambda model, roles: setattr(model.get_submodule(roles[role]), name, value)


OF_A_MODEL: dict[str, Change] = {
    "load_state_dict": lambda m, r: m.load_state_dict(others(m)),
    "load_state_dict, not strict": lambda m, r: m.load_state_dict(
        {k: v for k, v in others(m).items() if "fc" in k or "f.weight" in k or "projection_in" in k}, strict=False
    ),
    "load_state_dict, assign": lambda m, r: m.load_state_dict(others(m), assign=True),
    "writes to state_dict": by_state_dict,
    "sgd": stepped(torch.optim.SGD),
    "sgd, foreach": stepped(torch.optim.SGD, foreach=True),
    "sgd, fused": stepped(torch.optim.SGD, fused=True),
    "adam, fused": stepped(torch.optim.Adam, fused=True),
    "adamw, foreach": stepped(torch.optim.AdamW, foreach=True),
    "adamw, fused": stepped(torch.optim.AdamW, fused=True),
    "adagrad, fused": stepped(torch.optim.Adagrad, fused=True),
    "trained": trained,
    "swa": averaged_back,
    "ema": ema_back,
    "apply": lambda m, r: m.apply(lambda part: reset(part)),
    "every linear layer hooked": every_linear,
    "every parameter by data": lambda m, r: [p.data.mul_(1.5) for p in m.parameters()],
    "deepcopy, then": lambda m, r: copied_then(m, r, copy.deepcopy),
    "pickle, then": lambda m, r: copied_then(m, r, lambda m: pickle.loads(pickle.dumps(m))),
    "torch.save, then": lambda m, r: copied_then(m, r, saved),
    "LoRA": lora(False, None, "fc1", "f"),
    "LoRA of convolutions": lora(False, None, "conv", "h"),
    "LoRA, merged": lora(False, "merged", "f", "fc2", "h"),
    "LoRA, merged and unloaded": lora(False, "unloaded", "fc1", "conv", "proj"),
    "DoRA": lora(True, None, "fc1", "proj"),
    "DoRA, merged and unloaded": lora(True, "unloaded", "fc1", "f"),
    "quantize_dynamic": quantized,
    "torchao": quantized_by_torchao,
    "a layer replaced": lambda m, r: replace(m, r["proj"], Changed(m.get_submodule(r["proj"]))),
    "a norm replaced": lambda m, r: replace(m, r["norm2"], nn.Identity()),
    "a convolution replaced": lambda m, r: replace(m, r["conv"], Changed(m.get_submodule(r["conv"]))),
    "another activation": other_gelu,
    "eps": of_attribute("norm1", "eps", 3.0),
    "stride and padding": of_attribute("conv", "padding_mode", "circular"),
    "in double precision": lambda m, r: m.double(),
}
