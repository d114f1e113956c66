"""The pyramid: levels, strides, sizes, and the two ways to make more levels than the backbone has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.errors import ConfigError
from focalnet.models.backbone import FocalNetConfig
from focalnet.nn.feature_info import FeatureInfo
from focalnet.nn.fpn import FPNConfig

MAPS = (FeatureInfo("s4", 4, 4), FeatureInfo("s8", 8, 8), FeatureInfo("s16", 16, 16))
BACKBONE = FocalNetConfig(embed_dim=4, depths=(1, 1, 1, 1), pad_to_stride=True)


@pytest.mark.parametrize("extra", ["pool", "conv"])
def test_levels_beyond_the_backbone(extra: str) -> None:
    fpn = FPNConfig(channels=6, levels=5, extra=extra).build(MAPS)
    assert [info.name for info in fpn.feature_info] == ["s4", "s8", "s16", "s32", "s64"]
    maps = {info.name: torch.randn(2, info.channels, 32 // info.stride * 4, 20) for info in MAPS}
    outputs = fpn(maps)
    assert list(outputs) == [info.name for info in fpn.feature_info]
    assert all(x.shape[1] == 6 for x in outputs.values())
    if extra == "pool":
        torch.testing.assert_close(outputs["s32"], torch.nn.functional.max_pool2d(outputs["s16"], 1, 2))
        torch.testing.assert_close(outputs["s64"], torch.nn.functional.max_pool2d(outputs["s32"], 1, 2))
    else:
        torch.testing.assert_close(outputs["s32"], fpn.fpn_convs[3](outputs["s16"]))


@settings(max_examples=10)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_odd_sizes(height: int, width: int) -> None:
    backbone = BACKBONE.build()
    fpn = FPNConfig(channels=4).build(backbone.feature_info)
    with torch.no_grad():
        outputs = fpn(backbone(torch.randn(1, 3, height, width)))
    for info in fpn.feature_info[:4]:
        assert outputs[info.name].shape[2:] == (-(-height // info.stride), -(-width // info.stride))


def test_values_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="levels=2 cannot take the backbone's 3 feature maps"):
        FPNConfig(levels=2).build(MAPS)
    with pytest.raises(ConfigError, match="channels=0"):
        FPNConfig(channels=0)
    with pytest.raises(ConfigError, match='extra="deconv"'):
        FPNConfig(extra="deconv")  # type: ignore[arg-type]
