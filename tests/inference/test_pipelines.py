"""From images to label maps: sizes, tiles, mirrored views, memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from focalnet import Predictor
from focalnet.errors import ConfigError
from focalnet.inference import Views
from focalnet.results import Detections, PanopticMap, SemanticMap
from tests.inference.segmenters import NAMES, blocks, colours
from tests.inference.small import ramp


def agreement(labels: torch.Tensor, truth: torch.Tensor) -> float:
    assert labels.shape == truth.shape
    assert labels.dtype == torch.int64
    return float((labels == truth).float().mean())


# --- one view


@pytest.mark.parametrize("size", [(80, 64), (128, 100), (300, 40), (20, 17)])
def test_every_pixel_of_the_original_has_its_class(size):
    image, truth = blocks(*size)
    result = Predictor(colours())(image)
    assert isinstance(result, SemanticMap)
    assert result.names == NAMES
    assert result.image.size == image.size
    assert agreement(result.labels, truth) > 0.9  # edges blur


def test_it_is_what_the_network_itself_says():
    network = colours(size=48)
    image, _ = blocks(96, 80)
    result = Predictor(network)(image)
    (shape,) = network.seen
    assert shape == (1, 3, 48, 58)  # the short side is 48, 57.6 is rounded
    pipeline = Predictor(network)._pipeline
    images = pipeline._pixels([(image, pipeline.prepare(image)[0].views[0])])
    (itself,) = network.predict(images, [(48, 58)], [(80, 96)])
    assert torch.equal(result.labels, itself.labels)


def test_padding_is_cut_off_and_images_of_other_sizes_go_alone():
    network = colours(divisor=32)
    pairs = [blocks(80, 64), blocks(80, 64, seed=1), blocks(64, 64)]
    result = Predictor(network, batch_size=4)([image for image, _ in pairs])
    assert network.seen == [(2, 3, 64, 96), (1, 3, 64, 64)]
    for one, (_, truth) in zip(result, pairs, strict=True):
        assert agreement(one.labels, truth) == 1.0  # at its own size


def test_the_long_side_is_limited():
    network = colours(size=64)
    Predictor(network)(blocks(1000, 100)[0])
    assert network.seen == [(1, 3, 26, 256)]


# --- several views


@pytest.mark.parametrize(
    "views",
    [
        Views(flip=True),
        Views(short_sides=(64, 96)),
        Views(tile=64, overlap=0.25),
        Views(tile=64, overlap=0.0, flip=True),
        Views(tile=48, overlap=0.5, short_sides=(48, 96)),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_views_agree_on_what_is_clear(views, batch_size):
    image, truth = blocks(210, 150)
    result = Predictor(colours(size=64), views=views, batch_size=batch_size)(image)
    assert agreement(result.labels, truth) > 0.93


def test_sizes_and_mirrors_average_probabilities():
    network = colours(size=40)
    image, _ = blocks(40, 40, block=5)
    result = Predictor(network, views=Views(flip=True, short_sides=(40, 60)))(image)
    assert [shape[2:] for shape in network.seen] == [(40, 40), (60, 60)]  # two of each: original and mirrored
    pipeline = Predictor(network)._pipeline
    total = torch.zeros(3, 40, 40)
    for side in (40, 60):
        (tile,) = Predictor(network, views=Views(short_sides=(side,)))._pipeline.prepare(image)
        logits = network(pipeline._pixels([(image, tile.views[0])]))
        total += 2 * F.interpolate(logits, (40, 40), mode="bilinear")[0].softmax(0)  # pixels are on their own here
    assert agreement(result.labels, total.argmax(0)) == 1.0


def test_probabilities_are_averaged_as_they_are(monkeypatch):
    network = colours(size=40)
    monkeypatch.setattr(type(network), "scores_are_logits", False)
    image, _ = blocks(40, 40)
    pipeline = Predictor(network, views=Views(flip=True))._pipeline
    (tile,) = pipeline.prepare(image)
    scores = torch.tensor([0.7, 0.2, 0.1]).view(3, 1, 1).expand(3, 40, 40)
    torch.testing.assert_close(pipeline._mean(tile, iter([scores, scores])), scores)
    monkeypatch.setattr(type(network), "scores_are_logits", True)
    torch.testing.assert_close(pipeline._mean(tile, iter([scores, scores])), scores.softmax(0))


def test_with_more_than_256_classes_labels_stay_what_they_are():
    network = colours(num_classes=300)
    network.class_scores = lambda images: F.one_hot(torch.full(images[:, 0].shape, 299), 300).movedim(-1, 1).float()
    assert Predictor(network)(blocks(64, 64)[0]).labels.unique().tolist() == [299]


# --- objects and panoptic maps


def test_objects_are_merged_over_views_and_weak_ones_left_out():
    image, truth = blocks(130, 96, block=64)
    result = Predictor(colours("instance"), min_score=0.3, views=Views(flip=True))(image)
    assert isinstance(result, Detections)
    assert result.names == NAMES
    assert result.masks.shape == (len(result), 96, 130)
    assert 0 < len(result) < len(truth.unique())  # the weakest scores 0.2
    for mask, label in zip(result.masks, result.labels, strict=True):
        assert (mask == (truth == label)).float().mean() > 0.97


def test_a_panoptic_map_comes_from_one_view():
    image, truth = blocks(96, 64, block=32)
    result = Predictor(colours("panoptic"))(image)
    assert isinstance(result, PanopticMap)
    assert result.names == NAMES
    assert agreement(result.ids.long() - 1, truth) == 1.0
    Predictor(colours("panoptic"), views=Views(short_sides=(96,)))(image)
    for views in (Views(tile=64), Views(flip=True), Views(short_sides=(64, 96))):
        with pytest.raises(ConfigError, match=r"panoptic map.*leave them out"):
            Predictor(colours("panoptic"), views=views)


def test_a_card_that_is_missing_or_of_another_model_is_refused():
    network = colours()
    network.card = dataclasses.replace(network.card, class_names=("one", "two"))
    with pytest.raises(ConfigError, match="3 classes and its card names 2"):
        Predictor(network)
    network.card = None
    with pytest.raises(ConfigError, match=r"model\.card"):
        Predictor(network)


# --- memory


MEMORY = """
import resource, sys
from PIL import Image
from focalnet import Predictor
from focalnet.inference import Views
from tests.inference.segmenters import colours
predictor = Predictor(colours(size=512), views=Views(tile=512, overlap=0.25), batch_size=2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 / (1024 if sys.platform == "darwin" else 1)
predictor(Image.new("RGB", (600, 600)))
before = peak()
predictor(Image.new("RGB", (4000, 2500), (255, 0, 0)))
print(peak() - before)
"""


def test_a_large_image_needs_memory_for_itself_and_its_labels_only():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    # 10 megapixels: 40 MB as an image, 40 MB its copy, 80 MB as labels; 10,000 x 10,000 has ten times as many.
    assert float(done.stdout) < 0.25


def test_a_smooth_image_has_no_seams():
    image = ramp(200, 150)
    whole = Predictor(colours(size=150))(image)
    tiled = Predictor(colours(size=64), views=Views(tile=64))(image)
    assert agreement(tiled.labels, whole.labels) > 0.999
