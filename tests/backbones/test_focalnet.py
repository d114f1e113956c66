"""The backbone's own promises: shapes, sizes, options, freezing, checkpointing, compilers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet import FocalNet, FocalNetConfig, create_model
from focalnet.errors import ConfigError, InputError

TOY = FocalNetConfig(embed_dim=8, depths=(1, 2, 1), focal_levels=(2, 1, 3), focal_windows=(3, 5, 3), mlp_ratio=2.0)
TOY_VARIANTS = {
    "plain": TOY,
    "overlapped, padded": dataclasses.replace(TOY, overlapped=True, pad_to_stride=True),
    "post-norm, scaled": dataclasses.replace(TOY, post_norm=True, layer_scale=0.1, post_norm_in_modulation=True),
    "isotropic": FocalNetConfig(embed_dim=8, depths=(2,), focal_levels=(3,), focal_windows=(3,), patch_size=8),
    "global context only": dataclasses.replace(TOY, focal_levels=(0, 0, 0)),
}
toys = pytest.mark.parametrize("config", TOY_VARIANTS.values(), ids=TOY_VARIANTS)


@toys
def test_maps_are_as_feature_info_says(config: FocalNetConfig) -> None:
    model = config.build().eval()
    maps = model(torch.randn(2, 3, 64, 96))
    for info, (name, value) in zip(model.feature_info, maps.items(), strict=True):
        assert (name, tuple(value.shape)) == (info.name, (2, info.channels, 64 // info.stride, 96 // info.stride))
        assert value.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40)
@given(
    height=st.integers(16, 75),
    width=st.integers(16, 75),
    channels=st.integers(1, 5),
    overlapped=st.booleans(),
    padded=st.booleans(),
)
def test_any_size_and_channels(height: int, width: int, channels: int, overlapped: bool, padded: bool) -> None:
    config = dataclasses.replace(TOY, in_chans=channels, overlapped=overlapped, pad_to_stride=padded)
    model = config.build().eval()
    with torch.no_grad():
        maps = list(model(torch.randn(1, channels, height, width)).values())
    size = (height, width)
    for embed, value in zip([model.patch_embed, *(s.downsample for s in model.stages[:-1])], maps, strict=True):
        size = embed.map_size(*size)
        assert tuple(value.shape[2:]) == size
        assert value.isfinite().all()


@toys
def test_macs_equal_a_count_with_hooks(config: FocalNetConfig) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = config.build().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 61, 83))
    assert model.macs(61, 83) == counter.get_total_flops() // 2


def test_macs_of_what_is_not_the_configured_network_are_refused() -> None:
    model = TOY.build()
    for size in ((0, 32), (32, -1), (32.5, 32)):
        with pytest.raises(InputError, match="whole numbers, 1 or more"):
            model.macs(*size)
    model.patch_embed.proj = torch.nn.Conv2d(1, 8, 4, 4)
    with pytest.raises(ConfigError, match="layers of this model were replaced"):
        model.macs(32, 32)
    model.patch_embed = torch.nn.Conv2d(3, 8, 4, 4)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="layers of this model were replaced"):
        model.macs(32, 32)


@toys
def test_gradients_reach_every_parameter(config: FocalNetConfig) -> None:
    model = config.build()
    sum(value.square().sum() for value in model(torch.randn(2, 3, 32, 40)).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@toys
def test_gradient_checkpointing_changes_nothing(config: FocalNetConfig) -> None:
    model, images = config.build(), torch.randn(2, 3, 32, 32)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        sum(value.sum() for value in model(images).values()).backward()  # type: ignore[union-attr]
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(), plain)


def test_freezing_survives_train() -> None:
    model = dataclasses.replace(TOY, drop_path_rate=0.5, drop_rate=0.2).build().freeze(1).train()
    frozen = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad
    }
    assert frozen == {"patch_embed.proj", "patch_embed.norm", "layers.0"}
    assert not model.patch_embed.training
    assert not model.stages[0].training
    assert model.stages[1].training
    with pytest.raises(ConfigError, match="has 3"):
        model.freeze(4)


def test_out_indices_and_norms() -> None:
    model = dataclasses.replace(TOY, out_indices=(2, 0), out_norms=False).build()
    assert list(model(torch.randn(1, 3, 32, 32))) == ["s4", "s16"]
    assert not [name for name in model.state_dict() if name.startswith("norm")]
    assert [name for name in TOY.build().state_dict() if name.startswith("norm")][::2] == [
        f"norm{i}.weight" for i in range(3)
    ]


def test_stages_that_no_feature_map_needs_do_not_run() -> None:
    model = dataclasses.replace(TOY, out_indices=(0, 1)).build()
    model.stages[2].register_forward_hook(lambda *_: pytest.fail("the last stage ran"))
    x = torch.randn(1, 3, 32, 32)
    maps = model(x)
    expected = TOY.build()
    expected.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(maps, {name: expected(x)[name] for name in ("s4", "s8")}, rtol=0, atol=0)
    sum(feature_map.square().mean() for feature_map in maps.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)] == []


def test_config_goes_through_plain_dicts() -> None:
    config = dataclasses.replace(TOY, out_indices=(0, 2), layer_scale=1e-4)
    assert FocalNetConfig.from_dict(dataclasses.asdict(config)) == config


def test_drop_path_keeps_the_mean() -> None:
    from focalnet.nn.block import DropPath

    torch.manual_seed(0)
    x = torch.ones(20_000, 1, 1, 1)
    dropped = DropPath(0.3).train()(x)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert DropPath(0.3).eval()(x) is x


@pytest.mark.parametrize(
    "options",
    [
        {"drop_path_rate": 1.0},
        {"drop_rate": 1.0},
        {"focal_levels": (2, 0, 1), "focal_windows": (3, 0, 5)},
        {"embed_dim": 5, "mlp_ratio": 1.7},
    ],
)
def test_options_at_the_edge_that_the_official_code_builds(options: dict[str, object]) -> None:
    model = dataclasses.replace(TOY, **options).build().train()
    assert all(value.isfinite().all() for value in model(torch.randn(2, 3, 33, 40)).values())


def test_values_beyond_the_last_stage_are_left_out() -> None:
    """As in the official code, whose defaults have four."""
    two = dataclasses.replace(TOY, depths=(1, 2))
    assert (two.focal_levels, two.focal_windows) == ((2, 1), (3, 5))
    assert two == dataclasses.replace(two, focal_windows=(3, 5, 7, 9))
    three = FocalNetConfig.from_official({"embed_dim": 8, "depths": [1, 1, 1]}).build()
    assert len(three(torch.randn(1, 3, 32, 32))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1, 1, 1)}, "focal_levels"),
        ({"depths": ()}, "depths"),
        ({"depths": (1, 0, 1)}, "depths"),
        ({"focal_windows": (3, 4, 3)}, "odd window"),
        ({"focal_levels": (2, -1, 2)}, "levels >= 0"),
        ({"drop_path_rate": 1.5}, "drop_path_rate"),
        ({"out_indices": (3,)}, "out_indices"),
        ({"in_chans": 0}, "in_chans"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TOY, **options).build()


def test_bad_input() -> None:
    model = TOY.build()
    with pytest.raises(InputError, match="in_chans"):
        model(torch.randn(1, 4, 32, 32))
    with pytest.raises(InputError, match="smaller"):
        model(torch.randn(1, 3, 15, 32))


def test_bf16_autocast_stays_close() -> None:
    model, images = create_model("focalnet_nano").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


@toys
def test_compiles_without_graph_breaks(config: FocalNetConfig) -> None:
    torch._dynamo.reset()  # the limit on recompilations counts every model this file has compiled
    model = dataclasses.replace(config, drop_path_rate=0.1).build()
    images = torch.randn(2, 3, 32, 32)
    # aot_eager traces forward and backward as the real compiler does, without generating code.
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))
    training = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
    sum(value.sum() for value in training(images).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@toys
def test_exports_with_any_batch_and_size(config: FocalNetConfig) -> None:
    model = config.build().eval()
    batch, height, width = (
        torch.export.Dim("batch"),
        torch.export.Dim("height", min=32),
        torch.export.Dim("width", min=32),
    )
    program = torch.export.export(
        model, (torch.randn(2, 3, 64, 96),), dynamic_shapes={"images_BCHW": {0: batch, 2: height, 3: width}}
    )
    other = torch.randn(3, 3, 45, 77)
    torch.testing.assert_close(program.module()(other), model(other))


def test_layer_decay_groups_follow_depth() -> None:
    from timm.optim import create_optimizer_v2

    model = create_model("focalnet_nano")
    groups = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    by_name = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert by_name["head.weight"] == 1.0
    blocks = [by_name[f"layers.{s}.blocks.{b}.mlp.fc1.weight"] for s, b in ((0, 0), (0, 1), (1, 0), (1, 3), (2, 1))]
    assert by_name["patch_embed.proj.weight"] < blocks[0]
    assert blocks == sorted(set(blocks))


def test_backbone_takes_a_classifiers_weights() -> None:
    classifier, backbone = create_model("focalnet_nano"), create_model("focalnet_nano", features_only=True)
    assert isinstance(backbone, FocalNet)
    result = backbone.load_state_dict(classifier.state_dict(), strict=False)
    assert result.unexpected_keys == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert result.missing_keys == [f"norm{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
