"""Our FocalNet where transformers' dense models take their backbone."""

from __future__ import annotations

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
