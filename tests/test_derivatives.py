"""Derivatives of any order and direction, and batches by ``torch.func``: kernels equal PyTorch's own operations.

The truth is the same network on the plain backend, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import focalnet
from focalnet.errors import FrozenError
from focalnet.kernels import backend, cpu
from focalnet.models import ClassifierConfig
from focalnet.models.backbone import FocalNetConfig
from focalnet.samples import Batch, LabelMapTarget
from tests.models import small

pytestmark = pytest.mark.skipif(not cpu.built(), reason="without the CPU kernels everything is PyTorch's own")


def trunk(**options: Any) -> FocalNetConfig:
    return FocalNetConfig(
        **{"embed_dim": 8, "depths": (1, 1), "focal_levels": (2, 2), "focal_windows": (3, 3)} | options
    )


def classifier(**options: Any) -> nn.Module:
    return ClassifierConfig(backbone=trunk(**options), num_classes=4).build()


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"layer_scale": 0.5, "normalize_modulator": True},
    "post-norm": {"post_norm": True, "post_norm_in_modulation": True, "overlapped": True},
}


def scalar(model: nn.Module, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    out = model(x) if parameters is None else functional_call(model, parameters, (x,))
    return out.square().sum() if out.ndim else out


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def per_sample(model: nn.Module, x: Tensor) -> Any:
    one = grad(lambda p, image: scalar(model, image[None], p))
    return vmap(one, (None, 0))(parameters(model), x)


def forward_over_reverse(model: nn.Module, x: Tensor, v: Tensor) -> Any:
    return jvp(grad(lambda x: scalar(model, x)), (x,), (v,))


def dual(model: nn.Module, x: Tensor, v: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, v))).tangent


def dual_parameters(model: nn.Module, x: Tensor, v: Tensor) -> Any:
    with forward_ad.dual_level():
        tangents = {name: forward_ad.make_dual(p, p.sin()) for name, p in parameters(model).items()}
        return forward_ad.unpack_dual(functional_call(model, tangents, (x,))).tangent


def dual_backward(model: nn.Module, x: Tensor, v: Tensor) -> Any:
    """Tangents that meet a graph only on its way back."""
    out = scalar(model, x.requires_grad_())
    with forward_ad.dual_level():
        up = forward_ad.make_dual(torch.ones_like(out), torch.full_like(out, 3.0))
        (gradient,) = torch.autograd.grad(out, x, up)
        return forward_ad.unpack_dual(gradient).tangent


def penalty(model: nn.Module, x: Tensor, v: Tensor) -> Any:
    (gradient,) = torch.autograd.grad(scalar(model, x.requires_grad_()), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), list(model.parameters()), allow_unused=True)


def batched_gradients(model: nn.Module, x: Tensor, v: Tensor) -> Any:
    out = model(x.requires_grad_()).flatten()
    return torch.autograd.grad(out, x, torch.eye(len(out), dtype=out.dtype), is_grads_batched=True)


def without_history(compute: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: torch.no_grad()(compute)(*arguments)


OF_IMAGES: dict[str, Callable[..., Any]] = {
    "jvp": lambda m, x, v: jvp(m, (x,), (v,)),
    "vjp": lambda m, x, v: vjp(m, x)[1](torch.ones_like(m(x))),
    "jacrev": lambda m, x, v: jacrev(m)(x),
    "jacfwd": lambda m, x, v: jacfwd(lambda t: m(x + t * v))(x.new_tensor(0.1)),
    "hessian": lambda m, x, v: hessian(lambda t: scalar(m, x + t[0] * v + t[1] * v.sin()))(x.new_tensor([0.1, 0.2])),
    "hvp": lambda m, x, v: torch.autograd.functional.hvp(lambda x: scalar(m, x), x, v),
    "vhp": lambda m, x, v: torch.autograd.functional.vhp(lambda x: scalar(m, x), x, v),
    "grad of grad": lambda m, x, v: grad(lambda x: grad(lambda x: scalar(m, x))(x).square().sum())(x),
    "forward over reverse": forward_over_reverse,
    "functional_call": lambda m, x, v: functional_call(m, parameters(m), (x,)),
    "grad of parameters": lambda m, x, v: grad(lambda p: scalar(m, x, p))(parameters(m)),
    "dual numbers": dual,
    "dual parameters": dual_parameters,
    "dual backward": dual_backward,
    "gradient penalty": penalty,
}
OF_BATCHES: dict[str, Callable[..., Any]] = {
    "vmap": lambda m, x, v: vmap(lambda image: m(image[None]))(x),
    "gradients of each sample": lambda m, x, v: per_sample(m, x),
    "batched gradients": batched_gradients,
    "jacobian, vectorized": lambda m, x, v: torch.autograd.functional.jacobian(m, x, vectorize=True),
}
WITHOUT_HISTORY = ["jvp", "vjp", "dual numbers", "dual parameters", "vmap"]
WAYS = (
    OF_IMAGES
    | OF_BATCHES
    | {f"{name}, no_grad": without_history((OF_IMAGES | OF_BATCHES)[name]) for name in WITHOUT_HISTORY}
)


def compare(way: Callable[..., Any], model: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    with backend.use("eager"):
        truth = way(copy.deepcopy(model).double(), x.clone(), v)
    ours = way(model, x.float(), v.float())
    pairs = list(zip(*(map(torch.utils._pytree.tree_leaves, (ours, truth))), strict=True))
    pairs = [(a, None if b is None else b.detach()) for a, b in pairs]
    assert pairs
    largest = max(float(b.norm()) for _, b in pairs if b is not None)
    assert largest > 0
    for a, b in pairs:
        assert (a is None) == (b is None)
        if b is not None:
            assert (a.detach().double() - b).norm() <= 1e-5 * max(float(b.norm()), 1e-2 * largest)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_classifier(way: str, shape: str) -> None:
    torch.manual_seed(0)
    compare(WAYS[way], classifier(**SHAPES[shape]).eval(), (2, 3, 24, 32))


@pytest.mark.parametrize("way", ["hvp", "gradient penalty", "grad of parameters", "batched gradients", "dual backward"])
@pytest.mark.parametrize("save_memory", [False, True])
def test_in_training(way: str, save_memory: bool) -> None:
    torch.manual_seed(0)
    model = classifier()
    focalnet.optimize(model, for_="training", save_memory=save_memory)
    compare(WAYS[way], model, (2, 3, 24, 32))


@pytest.mark.parametrize("way", ["jvp, no_grad", "dual numbers, no_grad", "vmap, no_grad", "hvp", "gradient penalty"])
def test_a_frozen_model_refuses(way: str) -> None:
    model, x = classifier(), torch.randn(2, 3, 24, 32)
    focalnet.optimize(model)
    with pytest.raises(FrozenError, match=r"undo\(\)"):
        WAYS[way](model, x, x.cos())


def losses(model: Any, images: Tensor) -> Tensor:
    """What a dense network is trained on, for two images with two objects and one."""
    torch.manual_seed(0)  # for samplers and random points
    targets: Any = [small.target(2), small.target(1)]
    if model.config.output == "semantic":
        labels = torch.zeros(64, 96, dtype=torch.long)
        labels[20:50, 10:70] = 2
        targets = [LabelMapTarget(labels)] * 2
    terms = model.loss(Batch(images, small.SIZES, targets, []))
    return torch.stack(list(terms.values())).sum()


DENSE: dict[str, Callable[[], Any]] = {
    **{
        name: (lambda name=name: small.config(name))
        for name in ("mask_rcnn", "cascade_mask_rcnn", "atss", "sparse_rcnn")
    },
    "upernet": small.upernet,
    "mask2former": small.mask2former,
}


def with_plain_attention(compute: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's fast attention has no second derivative, and says so; ours needs no such help."""
    return lambda *arguments: sdpa_kernel(SDPBackend.MATH)(compute)(*arguments)


OF_LOSSES: dict[str, Callable[..., Any]] = {
    "jvp": lambda f, x, v: jvp(f, (x,), (v,)),
    "jvp, no_grad": without_history(lambda f, x, v: jvp(f, (x,), (v,))),
    "hvp": with_plain_attention(lambda f, x, v: torch.autograd.functional.hvp(f, x, v)),
    "grad": lambda f, x, v: grad(f)(x),
    "forward over reverse": lambda f, x, v: jvp(grad(f), (x,), (v,)),
}


# So steep a second derivative that with plain operations, too, an input that differs by a single rounding moves it by
# 0.5e-4 to 1.1e-4 (four seeds, 2026-11-28).
TOLERANCES = {("hvp", "sparse_rcnn"): 2e-4}
# What PyTorch itself cannot differentiate, and says so: the loss of Mask2Former samples masks by ``grid_sample``.
REFUSED = {(way, "mask2former") for way in ("jvp", "jvp, no_grad", "forward over reverse")}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("way", OF_LOSSES)
def test_losses_of_dense_networks(way: str, name: str) -> None:
    torch.manual_seed(0)
    model = DENSE[name]().build().eval()
    images, v = small.images(), torch.randn(2, 3, 64, 96)
    if (way, name) in REFUSED:
        with pytest.raises(NotImplementedError, match="grid_sampler_2d"):
            OF_LOSSES[way](lambda x: losses(model, x), images, v)
        return
    with backend.use("eager"):
        truth = OF_LOSSES[way](lambda x: losses(model, x), images, v)
    ours = OF_LOSSES[way](lambda x: losses(model, x), images, v)
    tolerance = TOLERANCES.get((way, name), 1e-5)
    for a, b in zip(*(map(torch.utils._pytree.tree_leaves, (ours, truth))), strict=True):
        assert b.norm() > 0
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("way", ["jvp", "jvp, no_grad", "dual numbers", "hvp", "grad"])
def test_outputs_of_dense_networks(way: str, name: str) -> None:
    torch.manual_seed(0)
    model: Any = DENSE[name]().build().eval()
    images, v = small.images(), torch.randn(2, 3, 64, 96)

    def outputs(x: Tensor) -> Tensor:
        found = model(x, small.SIZES) if model.takes_sizes else model(x)
        leaves = [leaf for leaf in _tensors(found) if leaf.is_floating_point()]
        return torch.cat([leaf.flatten() for leaf in leaves]).tanh().square().mean()

    compute = (OF_LOSSES | {"dual numbers": lambda f, x, v: dual(f, x, v)})[way]
    with backend.use("eager"):
        truth = compute(outputs, images, v)
    for a, b in zip(*(map(torch.utils._pytree.tree_leaves, (compute(outputs, images, v), truth))), strict=True):
        assert b.norm() > 0
        assert (a - b).norm() <= TOLERANCES.get((way, name), 1e-5) * b.norm()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "__dataclass_fields__"):
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    if isinstance(value, dict):
        value = value.values()
    return [leaf for part in value or () for leaf in _tensors(part)] if not isinstance(value, int | float | str) else []
