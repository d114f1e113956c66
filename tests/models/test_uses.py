"""Ways to use a classifier or backbone that other libraries' tools take: the plain module's numbers, or one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import focalnet
from focalnet.errors import ExportError, InputError
from focalnet.kernels.fuse import fuse
from focalnet.models import ClassifierConfig
from focalnet.models.backbone import FocalNetConfig

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SHAPES: list[dict[str, Any]] = [
    {},
    {"overlapped": True, "post_norm": True, "layer_scale": 0.5},
    {"pad_to_stride": True},
]


def config(**options: Any) -> FocalNetConfig:
    return FocalNetConfig(embed_dim=8, depths=(1, 1), focal_levels=(2, 2), focal_windows=(3, 3), **options)


def classifier(**options: Any) -> Any:
    torch.manual_seed(0)
    model = ClassifierConfig(backbone=config(**options), num_classes=5).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("options", SHAPES)
def test_a_graph_of_torch_fx(options: dict[str, Any]) -> None:
    model = classifier(**options)
    graph = torch.fx.symbolic_trace(model)
    for images in (IMAGES, IMAGES[:1], torch.randn(3, 3, 40, 24)):
        torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)
    names = {"layers.0.blocks.0": "first", "layers.1.blocks.0": "last"}
    features = create_feature_extractor(model, names)(IMAGES)
    for found, expected in zip(features.values(), model.forward_stages(IMAGES), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_graph_of_a_backbone() -> None:
    backbone = config().build().eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(backbone)(IMAGES), backbone(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [classifier(), config().build()])
def test_scripting_names_the_way_out(model: nn.Module) -> None:
    with pytest.raises(ExportError, match=r"torch.jit.script .* torch.jit.trace"):
        torch.jit.script(model)


class Doubled(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = 2 * self.layer(x)
        return out


def by_layers(embed: Any) -> nn.Module:
    class ChannelsLast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    return nn.Sequential(embed.proj, ChannelsLast(), embed.norm)


@pytest.mark.parametrize("fused", [True, False])
def test_stem_and_downsampling_replaced(fused: bool) -> None:
    """By modules that have neither a weight nor what a patch embedding has."""
    model = classifier()
    expected = model(IMAGES)
    other = copy.deepcopy(model) if fused else fuse(copy.deepcopy(model), undo=True)
    for holder, name in ((other, "patch_embed"), (other.layers[0], "downsample")):
        setattr(holder, name, by_layers(getattr(holder, name)))
    torch.testing.assert_close(other(IMAGES), expected, rtol=1e-4, atol=1e-5)
    for embed in (model.patch_embed, model.layers[0].downsample):
        embed.proj = Doubled(embed.proj)
    with torch.no_grad():
        for embed in (other.patch_embed, other.layers[0].downsample):
            embed[0].weight.mul_(2)
            embed[0].bias.mul_(2)
    torch.testing.assert_close(model(IMAGES), other(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool])
def test_images_of_another_dtype_than_the_weights(dtype: torch.dtype) -> None:
    model, name = classifier(), str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=f"the input of this FocalNet is {name}, its weights are float32"):
        model(IMAGES.to(dtype))


def test_images_of_another_dtype_where_something_converts_them() -> None:
    model = classifier()
    expected, pixels = model(IMAGES.round()), IMAGES.round().to(torch.int8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(IMAGES.bfloat16()).isfinite().all()
    handle = model.patch_embed.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    torch.testing.assert_close(model(pixels), expected)
    handle.remove()
    model.patch_embed.proj.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    torch.testing.assert_close(model(pixels), expected)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES[:1, :1].expand(3, 3, -1, -1),
        IMAGES.transpose(2, 3),
        IMAGES.repeat(1, 2, 2, 2)[:, 1:4, ::2, ::2],
        IMAGES[:0],
        torch.ones(1, 3, 8, 264).cumsum(-1) / 99,
    ],
    ids=["expanded", "transposed", "strided", "none", "a strip"],
)
def test_images_in_any_memory(images: Tensor) -> None:
    model = classifier()
    expected = fuse(copy.deepcopy(model), undo=True)(images.clone()).detach()
    torch.testing.assert_close(model(images).detach(), expected, rtol=1e-4, atol=1e-5)
    focalnet.optimize(model)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
