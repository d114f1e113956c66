"""Batches reach workers, page-locked memory and devices whole, whatever their targets are."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor
from torch.utils._pytree import tree_leaves

from focalnet.data.loader import collate
from focalnet.samples import IGNORED, Batch, ImageInfo, LabelMapTarget, ObjectTarget, PanopticTarget, Sample


def sample(target, height=5, width=7, channels=3, views=()):
    image = torch.rand(channels, height, width)
    return Sample(image, target, ImageInfo("a.png", (10, 14), 3), [torch.rand(channels, *size) for size in views])


def objects(height=5, width=7):
    masks = torch.ones(2, height, width, dtype=torch.bool)
    return ObjectTarget(torch.rand(2, 4), torch.tensor([0, 1]), masks, torch.zeros(0, 4))


def label_map(height=5, width=7):
    return LabelMapTarget(torch.ones(height, width, dtype=torch.int64))


def panoptic(height=5, width=7):
    ids = torch.ones(height, width, dtype=torch.int32)
    return PanopticTarget(ids, torch.tensor([4]), torch.tensor([False]))


TARGETS = {"classification": lambda: 2, "objects": objects, "label map": label_map, "panoptic": panoptic}


def tensors(value) -> list[Tensor]:
    """All tensors of a batch, in order."""
    if dataclasses.is_dataclass(value):
        return [one for field in dataclasses.fields(value) for one in tensors(getattr(value, field.name))]
    if isinstance(value, list):
        return [one for item in value for one in tensors(item)]
    return [one for one in tree_leaves(value) if isinstance(one, Tensor)]


@pytest.fixture(params=TARGETS)
def batch(request) -> Batch:
    return collate([sample(TARGETS[request.param](), views=((3, 4),)) for _ in range(2)], 4, training=True)


def test_lightning_moves_every_tensor(batch):
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch)
    assert [one.device.type for one in tensors(moved)] == ["meta"] * len(tensors(batch))
    assert {one.device.type for one in tensors(batch)} == {"cpu"}
    assert (moved.infos, moved.sizes, moved.views[0].sizes) == (batch.infos, batch.sizes, batch.views[0].sizes)


def test_lightning_converts_images_to_half_precision(batch):
    converted = HalfPrecision("bf16-true").convert_input(batch)
    assert {converted.images.dtype, converted.views[0].images.dtype} == {torch.bfloat16}
    assert batch.images.dtype == torch.float32


def test_every_tensor_is_pinned(batch, monkeypatch):
    pinned: list[Tensor] = []

    def pin_memory(self):
        pinned.append(self)
        return self.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    result = torch.utils.data._utils.pin_memory.pin_memory(batch)
    assert isinstance(result, Batch)
    assert {id(one) for one in pinned} == {id(one) for one in tensors(batch)}
    assert len(tensors(result)) == len(tensors(batch))


def test_batches_are_pickled_whole(batch):
    again = pickle.loads(pickle.dumps(batch))
    assert all(torch.equal(a, b) for a, b in zip(tensors(again), tensors(batch), strict=True))
    assert again.infos == batch.infos
    assert len(again) == len(copy.deepcopy(batch)) == 2


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_are_padded_to_the_divisor(channels):
    given = [sample(1, 5, 7, channels, ((3, 4),)), sample(2, 9, 2, channels, ((2, 2),))]
    batch = collate(given, 4)
    assert batch.images.shape == (2, channels, 12, 8)
    assert batch.views[0].images.shape == (2, channels, 4, 4)
    assert (batch.sizes, batch.views[0].sizes) == ([(5, 7), (9, 2)], [(3, 4), (2, 2)])
    assert torch.equal(batch.images[0, :, :5, :7], given[0].image)
    assert not batch.images[0, :, 5:].any()
    assert not batch.images[0, :, :, 7:].any()
    assert batch.targets.tolist() == [1, 2]
    assert batch.original_sizes == [(10, 14)] * 2
    assert batch.paths == ["a.png"] * 2


@pytest.mark.parametrize("training", [True, False])
def test_targets_are_padded_with_the_images_in_training(training):
    def together(target):
        return collate([sample(target), sample(target)], 4, training=training).targets[0]

    size = (8, 8) if training else (5, 7)
    labels, ids, masks = together(label_map()).labels, together(panoptic()).ids, together(objects()).masks
    assert (labels.shape, ids.shape, masks.shape) == (size, size, (2, 8, 8))
    assert (labels[5:] == IGNORED).all()
    assert (labels[:, 7:] == IGNORED).all()
    assert int(labels[:5, :7].sum()) == int(ids.sum()) == 35
    assert int(masks.sum()) == 70
