"""Mask2Former: what comes out, for any size and any FocalNet, and what settings it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import focalnet
from focalnet.errors import ConfigError, InputError
from focalnet.models import Mask2Former, Mask2FormerConfig
from focalnet.models.mask2former import postprocess as results
from focalnet.ops.label_maps import label_map
from focalnet.results import Detections, PanopticMap, SemanticMap
from focalnet.samples import Batch
from tests.models.small import ORIGINALS, SIZES, images, mask2former, target

BIG = 20.0  # a logit of which the sigmoid is 1


def build(**options) -> Mask2Former:
    torch.manual_seed(0)
    return mask2former(**options).build().eval()


@pytest.mark.parametrize("size", [(64, 96), (61, 90), (32, 33)])
@torch.no_grad()
def test_masks_have_stride_4(size: tuple[int, int]) -> None:
    model = build()
    batch = torch.randn(2, 3, *size)
    out = model(batch)
    assert out.logits.shape == (2, 6, 4)
    assert out.masks.shape == (2, 6, -(-size[0] // 4), -(-size[1] // 4))
    layers = model.training_outputs(batch)
    assert len(layers) == model.config.decoder_layers + 1
    torch.testing.assert_close(layers[-1].masks, out.masks)
    assert model.class_scores(batch).shape == (2, 3, *size)


@pytest.mark.parametrize(("levels", "maps"), [(3, 3), (3, 4), (1, 4), (2, 2)])
@torch.no_grad()
def test_any_number_of_maps(levels: int, maps: int) -> None:
    trunk = {"depths": (1,) * maps, "focal_levels": (1,) * maps, "focal_windows": (3,) * maps, "patch_size": 2}
    model = build(levels=levels, **trunk)
    assert model.panoptic_head.pixel_decoder.levels == min(levels, maps - 1)
    assert model(torch.randn(1, 3, 32, 48)).masks.shape == (1, 6, 16, 24)


@torch.no_grad()
def test_placed_values_tell_equal_things_apart() -> None:
    """In the middle of a wallpaper, mask features repeat with it, unless values know their place."""
    wallpaper = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).tile(12, 12)
    differences = []
    for placed in (False, True):
        model = build(placed=placed)
        _, features = model.panoptic_head.pixel_decoder(list(model.backbone(wallpaper).values()))
        here, there = features[..., 40:48, 40:48], features[..., 48:56, 48:56]
        differences.append(float((here - there).std() / features.std()))
    assert differences[0] < 0.01
    assert differences[1] > 0.1


@torch.no_grad()
def test_results_are_in_the_original_image() -> None:
    for segments, noun in (("semantic", SemanticMap), ("instance", Detections), ("panoptic", PanopticMap)):
        model = build(segments=segments)
        for found, size in zip(model.predict(images(), SIZES, ORIGINALS), ORIGINALS, strict=True):
            assert isinstance(found, noun)
            if isinstance(found, SemanticMap):
                assert found.labels.shape == size
                assert ((found.labels >= 0) & (found.labels < 3)).all()
            elif isinstance(found, Detections):
                assert found.masks is not None
                assert found.masks.shape == (len(found), *size)
                assert (found.labels < 2).all()  # things
                assert ((found.scores >= 0) & (found.scores <= 1)).all()
                assert (found.scores.diff() <= 0).all()
            else:
                assert found.ids.shape == size
                assert found.ids.unique().tolist()[-1] == len(found.segments) > 0


@torch.no_grad()
def test_the_images_of_a_batch_do_not_mix() -> None:
    model, image = build(), torch.randn(1, 3, 64, 64)
    alone, second = model(image), model(torch.cat([torch.randn(1, 3, 64, 64), image]))
    torch.testing.assert_close(alone.logits[0], second.logits[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(alone.masks[0], second.masks[1], rtol=1e-3, atol=1e-4)


def test_bfloat16_autocast_on_a_cpu() -> None:
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        layers = model.training_outputs(images())
        levels, features = model.panoptic_head.pixel_decoder(list(model.backbone(images()).values()))
    assert {x.dtype for layer in layers for x in (layer.logits, layer.masks)} == {torch.float32}
    assert {x.dtype for x in (*levels, features)} == {torch.float32}  # the original has no autocast there either
    sum(layer.logits.sum() + layer.masks.sum() for layer in layers).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_compiled_without_a_break() -> None:
    torch.manual_seed(0)
    model = build()
    maps = [x.detach() for x in model.backbone(images()).values()]
    decoder = model.panoptic_head.pixel_decoder
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)
    found = []
    for run in (decoder, compiled):
        _, features = run(maps)
        found.append((features, *torch.autograd.grad(features.square().sum(), tuple(decoder.parameters()))))
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_query_with_an_empty_mask_attends_everywhere() -> None:
    head = build().panoptic_head
    mask = head._attention_mask(torch.randn(1, 6, 16), torch.zeros(1, 16, 10) - torch.inf)
    assert mask.shape == (1, 6, 10)
    assert mask.all()


def queries(masks: torch.Tensor, scores: list[tuple[int, float]], classes: int) -> results.Queries:
    """Queries of an 8 x 8 image with these masks, each with a class and its probability; the rest is "no object"."""
    probabilities = torch.full((len(masks), classes + 1), 1e-9)
    for row, (label, score) in zip(probabilities, scores, strict=True):
        row[label], row[-1] = score, row[-1] + 1 - score
    return results.Queries(probabilities.log(), masks, (8, 8), (8, 8), (8, 8))


def box(top: int, left: int, bottom: int, right: int, logit: float = BIG) -> torch.Tensor:
    mask = torch.full((8, 8), -BIG)
    mask[top:bottom, left:right] = logit
    return mask


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_panoptic_map_by_hand(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Things 0 and 1, stuff 2 and 3."""
    monkeypatch.setattr(results, "_AT_ONCE", at_once)
    masks = torch.stack(
        [
            box(0, 0, 4, 4),  # a thing
            box(0, 4, 4, 8),  # another of the same kind
            box(4, 0, 8, 4),  # stuff
            box(4, 4, 8, 6),  # more of it
            box(0, 0, 4, 5, 3.0),  # loses all but a column to the surer ones
            box(4, 6, 8, 8),  # too improbable
            box(4, 6, 8, 8, -1.0),  # wins there, but is not in its own mask
        ]
    )
    scores = [(0, 0.95), (0, 0.9), (2, 0.85), (2, 0.99), (1, 0.9), (3, 0.7), (3, 0.9)]
    found = results.panoptic(queries(masks, scores, 4), 2, 0.8, 0.8, ())
    assert [(s.id, s.label, s.is_thing, s.area) for s in found.segments] == [
        (1, 0, True, 16),
        (2, 0, True, 16),
        (3, 2, False, 24),
    ]
    assert [s.score for s in found.segments] == pytest.approx([0.95, 0.9, 0.99])
    assert found.ids[:4].tolist() == [[1] * 4 + [2] * 4] * 4
    assert found.ids[4:].tolist() == [[3] * 6 + [0] * 2] * 4
    assert found.ids.dtype == torch.int32


def test_nothing_found() -> None:
    nothing = queries(torch.zeros(2, 8, 8), [(0, 0.1), (1, 0.2)], 2)
    found = results.panoptic(nothing, 2, 0.8, 0.8, ())
    assert found.segments == ()
    assert not found.ids.any()
    assert len(results.instances(nothing, 0, 5, ())) == 0


def test_objects_by_hand() -> None:
    masks = torch.stack([box(1, 2, 4, 7), box(5, 5, 6, 6, 1.0), box(0, 0, 0, 0)])
    found = results.instances(queries(masks, [(0, 0.9), (1, 0.8), (0, 0.99)], 3), 2, 3, ())
    sure = float(torch.tensor(1.0).sigmoid())
    assert found.boxes.tolist() == [[2, 1, 7, 4], [5, 5, 6, 6], [0, 0, 0, 0]]
    assert found.labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8 * sure, 0.0]), atol=1e-4, rtol=0)
    assert found.masks is not None
    assert found.masks.sum((1, 2)).tolist() == [15, 1, 0]


@torch.no_grad()
def test_semantic_map_is_of_class_scores() -> None:
    model, batch = build(segments="semantic"), torch.randn(1, 3, 64, 96)
    (found,) = model.predict(batch, [(61, 90)], [(50, 60)])
    expected = label_map(model.class_scores(batch)[0, :, :61, :90], (50, 60))
    assert torch.equal(found.labels, expected)


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    model = build()
    assert Mask2FormerConfig.from_dict(model.config.to_dict()) == model.config
    twin = Mask2FormerConfig.from_dict(model.config.to_dict()).build().eval()
    twin.load_state_dict(model.state_dict())
    batch = images()
    assert torch.equal(model(batch).masks, twin(batch).masks)


def test_named_models() -> None:
    with torch.device("meta"):
        model = focalnet.create_model("mask2former_focalnet_tiny_srf", num_classes=150, segments="semantic")
    assert isinstance(model, Mask2Former)
    assert (model.config.num_queries, model.config.things) == (100, 150)
    head = sum(p.numel() for p in model.panoptic_head.parameters())
    # Mask2Former with Swin-T has 47 million parameters (Cheng et al. 2022), of which Swin-T 27.5: 19.6 for the head.
    assert head / 1e6 == pytest.approx(19.6, abs=0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": "everything"}, "segments"),
        ({"num_things": 4}, "num_things=4"),
        ({"channels": 18, "norm_groups": 1}, "channels=18"),
        ({"channels": 20, "heads": 3}, "heads=3"),
        ({"channels": 20, "norm_groups": 8}, "norm_groups=8"),
        ({"channels": 0}, "channels=0"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"heads": 0}, "heads=0"),
        ({"importance": 1.5}, "importance=1.5"),
        ({"oversample": 0.5}, "oversample=0.5"),
        ({"out_indices": (3,)}, "two feature maps"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mask2former(**options)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="do not fit"):
        build().predict(torch.zeros(1, 3, 64, 64), [(65, 64)], [(65, 64)])


@pytest.mark.parametrize(("channels", "heads", "norm_groups"), [(48, 8, 8), (36, 9, 6), (4, 4, 1)])
def test_channels_are_divided_by_heads_and_groups_alone(channels: int, heads: int, norm_groups: int) -> None:
    """As in mmdet; sines and cosines of rows and columns take a multiple of 4."""
    model = mask2former(channels=channels, heads=heads, norm_groups=norm_groups).build()
    losses = model.loss(Batch(images(), SIZES, [target(2), target(0)], []))
    assert all(value.isfinite() for value in losses.values())
    with torch.no_grad():
        assert len(model.eval().predict(images(), SIZES, ORIGINALS)) == 2
