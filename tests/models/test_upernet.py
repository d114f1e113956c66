"""UPerNet: every pixel of the original image gets a class, at any size, with any FocalNet of three stages or more."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet import create_model, list_models, registry
from focalnet.errors import ConfigError, InputError
from focalnet.models import UPerNet, UPerNetConfig
from focalnet.models.upernet import UPerNetOutputs
from focalnet.results import SemanticMap
from focalnet.samples import IGNORED, Batch, LabelMapTarget
from tests.models.small import ORIGINALS, SIZES, images, upernet
from tests.parity.golden import Case, cases

SEGMENTERS = [name for family in registry.families() if "semantic" in family.tasks for name in family.variants]


def built(seed: int = 0, **options: object) -> UPerNet:
    torch.manual_seed(seed)
    model = upernet(**options).build()
    assert isinstance(model, UPerNet)
    return model


def labels() -> torch.Tensor:
    maps = torch.randint(0, 3, (2, 64, 96), generator=torch.Generator().manual_seed(1))
    maps[:, 50:] = IGNORED
    return maps


def test_losses_are_finite_and_reach_every_parameter() -> None:
    model = built().train()
    losses = model.loss(Batch(images(), SIZES, [LabelMapTarget(one) for one in labels()], []))
    assert all(value.ndim == 0 and value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []  # DDP waits for every one


def test_bfloat16_autocast_on_a_cpu() -> None:
    model = built().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(Batch(images(), SIZES, [LabelMapTarget(one) for one in labels()], []))
        assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        outputs = model.eval()(images())
    assert outputs.logits.dtype == torch.float32


@torch.no_grad()
def test_maps_are_of_the_original_size_and_do_not_see_the_padding() -> None:
    model, batch = built().eval(), images()
    found = model.predict(batch, SIZES, ORIGINALS)
    scores = model.class_scores(batch)
    assert scores.shape == (2, 3, 64, 96)
    for one, result, (height, width), original in zip(scores, found, SIZES, ORIGINALS, strict=True):
        assert isinstance(result, SemanticMap)
        resized = F.interpolate(one[None, :, :height, :width], original, mode="bilinear")[0]
        assert (result.labels == resized.argmax(0)).float().mean() > 0.999
        assert result.labels.dtype == torch.int64


@torch.no_grad()
def test_a_class_is_drawn_where_it_is() -> None:
    """Left of column 48 of a batch 96 wide, of which 80 are the image: left of column 96 of the original's 160."""
    model = built().eval()
    logits = torch.zeros(1, 3, 16, 24)
    logits[:, 1], logits[:, 2, :, :12] = 1.0, 2.0
    (found,) = model.postprocess(UPerNetOutputs(logits, (64, 96)), [(64, 80)], [(128, 160)])
    expected = torch.ones(128, 160, dtype=torch.int64)
    expected[:, :96] = 2
    assert torch.equal(found.labels, expected)


@settings(max_examples=8)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_odd_sizes(height: int, width: int) -> None:
    model = built().eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, height, width))
        assert outputs.logits.shape == (1, 3, -(-height // 4), -(-width // 4))
        (found,) = model.postprocess(outputs, [(height, width)], [(height + 3, width)])
    assert found.labels.shape == (height + 3, width)


def test_dropout_is_of_channels_and_in_training_only() -> None:
    model = built(dropout=0.5)
    x = torch.ones(1, 8, 4, 4)
    dropped = model.decode_head.dropout(x).sum((2, 3)).flatten().tolist()
    assert set(dropped) <= {0.0, 32.0}
    assert torch.equal(model.eval().decode_head.dropout(x), x)


def test_a_single_image_cannot_train_batch_norms() -> None:
    model = built().train()
    with pytest.raises(InputError, match="batch size of at least 2"):
        model.training_outputs(images()[:1])
    model.eval().training_outputs(images()[:1])
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.train())
    assert model.state_dict().keys() == built().state_dict().keys()


@torch.no_grad()
def test_a_batch_of_one_size_is_its_images() -> None:
    model, batch = built().eval(), torch.randn(2, 3, 61, 50)
    torch.testing.assert_close(model(batch).logits[1:], model(batch[1:]).logits, rtol=1e-4, atol=1e-5)


def test_every_named_segmenter_has_a_configuration() -> None:
    for name in SEGMENTERS:
        config = registry.configure(name, num_classes=4)
        assert config.num_classes == 4, name
        assert config.backbone.pad_to_stride
    official = registry.configure("upernet_focalnet_base_lrf")
    assert official.backbone.focal_windows == (9, 9, 9, 9)
    assert isinstance(official, UPerNetConfig)
    assert (official.num_classes, official.channels, official.size_divisor) == (150, 512, 1)
    assert set(SEGMENTERS) < set(list_models())


@pytest.mark.parametrize(
    ("name", "millions"),  # Tables 8 and 22 of the paper, which round or cut to whole millions
    [
        ("tiny_srf", 61),
        ("tiny_lrf", 61),
        ("small_srf", 83),
        ("small_lrf", 84),
        ("base_srf", 124),
        ("base_lrf", 126),
        ("tiny_srf_deep", 55),
        ("small_srf_deep", 69),
        ("base_srf_deep", 117),
    ],
)
def test_published_parameters(name: str, millions: int) -> None:
    # The deeper ones agree without overlapped embedding: see docs/design/segmentation.md.
    with torch.device("meta"):
        model = create_model(f"upernet_focalnet_{name}", overlapped=False)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)


def test_a_backbone_of_three_stages() -> None:
    model = create_model("upernet_focalnet_nano", num_classes=2, channels=8, auxiliary_channels=4).eval()
    assert isinstance(model, UPerNet)
    assert model.auxiliary_head.convs[0].conv.in_channels == model.backbone.feature_info[1].channels
    with torch.no_grad():
        assert model(torch.randn(1, 3, 33, 40)).logits.shape == (1, 2, 17, 20)
    assert not any("iso" in name or "patch1" in name for name in SEGMENTERS)


def test_configurations_go_through_json() -> None:
    config = upernet(auxiliary_index=1)
    assert UPerNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match=r'nor its backbone has an option "chanels"; did you mean "channels"'):
        create_model("upernet_focalnet_nano", chanels=3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 0}, "channels=0 must be at least 1"),
        ({"pool_scales": (0, 2)}, "must all be at least 1"),
        ({"dropout": 1.5}, r"dropout=1.5 must be in \[0, 1\]"),
        ({"auxiliary_index": 4}, r"auxiliary_index=4 must be within -4\.\.3"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight=-1.0 must be at least 0"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        upernet(**options)


@pytest.mark.parametrize(
    "options", [{"pool_scales": ()}, {"pool_scales": (2,)}, {"dropout": 1.0}, {"auxiliary_weight": 0.0}]
)
def test_settings_at_the_edge_that_mmseg_builds(options: dict[str, object]) -> None:
    model = built(**options).train()
    losses = model.loss(Batch(images(), SIZES, [LabelMapTarget(one) for one in labels()], []))
    assert all(value.isfinite() for value in losses.values())
    assert [found.labels.shape for found in model.eval().predict(images(), SIZES, ORIGINALS)] == ORIGINALS


def test_a_single_image_trains_where_no_pool_scale_makes_it_a_single_value() -> None:
    model = built(pool_scales=(2, 3)).train()
    losses = model.loss(Batch(images()[:1], SIZES[:1], [LabelMapTarget(labels()[0])], []))
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize(
    ("part", "option", "value", "says"),
    [
        ("decode_head", "type", "PSPHead", 'decode_head: type "PSPHead" is not supported, only UPerHead'),
        ("decode_head", "align_corners", True, "decode_head: align_corners=True is not supported"),
        ("decode_head", "norm_cfg", {"type": "GN"}, 'decode_head: norm "GN" is not supported'),
        ("decode_head", "in_index", [0, 1, 2], r"in_index \[0, 1, 2\] must list all 4 feature maps of the backbone"),
        ("decode_head", "ignore_index", 0, "ignore_index=0 is not supported, only 255"),
        ("auxiliary_head", "num_convs", 2, "auxiliary_head: num_convs=2 is not supported, only 1"),
        ("auxiliary_head", "concat_input", True, "auxiliary_head: concat_input=True is not supported"),
        ("auxiliary_head", "num_classes", 7, "num_classes must all be equal"),
        ("decode_head", "loss_decode", {"type": "DiceLoss"}, 'loss_decode: type "DiceLoss" is not supported'),
        (
            "decode_head",
            "loss_decode",
            {"type": "CrossEntropyLoss", "class_weight": [1.0]},
            "loss_decode: class_weight is not supported",
        ),
    ],
)
@cases("openmmlab/upernet_lrf_a.json")
def test_official_configurations_that_mean_something_else(
    case: Case, part: str, option: str, value: object, says: str
) -> None:
    config = case.facts["config"]
    config[part][option] = value
    with pytest.raises(ConfigError, match=says):
        UPerNetConfig.from_official(config)


@cases("openmmlab/upernet_lrf_a.json")
def test_official_configurations_of_both_generations(case: Case) -> None:
    new = case.facts["config"]
    old = json.loads(json.dumps(new)) | {"pretrained": None, "test_cfg": {"mode": "whole"}}
    for head in ("decode_head", "auxiliary_head"):
        old[head]["norm_cfg"] = {"type": "SyncBN", "requires_grad": True}
    old["backbone"]["init_cfg"] = None
    ours = UPerNetConfig.from_official({**new, "data_preprocessor": {"type": "SegDataPreProcessor"}})
    assert UPerNetConfig.from_official(old) == ours
    assert (ours.auxiliary_index, ours.auxiliary_weight, ours.dropout) == (-2, 0.4, 0.1)
