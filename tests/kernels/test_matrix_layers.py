"""Layers replaced, given other attributes or no longer fit: fused models compute what the plain modules then do.

In evaluation, and in training: with the same seed, and to the same gradients.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.kernels.changes import NORMED, OF_A_MODEL, OF_A_WEIGHT, Change, Changed, Roles, of_a_layer, ramp, replace
from tests.kernels.test_matrix import IMAGES, ROLES, check, distance, fast, needs, plain
from torch import Tensor, nn

Layer = Callable[[Any], Any]


def setting(**values: Any) -> Layer:
    def change(layer: Any) -> None:
        for name, value in values.items():
            setattr(layer, name, value)

    return change


def of(role: str, change: Layer) -> Change:
    return of_a_layer(role, change)


def swapped(role: str, new: Callable[[Any], nn.Module]) -> Change:
    return lambda model, roles: replace(model, roles[role], new(model.get_submodule(roles[role])))


def above(role: str) -> Callable[[nn.Module, Roles], Any]:
    """The module that holds the layer."""
    return lambda model, roles: model.get_submodule(roles[role].rpartition(".")[0])


def upon(find: Callable[[nn.Module, Roles], Any], change: Layer) -> Change:
    def changed(model: nn.Module, roles: Roles) -> None:
        change(find(model, roles))

    return changed


def without_bias(layer: Any) -> None:
    layer.bias = None


def with_bias(layer: Any) -> None:
    layer.bias = nn.Parameter(torch.linspace(-1, 1, layer.out_channels, dtype=layer.weight.dtype))


def wider(model: nn.Module, roles: Roles) -> None:
    """Twice the hidden channels."""
    torch.manual_seed(5)
    fc1, fc2 = (model.get_submodule(roles[role]) for role in ("fc1", "fc2"))
    if isinstance(fc1, nn.Conv2d):
        new: tuple[nn.Module, nn.Module] = nn.Conv2d(8, 64, 1), nn.Conv2d(64, 8, 1)
    else:
        new = nn.Linear(8, 64), nn.Linear(64, 8)
    dtype = next(fc2.parameters()).dtype
    replace(model, roles["fc1"], new[0].to(dtype))
    replace(model, roles["fc2"], new[1].to(dtype))


def larger_kernel(layer: nn.Conv2d) -> nn.Module:
    torch.manual_seed(5)
    return nn.Conv2d(8, 8, 7, padding=3, groups=8, bias=False).to(layer.weight.dtype)


def another(layer: Any) -> nn.Module:
    """The same kind of layer with other weights."""
    new = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.copy_(ramp(torch.ones_like(parameter)))
    return new


def strided(layer: Any) -> None:
    """Other weights, in another order of memory."""
    weight = 2 * layer.weight.detach()
    layer.weight = nn.Parameter(weight.transpose(0, -1).contiguous().transpose(0, -1))


def shared(model: nn.Module, roles: Roles) -> None:
    """One layer in two places."""
    replace(model, roles["proj"], nn.Sequential(*[model.get_submodule(roles["proj"])] * 2))


def levels(model: nn.Module, roles: Roles) -> Any:
    return model.get_submodule(roles["conv"].rsplit(".", 2)[0])


def first_of_the_weight(*index: Any) -> Layer:
    """A weight that no longer has the shape the layer says."""
    return lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach()[index]))


def gammas(change: Callable[[nn.Module, str], Any]) -> Change:
    """Of the scales per channel of a block of ours."""

    def changed(model: nn.Module, roles: Roles) -> None:
        block = above("norm1")(model, roles)
        for name in ("gamma_1", "gamma_2"):
            change(block, name)

    return changed


def tanh_gelu(model: nn.Module, roles: Roles) -> None:
    """The two GELUs differ most at 2: the layers around them are larger."""
    for role in ("fc1", "fc2"):
        with torch.no_grad():
            model.get_submodule(roles[role]).weight.mul_(4)  # type: ignore[operator, union-attr]
    replace(model, roles["act"], nn.GELU(approximate="tanh"))


def hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda _module, _inputs, output: ramp(output))


MODULATION, BLOCK, MLP, EMBED = above("f"), above("norm1"), above("fc1"), above("embed")

# Of every kind of model.
ATTRIBUTES: dict[str, Change] = {
    **{f"eps of {norm}": of(norm, setting(eps=3.0)) for norm in ("norm1", "norm2")},
    "dilation": of("conv", setting(dilation=(2, 2), padding=(2, 2))),
    "stride": of("conv", setting(stride=(2, 2))),
    "padding": of("conv", setting(padding=(0, 0))),
    "padding mode": of("conv", setting(padding_mode="reflect", _reversed_padding_repeated_twice=[1] * 4)),
    "stride of a projection": of("h", setting(stride=(2, 2))),
    "groups": of("conv", setting(groups=1)),
    "stride of the stem": of("embed", setting(stride=(2, 2))),
    "padding of the stem": of("embed", setting(padding=(2, 2))),
    "another gelu": tanh_gelu,
    "another activation": swapped("act", lambda layer: nn.ReLU()),
    **{f"no bias: {role}": of(role, without_bias) for role in ("f", "h", "proj", "fc1", "fc2", "embed")},
    **{f"no bias: {norm}": of(norm, without_bias) for norm in ("norm1", "norm2")},
    **{f"no weight: {norm}": of(norm, setting(weight=None)) for norm in ("norm1", "norm2")},
    "a bias of a kernel": of("conv", with_bias),
    "wider": wider,
    "a larger kernel": swapped("conv", larger_kernel),
    **{f"another: {role}": swapped(role, another) for role in ("f", "h", "proj", "conv", "fc1", "norm1", "embed")},
    **{f"strides of {role}": of(role, strided) for role in ("f", "h", "proj", "conv", "fc1", "fc2", "embed")},
    **{f"wrapped: {role}": swapped(role, Changed) for role in ("f", "h", "conv", "fc2", "norm2", "embed")},
    **{f"in sequence: {role}": swapped(role, lambda m: nn.Sequential(m, nn.Tanh())) for role in ("fc1", "h", "proj")},
    "in two places": shared,
    "more levels": upon(levels, lambda m: m.append(copy.deepcopy(m[0]))),
    "fewer levels": upon(levels, lambda m: m.__delitem__(1)),
    "a longer level": upon(above("conv"), lambda m: m.append(nn.Tanh())),
    "no modulation": upon(MODULATION, lambda m: setattr(m, "forward", lambda x: 0.5 * x)),
    "a hook on a modulation": upon(MODULATION, hooked),
    "a pre-hook on a modulation": upon(MODULATION, lambda m: m.register_forward_pre_hook(lambda _m, i: (ramp(i[0]),))),
    "a hook on an MLP": upon(MLP, hooked),
    "a forward of an MLP": upon(MLP, lambda m: setattr(m, "forward", lambda x, of=m.forward: ramp(of(x)))),
    "a hook on a level": upon(above("conv"), hooked),
    "a layer in double precision": of("fc1", lambda m: m.double()),
    "a layer in bfloat16": of("proj", lambda m: m.bfloat16()),
    "a kernel in double precision": of("conv", lambda m: m.double()),
    "a norm in double precision": of("norm1", lambda m: m.double()),
    "an empty weight": of("fc1", first_of_the_weight(slice(None), slice(0))),
    "half a weight": of("fc1", first_of_the_weight(slice(16))),
    "a norm of fewer channels": of("norm1", first_of_the_weight(slice(4))),
    "a kernel of another size": of("conv", first_of_the_weight(..., slice(1, 2), slice(1, 2))),
    "gammas in place": gammas(lambda m, name: torch.no_grad()(getattr(m, name).mul_)(3)),
    "other gammas": gammas(lambda m, name: setattr(m, name, nn.Parameter(3 * getattr(m, name).detach()))),
    "no gammas": gammas(lambda m, name: setattr(m, name, None)),
    "gammas parametrized": gammas(
        lambda m, name: nn.utils.parametrize.register_parametrization(m, name, Changed(nn.Identity()))
    ),
    "gammas pruned": gammas(lambda m, name: nn.utils.prune.l1_unstructured(m, name, 0.7)),
    "gammas in double precision": gammas(lambda m, name: setattr(m, name, nn.Parameter(3 * getattr(m, name).double()))),
}

# Of ours.
OURS: dict[str, Change] = {
    "post norm": upon(BLOCK, lambda m: setattr(m, "post_norm", not m.post_norm)),
    "normalize": upon(MODULATION, lambda m: setattr(m, "normalize", not m.normalize)),
    "fewer levels said": upon(MODULATION, setting(levels=1)),
    "another drop path": upon(BLOCK, lambda m: setattr(m, "drop_path", Changed(m.drop_path))),
    "a hook on a drop path": upon(BLOCK, lambda m: hooked(m.drop_path)),
    "a norm inside": upon(MODULATION, lambda m: setattr(m, "ln", nn.LayerNorm(8, eps=2.0, dtype=m.f.weight.dtype))),
    "padding of the image": upon(EMBED, lambda m: setattr(m, "pad_to_stride", True)),
    "no norm of the stem": upon(EMBED, setting(norm=None)),
    "eps of the stem": upon(EMBED, lambda m: setattr(m.norm, "eps", 3.0)),
    "a hook on the stem's norm": upon(EMBED, lambda m: hooked(m.norm)),
    "dropout of an MLP, in evaluation": upon(MLP, lambda m: (setattr(m.drop, "p", 1.0), m.drop.train())),
    "dropout of a modulation, in evaluation": upon(
        MODULATION, lambda m: (setattr(m.proj_drop, "p", 1.0), m.proj_drop.train())
    ),
    "another dropout": upon(MODULATION, lambda m: setattr(m, "proj_drop", Changed(nn.Identity()))),
    "another MLP": upon(BLOCK, lambda m: setattr(m, "mlp", nn.Linear(8, 8, dtype=m.norm1.weight.dtype))),
}
SAME_NUMBERS = ("padding of the image", "more levels")  # of images of this size; of transformers' modulation
CELLS = [
    (name, kind, state)
    for name in ATTRIBUTES | OURS
    for kind in (("ours, large",) if "gamma" in name else ROLES)
    for state in (("fused", "optimized") if "ours" in kind else ("fused",))
    if "ours" in kind or name not in OURS
]


@pytest.mark.parametrize(("name", "kind", "state"), CELLS)
def test_attributes_and_other_layers(name: str, kind: str, state: str) -> None:
    check(kind, state, (ATTRIBUTES | OURS)[name], changes_numbers=name not in SAME_NUMBERS)


def train(model: Any, images: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Output and gradients of one pass in training."""
    model.train()
    torch.manual_seed(7)
    x = images.clone().requires_grad_()
    output = model(x)
    logits = getattr(output, "logits", output)
    logits.square().sum().backward()
    return logits.detach(), {"image": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def frozen(*roles_of: str) -> Change:
    def change(model: nn.Module, roles: Roles) -> None:
        for role in roles_of:
            model.get_submodule(roles[role]).requires_grad_(False)

    return change


def gradient_hooks(model: nn.Module, roles: Roles) -> None:
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: 2 * grad)


def accumulation_hooks(model: nn.Module, roles: Roles) -> None:
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", 2 * p.grad))


def backward_hooks(model: nn.Module, roles: Roles) -> None:
    for role in ("f", "h", "conv", "fc1", "norm2"):
        model.get_submodule(roles[role]).register_full_backward_hook(lambda _m, grads, _g: (3 * grads[0],))


def backward_pre_hooks(model: nn.Module, roles: Roles) -> None:
    for role in ("f", "proj", "conv", "fc2", "norm1"):
        model.get_submodule(roles[role]).register_full_backward_pre_hook(lambda _m, grads: (3 * grads[0],))


def dropping(model: nn.Module, roles: Roles) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
        if hasattr(module, "rate"):
            module.rate = 0.4


def partly_evaluating(model: nn.Module, roles: Roles) -> None:
    dropping(model, roles)
    model.get_submodule(roles["fc1"].rpartition(".")[0]).train = lambda mode=True: None  # type: ignore[method-assign]


def memory_saved(model: nn.Module, roles: Roles) -> None:
    for module in model.modules():
        if hasattr(module, "recompute"):
            module.recompute = True


IN_TRAINING: dict[str, Change] = {
    "nothing": lambda model, roles: None,
    **{f"frozen: {role}": frozen(role) for role in ("f", "h", "proj", "conv", "fc1", "fc2", "norm1", "norm2")},
    "frozen: all but a norm": frozen("f", "h", "proj", "conv", "fc1", "fc2", "norm1", "embed"),
    "frozen: biases": lambda m, r: [p.requires_grad_(False) for n, p in m.named_parameters() if "bias" in n],
    "frozen: weights": lambda m, r: [p.requires_grad_(False) for n, p in m.named_parameters() if "weight" in n],
    "frozen: everything": lambda m, r: m.requires_grad_(False),
    "hooks on gradients": gradient_hooks,
    "hooks after accumulation": accumulation_hooks,
    "backward hooks": backward_hooks,
    "backward pre-hooks": backward_pre_hooks,
    "dropping": dropping,
    "partly evaluating": partly_evaluating,
    "memory saved": memory_saved,
    **{
        f"{role}: {name}": of(role, change)
        for role in ("f", "conv", "fc1", "norm2")
        for name, change in (OF_A_WEIGHT if role == "norm2" else OF_A_WEIGHT | NORMED).items()
        if not (role == "conv" and "bias" in name)
    },
    **{
        name: OF_A_MODEL[name]
        for name in ("load_state_dict, assign", "LoRA", "LoRA of convolutions", "LoRA, merged", "DoRA")
    },
    **{
        name: OF_A_MODEL[name]
        for name in ("a layer replaced", "a norm replaced", "eps", "deepcopy, then", "in double precision")
    },
    **{
        name: ATTRIBUTES[name]
        for name in ("no bias: f", "no bias: fc2", "no bias: norm1", "a bias of a kernel", "dilation", "in two places")
    },
    **{name: ATTRIBUTES[name] for name in ("strides of fc1", "strides of conv", "another gelu")},
}


@pytest.mark.parametrize("kind", ROLES)
@pytest.mark.parametrize("name", IN_TRAINING)
def test_gradients_and_outputs_in_training(name: str, kind: str) -> None:
    needs(name)
    if name == "norm2: another class" and kind == "timm":
        pytest.skip("timm's norms have a class of their own")
    results, errors = [], []
    for model in (plain(kind), fast(kind, "fused")):
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            changed = IN_TRAINING[name](model, ROLES[kind])
        try:
            dtype = torch.float64 if "double" in name else torch.float32
            results.append(train(changed if isinstance(changed, nn.Module) else model, IMAGES.to(dtype)))
        except RuntimeError as error:
            errors.append(error)
    if errors:
        assert len(errors) == 2, errors
        return
    (expected, theirs), (found, ours) = results
    assert distance(found, expected) < 1e-4
    assert ours.keys() == theirs.keys()
    for key, grad in theirs.items():
        assert (grad is None) == (ours[key] is None), key
        if grad is not None:
            assert float((grad - ours[key]).abs().max()) <= 1e-3 * float(grad.abs().max()) + 1e-5, key
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in theirs.values())
