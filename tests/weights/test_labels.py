"""Label sets, and the ImageNet-1K part of an ImageNet-22K head."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from timm.data.imagenet_info import ImageNetInfo

from focalnet.card import ModelCard
from focalnet.errors import CheckpointError
from focalnet.weights.labels import UNUSED, UNUSED_INDEX, class_names, cut_to_imagenet1k
from tests.weights.small import PLAIN, classifier


def test_the_first_thousand_of_imagenet22k_are_imagenet1k_but_for_the_unused_output() -> None:
    few, many = class_names("imagenet1k"), class_names("imagenet22k")
    assert (len(few), len(many)) == (1000, 21842)
    assert [i for i in range(1000) if few[i] != many[i]] == [UNUSED_INDEX]
    assert few[UNUSED_INDEX] == "teddy, teddy bear"
    assert many[UNUSED_INDEX] == UNUSED
    assert many.count(UNUSED) == 1


def test_the_rest_of_imagenet22k_is_in_the_official_order() -> None:
    # Three rows of labelmap_22k_reorder.txt of microsoft/FocalNet.
    synsets = ImageNetInfo("imagenet-22k-ms").label_names()
    assert [synsets[i] for i in (1000, 1075, 2140)] == ["n00004475", "n00449796", "n01743936"]


def test_cifar10() -> None:
    assert class_names("cifar10")[3] == "cat"


def test_ade20k_has_the_names_of_its_own_list(shared: Path) -> None:
    with (shared / "data" / "ade20k_sample" / "objectInfo150.csv").open(newline="") as table:
        theirs = [row["Name"].split(";") for row in csv.DictReader(table)]  # ";" between words and between names
    ours = class_names("ade20k")
    assert len(ours) == len(set(ours)) == 150
    for name, words in zip(ours, theirs, strict=True):
        assert name.split() == words[: len(name.split())]


def test_cutting_a_head() -> None:
    model = classifier(PLAIN, num_classes=21842)
    model.card = ModelCard(name="x", class_names=class_names("imagenet22k"))
    x = torch.randn(1, 3, 32, 32)

    cut = cut_to_imagenet1k(model)

    assert cut.num_classes == 1000
    assert cut.card == dataclasses.replace(model.card, class_names=model.card.class_names[:1000])
    assert not cut.training
    with torch.no_grad():
        torch.testing.assert_close(cut(x), model(x)[:, :1000])
    assert cut.patch_embed.proj.weight.data_ptr() == model.patch_embed.proj.weight.data_ptr()  # shared, not copied


def test_another_head_cannot_be_cut() -> None:
    with pytest.raises(CheckpointError, match="this one has 1000"):
        cut_to_imagenet1k(classifier(PLAIN, num_classes=1000))
