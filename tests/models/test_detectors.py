"""What every detector does: finds, trains, survives empty images, half precision and odd sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from focalnet import create_model, list_models, registry
from focalnet.errors import ConfigError, DataError, InputError, UnknownName
from focalnet.models import MaskRCNNConfig
from focalnet.models.rcnn import StageConfig
from focalnet.models.rcnn.loss import losses as losses_of
from focalnet.models.variants import VARIANTS
from focalnet.nn.fpn import FPNConfig
from focalnet.samples import Batch
from tests.models.small import METHODS, ORIGINALS, SIZES, config, images, target

DETECTORS = {
    name: variant
    for family in registry.families()
    if family.tasks == ("detection",)
    for name, variant in family.variants.items()
}
every_method = pytest.mark.parametrize("method", METHODS)
SIZE = [(60, 63)]


@every_method
@pytest.mark.parametrize("counts", [(3, 2), (2, 0), (0, 0)])
def test_losses_are_finite_and_reach_every_parameter(method: str, counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = config(method).build().train()
    targets = [target(count) for count in counts]
    losses = model.loss(Batch(images(), SIZES, targets, []))
    assert all(value.ndim == 0 and value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []  # DDP waits for every one of them
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_method
def test_a_seed_decides_losses(method: str) -> None:
    model, batch, targets = config(method).build().train(), images(), [target(3), target(1)]
    totals = []
    for _ in range(2):
        torch.manual_seed(3)
        losses = model.loss(Batch(batch, SIZES, targets, []))
        totals.append([float(value.detach()) for value in losses.values()])
        model.load_state_dict({**model.state_dict()})
    assert totals[0] == totals[1]


@every_method
@torch.no_grad()
def test_detections_are_in_the_original_image(method: str) -> None:
    torch.manual_seed(0)
    model = config(method).build().eval()
    found = model.predict(images(), SIZES, ORIGINALS)
    for result, (height, width) in zip(found, ORIGINALS, strict=True):
        assert 0 < len(result) <= model.config.max_per_image
        assert result.size == (height, width)
        assert (result.scores.diff() <= 0).all()
        assert ((result.labels >= 0) & (result.labels < 3)).all()
        if method != "sparse_rcnn":  # whose boxes are never cut
            assert (result.boxes >= 0).all()
            assert (result.boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
        if "mask" in method:
            assert result.masks is not None
            assert result.masks.shape == (len(result), height, width)
        else:
            assert result.masks is None


@every_method
@torch.no_grad()
def test_the_images_of_a_batch_do_not_mix(method: str) -> None:
    torch.manual_seed(0)
    model, image = config(method).build().eval(), torch.randn(1, 3, 64, 64)
    (alone,) = model.predict(image, SIZE, SIZE)
    _, second = model.predict(torch.cat([torch.randn(1, 3, 64, 64), image]), SIZE * 2, SIZE * 2)
    assert len(alone) == len(second)
    torch.testing.assert_close(alone.scores, second.scores, rtol=1e-3, atol=1e-4)


@every_method
def test_bfloat16_autocast_on_a_cpu(method: str) -> None:
    torch.manual_seed(0)
    model, targets = config(method).build().train(), [target(3), target(0)]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(Batch(images(), SIZES, targets, []))
        assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        found = model.eval().predict(images(), SIZES, SIZES)
    assert all(result.boxes.dtype == torch.float32 for result in found)


@every_method
@torch.no_grad()
def test_nothing_found(method: str) -> None:
    model = config(method, score_threshold=0.999).build().eval()
    for result, size in zip(model.predict(images(), SIZES, ORIGINALS), ORIGINALS, strict=True):
        assert len(result) == 0
        assert result.boxes.shape == (0, 4)
        assert result.masks is None or result.masks.shape == (0, *size)


@every_method
def test_a_diverged_network_finds_nothing(method: str) -> None:
    model = config(method).build().eval()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    with torch.no_grad():
        assert [len(found) for found in model.predict(images(), SIZES, ORIGINALS)] == [0, 0]


@every_method
def test_configurations_go_through_json(method: str) -> None:
    settings = config(method)
    assert type(settings).from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(ConfigError, match=r'has no option "max_per_imag"; did you mean "max_per_image"'):
        type(settings).from_dict({**settings.to_dict(), "max_per_imag": 3})


def test_every_named_detector_has_a_configuration() -> None:
    for name in DETECTORS:
        settings: Any = registry.configure(name, num_classes=4)
        assert settings.num_classes == 4
        assert settings.backbone.pad_to_stride
        assert settings.backbone.embed_dim == VARIANTS[DETECTORS[name].backbone].shape["embed_dim"], name


@pytest.mark.parametrize(
    ("name", "millions"),  # Tables 6, 7 and 20 of the paper; it rounds down, or counts a little less
    [
        ("mask_rcnn_focalnet_tiny_srf", 48.6),
        ("mask_rcnn_focalnet_small_srf", 70.8),
        ("mask_rcnn_focalnet_small_lrf", 72.3),
        ("mask_rcnn_focalnet_base_srf", 109.4),
        ("mask_rcnn_focalnet_base_lrf", 111.4),
        ("mask_rcnn_focalnet_tiny_srf_deep", 45.8),
        ("mask_rcnn_focalnet_small_srf_deep", 59.5),
        ("mask_rcnn_focalnet_base_srf_deep", 107.1),
        ("cascade_mask_rcnn_focalnet_tiny_srf", 86.4),
        ("cascade_mask_rcnn_focalnet_tiny_lrf", 87.1),
        ("sparse_rcnn_focalnet_tiny_srf", 110.5),
        ("sparse_rcnn_focalnet_tiny_lrf", 111.2),
        ("atss_focalnet_tiny_srf", 36.5),
        ("atss_focalnet_tiny_lrf", 37.2),
    ],
)
def test_published_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.2)


def test_named_detectors_take_options_of_both_parts() -> None:
    assert "mask_rcnn_focalnet_tiny_srf" in list_models("mask_rcnn_*")
    assert len([name for name in list_models("*_focalnet_nano") if name in DETECTORS]) == len(METHODS)
    with torch.device("meta"):
        model = create_model("mask_rcnn_focalnet_tiny_srf", masks=False, drop_path_rate=0.2)
        backbone = create_model("atss_focalnet_tiny_srf", features_only=True)
    assert (model.config.masks, model.config.backbone.drop_path_rate) == (False, 0.2)
    assert [info.stride for info in backbone.feature_info] == [8, 16, 32]
    with pytest.raises(ConfigError, match=r'nor its backbone has an option "mask"; did you mean "masks"'):
        create_model("mask_rcnn_focalnet_tiny_srf", mask=False)
    with pytest.raises(UnknownName, match='did you mean "mask_rcnn_focalnet_tiny_srf"'):
        create_model("mask_rcnn_focalnet_tiny_sfr")


def test_a_faster_rcnn_has_no_masks() -> None:
    model = config("mask_rcnn", masks=False).build()
    assert not any("mask" in key for key in model.state_dict())
    boxes_only = [replace(target(1), masks=None), replace(target(0), masks=None)]
    losses = model.loss(Batch(images(), SIZES, boxes_only, []))
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
    with torch.no_grad():
        assert model.eval().predict(images(), SIZES, SIZES)[0].masks is None


def test_masks_cannot_be_learned_from_boxes() -> None:
    model, targets = config("mask_rcnn").build(), [replace(target(1), masks=None), target(0)]
    outputs = model.training_outputs(images(), SIZES, targets)
    with pytest.raises(DataError, match="build it with masks=False"):
        losses_of(model.config, outputs, targets)


@every_method
def test_sizes_that_do_not_fit_the_batch(method: str) -> None:
    model = config(method).build()
    for sizes in ([(64, 96)], [(65, 96), (64, 96)]):
        with pytest.raises(InputError, match="do not fit a batch of images"):
            model(images(), sizes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"score_threshold": 1.5}, r"score_threshold=1.5 must be in \[0, 1\)"),
        ({"roi_levels": 6}, r"roi_levels=6 must be within 1\.\.5"),
        ({"stages": (StageConfig(), StageConfig())}, "one stage, not 2: use CascadeRCNNConfig"),
        ({"stages": ()}, "at least one stage"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config("mask_rcnn", **options)


@torch.no_grad()
def test_channels_of_atss_are_free_without_convolutions() -> None:
    with pytest.raises(ConfigError, match="channels=20 must be a multiple of 32"):
        config("atss", channels=20)  # mmdet's norm has 32 groups, too
    model = config("atss", channels=20, convs=0).build().eval()
    assert len(model.predict(images(), SIZES, ORIGINALS)) == 2


def test_crowds_are_neither_object_nor_background() -> None:
    from focalnet.models.rcnn import SamplingConfig
    from focalnet.models.rcnn.network import sample_rois

    crowd = replace(target(1), ignored=torch.tensor([[0.0, 40.0, 96.0, 64.0]]))
    boxes = torch.tensor([[10.0, 45.0, 30.0, 60.0], [60.0, 0.0, 90.0, 20.0]])
    for ignore, drawn in ((None, 3), (0.5, 2)):
        sampling = SamplingConfig(positive=0.5, negative=0.5, samples=8, positive_share=0.5, ignore=ignore)
        regions, matched, given = sample_rois([boxes], [crowd], sampling)
        assert len(regions) == drawn
        assert matched.tolist() == [0] + [-1] * (drawn - 1)
        assert given.tolist() == [True] + [False] * (drawn - 1)


def test_backbones_of_three_stages() -> None:
    for method in METHODS:
        assert f"{method}_focalnet_nano" in DETECTORS
    assert not any("iso" in name or "patch1" in name for name in DETECTORS)
    with torch.device("meta"):
        model = create_model("mask_rcnn_focalnet_nano", num_classes=2, out_indices=(1, 2))
    assert isinstance(model.config, MaskRCNNConfig)
    assert model.config.backbone.stem_padding == VARIANTS["focalnet_nano"].shape["stem_padding"]
    assert [info.stride for info in model.neck.feature_info] == [4, 8, 16, 32, 64]
    neck = FPNConfig(channels=16, extra="conv")
    small = create_model("atss_focalnet_nano", num_classes=2, neck=neck, channels=64, convs=1).eval()
    with torch.no_grad():
        assert len(small.predict(torch.randn(1, 3, 64, 64), [(60, 61)], [(60, 61)])) == 1
