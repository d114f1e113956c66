"""Augmentation for classification is the paper's, piece by piece."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from focalnet.card import Preprocessing
from focalnet.data.augment import Augmentation
from focalnet.data.loader import seed_all
from focalnet.data.preprocess import eval_transform
from focalnet.errors import ConfigError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = Augmentation(crop="center", flip=0, policy=None, color_jitter=0, erase_prob=0)


def picture(width: int = 90, height: int = 70) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width * 4, height * 4), Image.Resampling.BICUBIC)


def test_the_default_is_the_papers_recipe():
    crop, flip, policy, to_tensor, normalize, erase = Augmentation().build(Preprocessing()).transforms
    assert isinstance(crop, RandomResizedCropAndInterpolation)
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert crop.interpolation == InterpolationMode.BICUBIC
    assert isinstance(flip, T.RandomHorizontalFlip)
    assert flip.p == 0.5
    assert isinstance(policy, RandAugment)
    assert policy.num_layers == 2
    assert {(op.magnitude, op.magnitude_std, op.prob) for op in policy.ops} == {(9, 0.5, 0.5)}
    assert any("Increasing" in op.name for op in policy.ops)
    assert type(to_tensor).__name__ == "MaybeToTensor"
    assert (tuple(normalize.mean.tolist()), tuple(normalize.std.tolist())) == (
        pytest.approx(MEAN),
        pytest.approx(STD),
    )
    assert isinstance(erase, RandomErasing)
    assert (erase.probability, erase.per_pixel, erase.min_count, erase.max_count) == (0.25, True, 1, 1)


def test_jitter_acts_only_without_a_policy():
    jitter = [type(t) for t in Augmentation(policy=None).build(Preprocessing()).transforms]
    assert T.ColorJitter in jitter
    assert T.ColorJitter not in [type(t) for t in Augmentation().build(Preprocessing()).transforms]
    assert T.ColorJitter not in [type(t) for t in Augmentation(policy="trivial").build(Preprocessing()).transforms]


def test_without_variation_training_is_evaluation():
    image = picture()
    torch.testing.assert_close(PLAIN.build(Preprocessing())(image), eval_transform(Preprocessing())(image))


def test_padded_crop_keeps_the_picture_but_for_a_shift():
    how = Preprocessing(image_size=8, crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    image = Image.new("RGB", (8, 8), "white")
    shift = dataclasses.replace(PLAIN, crop="padded", padding=2).build(how)
    kept = set()
    for key in range(40):
        seed_all(key)
        white = shift(image)[0] == 1
        rows, columns = int(white.any(1).sum()), int(white.any(0).sum())
        assert int(white.sum()) == rows * columns  # one rectangle of the picture, black beside it
        kept.add((rows, columns))
    assert kept == {(rows, columns) for rows in (6, 7, 8) for columns in (6, 7, 8)}


def test_padded_crop_enlarges_small_pictures():
    how = Preprocessing(image_size=16, crop_pct=1.0)
    assert Augmentation(crop="padded").build(how)(Image.new("RGB", (8, 8))).shape == (3, 16, 16)


def test_cutout_erases_to_the_mean():
    how = Preprocessing(image_size=32, crop_pct=1.0)
    cutout = dataclasses.replace(PLAIN, erase_prob=1, erase_mode="const").build(how)
    result = cutout(Image.new("RGB", (32, 32), "white"))
    erased = (result == 0).all(0)
    assert 0.01 < erased.float().mean() < 0.4
    assert (result[:, ~erased] > 1).all()


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10", "augmix-m5", "original", "v0", "trivial", None])
def test_every_kind_of_policy_runs(policy: str | None):
    transform = Augmentation(policy=policy).build(Preprocessing(image_size=32))
    for key in range(150):
        seed_all(key)
        assert transform(picture(12, 10)).isfinite().all()


def test_posterize_to_nothing_is_black():
    # At full strength timm keeps 0 bits, which Pillow refuses; the paper's policy reaches it now and then.
    policy = Augmentation().build(Preprocessing()).transforms[2]
    posterize = next(op for op in policy.ops if op.name == "PosterizeIncreasing")
    posterize.magnitude, posterize.magnitude_std, posterize.prob = 10, 0, 1
    assert posterize(Image.new("RGB", (2, 2), "white")).getextrema() == ((0, 0), (0, 0), (0, 0))
    posterize.magnitude = 5
    assert posterize(Image.new("RGB", (2, 2), "white")).getextrema() == ((192, 192),) * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, r"augmentation\.flip=1\.5"),
        ({"erase_prob": -0.1}, r"augmentation\.erase_prob"),
        ({"scale": (0.5, 0.1)}, r"augmentation\.scale"),
        ({"ratio": (0.0, 1.0)}, r"augmentation\.ratio"),
        ({"padding": -1}, r"augmentation\.padding"),
        ({"policy": "no-such"}, 'augmentation.policy="no-such"'),
        ({"policy": "rand-zz9"}, 'augmentation.policy="rand-zz9"'),
    ],
)
def test_impossible_options_are_named(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options).build(Preprocessing())
