"""Upright pictures and lying ones do not pad each other; everything else stays as it would be without groups."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focalnet.data import DetectionAugmentation, DetectionData
from focalnet.data import loader as loading
from focalnet.data.loader import EpochBatches, by_group
from tests.data.coco import HEIGHT, WIDTH, annotation, content, write_json

pytest.importorskip("pycocotools", reason="detection needs the extra dense")


def batches(size: int, batch_size: int, processes: int = 1, skip: int = 0, **options) -> list[list[list[int]]]:
    """The indices of each process's batches in epoch 3."""
    shares = []
    for rank in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading, "world", lambda rank=rank: (rank, processes))
            order = EpochBatches(size, batch_size, training=True, **options)
            order.set_epoch(3)
            order.skip = skip
            shares.append([[index for _, index in batch] for batch in order])
            assert len(order) == len(shares[-1]) + skip
    return shares


@given(
    ratios=st.lists(st.floats(0.1, 10), min_size=20, max_size=200),  # one batch at least
    share=st.integers(1, 5),
    processes=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=200)
def test_batches_are_of_one_group_but_for_the_remainders(ratios, share, processes, seed):
    size, batch_size, groups = len(ratios), share * processes, [ratio < 1 for ratio in ratios]
    shares = batches(size, batch_size, processes, seed=seed, groups=groups)
    assert {len(one) for one in shares} == {size // batch_size}
    assert {len(batch) for one in shares for batch in one} <= {share}
    together = [sorted(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]
    used = sorted(itertools.chain(*together))
    (without,) = batches(size, batch_size, seed=seed)
    assert used == sorted(itertools.chain(*without))  # each picture once, and none left out that was not before
    mixed = [number for number, batch in enumerate(together) if len({groups[index] for index in batch}) > 1]
    remainder = sum(groups[index] for index in used) % batch_size
    assert mixed == ([len(together) - 1] if remainder else [])
    (alone,) = batches(size, batch_size, seed=seed, groups=groups)
    assert [sorted(batch) for batch in alone] == together


@given(st.integers(9, 200), st.integers(1, 9), st.booleans())
@settings(max_examples=100)
def test_where_all_are_of_one_group_nothing_changes(size, batch_size, upright):
    assert batches(size, batch_size, seed=1, groups=[upright] * size) == batches(size, batch_size, seed=1)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 7))
@settings(max_examples=100)
def test_a_batch_comes_where_its_last_picture_was_and_groups_keep_their_order(groups, batch_size):
    order = np.random.default_rng(0).permutation(len(groups))
    place = {index: number for number, index in enumerate(order.tolist())}
    arranged = by_group(order, groups, batch_size).tolist()
    for group in set(groups):
        of_it = [place[index] for index in arranged if groups[index] == group]
        assert of_it == sorted(of_it)
    whole = sum(groups.count(group) // batch_size for group in set(groups))
    last = [place[index] for index in arranged[batch_size - 1 : whole * batch_size : batch_size]]
    assert last == sorted(last)


def test_an_interrupted_epoch_goes_on():
    groups = [index % 3 == 0 for index in range(40)]
    whole, rest = (batches(40, 4, 2, skip=skip, seed=1, groups=groups) for skip in (0, 7))
    assert rest == [share[7:] for share in whole]


# --- detection's pictures


@pytest.fixture(scope="module")
def turned(tmp_path_factory) -> Path:
    """Twelve images, one in three of them upright; the first has an object."""
    root = tmp_path_factory.mktemp("turned")
    dataset = {**content(12), "annotations": [annotation(1, 10, 3, [2.0, 2.0, 20.0, 20.0])]}
    for place, image in enumerate(dataset["images"]):
        if place % 3 == 0:
            image["height"], image["width"] = WIDTH, HEIGHT
        for part in ("train", "val"):
            (root / part).mkdir(exist_ok=True)
            Image.new("RGB", (image["width"], image["height"])).save(root / part / image["file_name"])
    for part in ("train", "val"):
        write_json(root / f"annotations/instances_{part}.json", dataset)
    return root


def loaded(root: Path, workers: int = 0) -> DetectionData:
    augmentation = DetectionAugmentation(short_sides=(60,), crop_prob=0.0)
    options = {"image_size": 60, "max_size": 96, "batch_size": 4, "augmentation": augmentation}
    module = DetectionData(root, num_workers=workers, **options)
    module.setup("fit")
    return module


@pytest.mark.parametrize("workers", [0, 2])
def test_no_training_batch_is_padded_to_a_square(turned, workers):
    loader = loaded(turned, workers).train_dataloader()
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        shapes = [tuple(batch.images.shape) for batch in loader]
        assert sorted(shapes) == [(4, 3, 64, 96), (4, 3, 64, 96), (4, 3, 96, 64)]


def test_the_loader_goes_on_within_an_epoch(turned):
    whole = list(loaded(turned).train_dataloader())
    loader = loaded(turned).train_dataloader()
    first = list(itertools.islice(loader, 2))
    resumed = loaded(turned).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    found = first + list(resumed)
    assert [batch.paths for batch in found] == [batch.paths for batch in whole]
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, whole, strict=True))


def test_evaluation_keeps_its_order(turned):
    found = [info.image_id for batch in loaded(turned).val_dataloader() for info in batch.infos]
    assert found == [10 * number for number in range(1, 13)]
