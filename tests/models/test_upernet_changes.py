"""UPerNet with changed layers: its two wide convolutions are computed in parts only while nobody has touched them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from focalnet.models.upernet import network
from tests.models.small import upernet


class Wrapped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Any:  # as adapters have it
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + 1
        return out


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def replaced(layer: Any) -> None:
    layer.conv = Wrapped(layer.conv)


def folded(layer: Any) -> None:
    layer.conv, layer.bn = fuse_conv_bn_eval(layer.conv, layer.bn), nn.Identity()


def with_bias(layer: Any) -> None:
    layer.conv.bias = nn.Parameter(torch.ones(layer.conv.out_channels))


def dilated(layer: Any) -> None:
    layer.conv.dilation = layer.conv.padding = (2, 2)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "replaced": replaced,
    "batch norm folded": folded,
    "with a bias": with_bias,
    "dilated": dilated,
    "another padding": lambda layer: setattr(layer.conv, "padding_mode", "circular"),
    "hooked": lambda layer: layer.conv.register_forward_hook(lambda _module, _inputs, out: out + 1),
    "hooked as a whole": lambda layer: layer.register_forward_hook(lambda _module, _inputs, out: out + 1),
    "hooked before": lambda layer: layer.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,)),
    "parametrized": lambda layer: parametrize.register_parametrization(layer.conv, "weight", Twice()),
    "patched": lambda layer: setattr(layer.conv, "forward", lambda x, of=layer.conv.forward: of(x) + 1),
}


def model() -> Any:
    torch.manual_seed(0)
    found = upernet().build().eval()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("layer", ["bottleneck", "fpn_bottleneck"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_wide_convolution_counts(name: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    changed = model()
    before = changed(images).logits.detach()
    truth = copy.deepcopy(changed)
    for one in (changed, truth):
        CHANGES[name](getattr(one.decode_head, layer))
    found = changed(images).logits.detach()
    monkeypatch.setattr(network.submodules, "changed_from_outside", lambda: True)  # calls every layer
    expected = truth(images).logits.detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if name == "batch norm folded":
        torch.testing.assert_close(found, before, rtol=1e-3, atol=1e-4)
    else:
        assert (found - before).abs().max() > 1e-3


def test_hooks_keep_what_a_norm_computed() -> None:
    changed, kept = model(), []
    norm = changed.decode_head.fpn_convs[0].bn
    norm.register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    changed(torch.randn(1, 3, 64, 96))
    assert kept[0].min() < 0
