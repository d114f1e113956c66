"""Our FocalNet where transformers' dense models take their backbone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoConfig,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import focalnet
from focalnet.errors import ConfigError, UnknownName
from focalnet.integrations.transformers import FocalNetDenseBackbone, FocalNetDenseConfig

SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1)}


def small(**settings) -> FocalNetDenseConfig:
    return FocalNetDenseConfig(options=SMALL, **settings)


@pytest.mark.parametrize("size", [(64, 96), (70, 101)])
def test_strides_are_4_to_32(size: tuple[int, int]) -> None:
    backbone = AutoBackbone.from_config(small())
    assert isinstance(backbone, FocalNetDenseBackbone)
    maps = backbone(torch.randn(1, 3, *size)).feature_maps
    assert backbone.channels == [8, 16, 32, 64]
    for channels, stride, features in zip(backbone.channels, (4, 8, 16, 32), maps, strict=True):
        assert features.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_some_maps_by_name_or_number() -> None:
    by_name = FocalNetDenseBackbone(small(out_features=["stage2", "stage4"]))
    by_number = FocalNetDenseBackbone(small(out_indices=[2, 4]))
    assert by_name.channels == by_number.channels == [16, 64]
    maps = by_name(torch.randn(1, 3, 64, 64), return_dict=False)[0]
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 8), (2, 2)]


@pytest.mark.parametrize("settings", [{"out_indices": [-1]}, {"out_indices": (2, -1)}, {"out_indices": [2, 4]}])
def test_maps_from_the_end(settings) -> None:
    backbone = FocalNetDenseBackbone(small(**settings))
    stages = [index % 5 for index in settings["out_indices"]]
    assert backbone.channels == [8 * 2 ** (stage - 1) for stage in stages]
    maps = backbone(torch.randn(1, 3, 64, 64)).feature_maps
    assert [m.shape[2] for m in maps] == [64 // 2 ** (stage + 1) for stage in stages]


def test_other_maps_of_a_finished_backbone() -> None:
    backbone, images = FocalNetDenseBackbone(small(out_indices=[2, 3, 4])).eval(), torch.randn(1, 3, 64, 64)
    _, *coarsest = backbone(images).feature_maps
    backbone.out_features = ["stage3", "stage4"]
    assert backbone.channels == [32, 64]
    torch.testing.assert_close(list(backbone(images).feature_maps), coarsest, rtol=0, atol=0)
    backbone.out_indices = [1]
    with pytest.raises(ConfigError, match=r"out_features=\['stage1'\] must be among \['stage2', 'stage3', 'stage4'\]"):
        backbone(images)


def test_settings_of_the_output() -> None:
    backbone = FocalNetDenseBackbone(small(return_dict=False, output_hidden_states=True))
    maps, hidden = backbone(torch.randn(1, 3, 64, 64))
    assert len(maps) == len(hidden) == 4


@pytest.mark.parametrize("options", [{"layer_scale": 0.1, "post_norm": True}, {"overlapped": True}])
def test_what_a_file_lacks_has_initial_values(options, tmp_path: Path, monkeypatch) -> None:
    """transformers gives new parameters whatever memory holds before they are initialized."""
    options = {**SMALL, **options}
    FocalNetDenseBackbone(FocalNetDenseConfig(options=options, out_features=["stage4"])).save_pretrained(tmp_path)
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **more: empty(*args, **more).fill_(torch.nan))
    deeper = FocalNetDenseBackbone.from_pretrained(
        tmp_path, options={**options, "depths": [1, 1, 1, 2]}, out_features=["stage1", "stage4"]
    )
    assert all(p.isfinite().all() for p in deeper.parameters())
    new = deeper.focalnet.layers[3].blocks[1]
    assert (new.norm1.weight == 1).all()
    assert 0.01 < new.mlp.fc1.weight.std() < 0.03
    assert not new.mlp.fc1.bias.any()
    assert (deeper.focalnet.norm0.weight == 1).all()
    if "layer_scale" in options:
        assert (new.gamma_2 == 0.1).all()


def test_whole_models_recompute_activations() -> None:
    layers = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "num_labels": 3}
    maps = small(out_features=["stage2", "stage3", "stage4"])
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(backbone_config=maps, **layers)).train()
    (backbone,) = (m for m in model.modules() if isinstance(m, FocalNetDenseBackbone))
    images, gradients = torch.randn(1, 3, 64, 64), []
    for recompute in (False, True):
        if recompute:
            model.activation_checkpointing_enable()
        assert backbone.gradient_checkpointing is recompute
        assert all(stage.grad_checkpointing is recompute for stage in backbone.focalnet.stages)
        model.zero_grad()
        sum(m.square().mean() for m in backbone(images).feature_maps).backward()
        gradients.append({name: p.grad.clone() for name, p in backbone.named_parameters()})
    torch.testing.assert_close(*gradients)
    model.activation_checkpointing_disable()
    assert not backbone.gradient_checkpointing


def test_copies_and_types() -> None:
    backbone, images = FocalNetDenseBackbone(small()).eval(), torch.randn(1, 3, 64, 64)
    expected = backbone(images).feature_maps
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        torch.testing.assert_close(twin(images).feature_maps, expected, rtol=0, atol=0)
    half = copy.deepcopy(backbone).to(torch.bfloat16)(images.bfloat16()).feature_maps
    torch.testing.assert_close([m.float() for m in half], list(expected), rtol=0.05, atol=0.05)


def test_saved_and_loaded(tmp_path: Path) -> None:
    backbone, images = FocalNetDenseBackbone(small()).eval(), torch.randn(1, 3, 64, 64)
    backbone.save_pretrained(tmp_path)
    twin = FocalNetDenseBackbone.from_pretrained(tmp_path).eval()
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(twin.config)
    assert twin.config.options["embed_dim"] == 8
    for a, b in zip(backbone(images).feature_maps, twin(images).feature_maps, strict=True):
        assert torch.equal(a, b)


def test_takes_the_weights_of_this_library() -> None:
    ours = focalnet.create_model("focalnet_tiny_srf", features_only=True, **SMALL)
    backbone, images = FocalNetDenseBackbone(small()), torch.randn(1, 3, 64, 64)
    backbone.focalnet.load_state_dict(ours.state_dict())
    for a, b in zip(backbone(images).feature_maps, ours(images).values(), strict=True):
        assert torch.equal(a, b)


def test_trains_in_upernet() -> None:
    config = UperNetConfig(backbone_config=small(), hidden_size=16, auxiliary_in_channels=32, num_labels=4)
    model = UperNetForSemanticSegmentation(config).train()
    labels = torch.randint(4, (2, 64, 64))
    loss = model(torch.randn(2, 3, 64, 64), labels=labels).loss
    loss.backward()
    missing = [name for name, p in model.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


# transformers lists the backbones it has tried with Mask2Former, and warns of any other; ours is tried here.
@pytest.mark.filterwarnings("ignore:.*not a supported model.*")
def test_trains_in_mask2former() -> None:
    config = Mask2FormerConfig(
        backbone_config=small(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        num_attention_heads=2,
        num_queries=5,
        train_num_points=50,
        num_labels=3,
    )
    model = Mask2FormerForUniversalSegmentation(config).train()
    masks = (torch.rand(2, 64, 64) > 0.5).float()
    out = model(torch.randn(1, 3, 64, 64), mask_labels=[masks], class_labels=[torch.tensor([0, 2])])
    out.loss.backward()
    backbone = model.model.pixel_level_module.encoder
    assert isinstance(backbone, FocalNetDenseBackbone)
    assert all(p.grad is not None for p in backbone.parameters())


def test_trains_in_maskformer() -> None:
    decoder = DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, num_queries=5, encoder_ffn_dim=16, decoder_ffn_dim=16
    )
    config = MaskFormerConfig(
        backbone_config=small(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, num_labels=3
    )
    model = MaskFormerForInstanceSegmentation(config).train()
    masks = (torch.rand(2, 64, 64) > 0.5).float()
    model(torch.randn(1, 3, 64, 64), mask_labels=[masks], class_labels=[torch.tensor([0, 2])]).loss.backward()
    backbone = model.model.pixel_level_module.encoder
    assert isinstance(backbone, FocalNetDenseBackbone)
    assert all(p.grad is not None for p in backbone.parameters())


def test_trains_in_the_detr_family() -> None:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    layers = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "num_labels": 3}
    target = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])}
    maps = small(out_features=["stage2", "stage3", "stage4"])
    for model in (
        DetrForObjectDetection(DetrConfig(backbone_config=small(out_features=["stage4"]), **heads, **layers)),
        DeformableDetrForObjectDetection(DeformableDetrConfig(backbone_config=maps, **heads, **layers)),
    ):
        model.train()(torch.randn(1, 3, 64, 96), labels=[target]).loss.backward()
        (backbone,) = (m for m in model.modules() if isinstance(m, FocalNetDenseBackbone))
        frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
        trained = [name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.any()]
        assert not frozen
        assert trained


def test_bad_settings() -> None:
    with pytest.raises(UnknownName, match="did you mean"):
        FocalNetDenseConfig(architecture="focalnet_tiny_srv")
    with pytest.raises(ConfigError, match="stem"):
        small(out_features=["stem", "stage1"])
    with pytest.raises(ConfigError, match="no option"):
        FocalNetDenseConfig(options={"windows": 3})
