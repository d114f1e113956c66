"""From pictures to maps: sizes, tiles, mirrors, memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet import Predictor
from focalnet.errors import ConfigError
from focalnet.inference import Looks
from focalnet.inference.segmenting import slide
from focalnet.inference.tiling import tiles
from focalnet.ops import label_maps
from focalnet.results import Detections, PanopticMap, SemanticMap
from tests.inference.segmenters import NAMES, blocks, colours
from tests.inference.small import ramp


def agreement(labels: torch.Tensor, truth: torch.Tensor) -> float:
    assert labels.shape == truth.shape
    assert labels.dtype == torch.int64
    return float((labels == truth).float().mean())


# --- the cores of tiles, and labels from scores


@given(st.integers(1, 300), st.integers(1, 300), st.integers(32, 200), st.floats(0, 0.9))
@settings(deadline=None)
def test_cores_cover_every_pixel_once_and_lie_within_their_tiles(height, width, tile, overlap):
    covered = torch.zeros(height, width)
    for window, core in tiles(height, width, tile, overlap):
        core.of(covered).add_(1)
        assert window.left <= core.left
        assert core.left + core.width <= window.left + window.width
        assert window.top <= core.top
        assert core.top + core.height <= window.top + window.height
    assert (covered == 1).all()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 60), st.integers(1, 60))
@settings(deadline=None)
def test_labels_are_those_of_resized_scores_whatever_the_band(h, w, height, width):
    torch.manual_seed(h * 100 + w)
    scores = torch.randn(4, h, w)
    resized = F.interpolate(scores[None], (height, width), mode="bilinear")[0]
    before, label_maps.BAND = label_maps.BAND, 4 * width * 3  # three rows at a time
    try:
        labels = label_maps.label_map(scores, (height, width))
    finally:
        label_maps.BAND = before
    best = resized.max(0).values
    torch.testing.assert_close(resized.gather(0, labels[None])[0], best, rtol=1e-5, atol=1e-5)


# --- one look


@pytest.mark.parametrize("size", [(80, 64), (128, 100), (300, 40), (20, 17)])
def test_every_pixel_of_the_original_has_its_class(size):
    picture, truth = blocks(*size)
    found = Predictor(colours())(picture)
    assert isinstance(found, SemanticMap)
    assert found.names == NAMES
    assert found.image.size == picture.size
    assert agreement(found.labels, truth) > 0.9  # edges blur


def test_it_is_what_the_network_itself_says():
    network = colours(size=48)
    picture, _ = blocks(96, 80)
    found = Predictor(network)(picture)
    (shape,) = network.seen
    assert shape == (1, 3, 48, 58)  # the short side is 48, 57.6 is rounded
    images = Predictor(network)._way._pixels([(picture, Predictor(network)._way.prepare(picture)[0][0])])
    (itself,) = network.predict(images, [(48, 58)], [(80, 96)])
    assert torch.equal(found.labels, itself.labels)


def test_padding_is_cut_off_and_pictures_of_other_sizes_go_alone():
    network = colours(divisor=32)
    pictures = [blocks(80, 64), blocks(80, 64, seed=1), blocks(64, 64)]
    found = Predictor(network, batch_size=4)([picture for picture, _ in pictures])
    assert network.seen == [(2, 3, 64, 96), (1, 3, 64, 64)]
    for one, (_, truth) in zip(found, pictures, strict=True):
        assert agreement(one.labels, truth) == 1.0  # seen at its own size


def test_the_long_side_is_limited():
    network = colours(size=64)
    Predictor(network)(blocks(1000, 100)[0])
    assert network.seen == [(1, 3, 26, 256)]


# --- several looks


@pytest.mark.parametrize(
    "looks",
    [
        Looks(flip=True),
        Looks(short_sides=(64, 96)),
        Looks(tile=64, overlap=0.25),
        Looks(tile=64, overlap=0.0, flip=True),
        Looks(tile=48, overlap=0.5, short_sides=(48, 96)),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_looks_agree_on_what_is_clear(looks, batch_size):
    picture, truth = blocks(210, 150)
    found = Predictor(colours(size=64), looks=looks, batch_size=batch_size)(picture)
    assert agreement(found.labels, truth) > 0.93


def test_sizes_and_mirrors_average_probabilities():
    network = colours(size=40)
    picture, _ = blocks(40, 40, block=5)
    found = Predictor(network, looks=Looks(flip=True, short_sides=(40, 60)))(picture)
    assert [shape[2:] for shape in network.seen] == [(40, 40), (60, 60)]  # two of each: straight and mirrored
    way = Predictor(network)._way
    total = torch.zeros(3, 40, 40)
    for side in (40, 60):
        looks = Predictor(network, looks=Looks(short_sides=(side,)))._way.prepare(picture)
        logits = network(way._pixels([(picture, looks[0][0])]))
        total += 2 * F.interpolate(logits, (40, 40), mode="bilinear")[0].softmax(0)  # pixels are on their own here
    assert agreement(found.labels, total.argmax(0)) == 1.0


def test_probabilities_are_averaged_as_they_are(monkeypatch):
    network = colours(size=40)
    monkeypatch.setattr(type(network), "scores_are_logits", False)
    picture, _ = blocks(40, 40)
    way = Predictor(network, looks=Looks(flip=True))._way
    (looks,) = way.prepare(picture)
    scores = torch.tensor([0.7, 0.2, 0.1]).view(3, 1, 1).expand(3, 40, 40)
    torch.testing.assert_close(way._mean(looks, iter([scores, scores])), scores)
    monkeypatch.setattr(type(network), "scores_are_logits", True)
    torch.testing.assert_close(way._mean(looks, iter([scores, scores])), scores.softmax(0))


def test_with_more_than_256_classes_labels_stay_what_they_are():
    network = colours(num_classes=300)
    network.class_scores = lambda images: F.one_hot(torch.full(images[:, 0].shape, 299), 300).movedim(-1, 1).float()
    assert Predictor(network)(blocks(64, 64)[0]).labels.unique().tolist() == [299]


# --- objects and panoptic maps


def test_objects_are_merged_over_looks_and_weak_ones_left_out():
    picture, truth = blocks(130, 96, block=64)
    found = Predictor(colours("instance"), min_score=0.3, looks=Looks(flip=True))(picture)
    assert isinstance(found, Detections)
    assert found.names == NAMES
    assert found.masks.shape == (len(found), 96, 130)
    assert 0 < len(found) < len(truth.unique())  # the weakest scores 0.2
    for mask, label in zip(found.masks, found.labels, strict=True):
        assert (mask == (truth == label)).float().mean() > 0.97


def test_a_panoptic_map_comes_from_one_look():
    picture, truth = blocks(96, 64, block=32)
    found = Predictor(colours("panoptic"))(picture)
    assert isinstance(found, PanopticMap)
    assert found.names == NAMES
    assert agreement(found.ids.long() - 1, truth) == 1.0
    Predictor(colours("panoptic"), looks=Looks(short_sides=(96,)))(picture)
    for looks in (Looks(tile=64), Looks(flip=True), Looks(short_sides=(64, 96))):
        with pytest.raises(ConfigError, match=r"panoptic map.*leave them out"):
            Predictor(colours("panoptic"), looks=looks)


def test_a_card_that_is_missing_or_of_another_model_is_refused():
    network = colours()
    network.card = dataclasses.replace(network.card, class_names=("one", "two"))
    with pytest.raises(ConfigError, match="3 classes and its card names 2"):
        Predictor(network)
    network.card = None
    with pytest.raises(ConfigError, match=r"model\.card"):
        Predictor(network)


# --- the sliding window


def test_slide_is_the_mean_of_its_windows():
    network = colours()
    images = torch.randn(2, 3, 50, 70)
    torch.testing.assert_close(slide(network, images, (32, 32), (20, 24)), 9 * images)
    assert [shape[2:] for shape in network.seen] == [(32, 32)] * 6  # rows 0, 18; columns 0, 24, 38
    network.class_scores = lambda part: part.mean((2, 3), keepdim=True).expand_as(part)
    slid = slide(network, images, (50, 40), (50, 30))
    left, right = images[..., :40].mean((2, 3)), images[..., 30:].mean((2, 3))
    torch.testing.assert_close(slid[..., 0, 0], left)
    torch.testing.assert_close(slid[..., 0, 35], (left + right) / 2)
    torch.testing.assert_close(slid[..., 0, 69], right)


def test_slide_sees_a_small_image_whole():
    network = colours()
    slide(network, torch.randn(1, 3, 20, 30), (64, 64), (40, 40))
    assert network.seen == [(1, 3, 20, 30)]


@pytest.mark.parametrize(("crop", "stride"), [((32, 32), (0, 8)), ((32, 0), (8, 8)), ((32, 32), (40, 8))])
def test_slide_refuses_what_leaves_gaps(crop, stride):
    with pytest.raises(ConfigError, match=r"crop|stride"):
        slide(colours(), torch.randn(1, 3, 64, 64), crop, stride)


# --- memory


MEMORY = """
import resource, sys
from PIL import Image
from focalnet import Predictor
from focalnet.inference import Looks
from tests.inference.segmenters import colours
predictor = Predictor(colours(size=512), looks=Looks(tile=512, overlap=0.25), batch_size=2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 / (1024 if sys.platform == "darwin" else 1)
predictor(Image.new("RGB", (600, 600)))
before = peak()
predictor(Image.new("RGB", (4000, 2500), (255, 0, 0)))
print(peak() - before)
"""


def test_a_large_picture_needs_memory_for_itself_and_its_labels_only():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    # 10 megapixels: 40 MB as a picture, 40 MB its copy, 80 MB as labels; 10,000 x 10,000 has ten times as many.
    assert float(done.stdout) < 0.25


def test_a_smooth_picture_has_no_seams():
    picture = ramp(200, 150)
    whole = Predictor(colours(size=150))(picture)
    tiled = Predictor(colours(size=64), looks=Looks(tile=64))(picture)
    assert agreement(tiled.labels, whole.labels) > 0.999
