"""Panoptic quality: by hand, against a slow implementation of the same rules, and on COCO's own sample."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.data.formats.coco_panoptic import read_ids, read_panoptic
from focalnet.data.readers.image_files import find_maps
from focalnet.errors import ConfigError, InputError
from focalnet.metrics.instances import predicted_map, target_map
from focalnet.metrics.panoptic import PanopticQuality
from focalnet.results import Detections, PanopticMap, Segment
from focalnet.samples import PanopticTarget

NAMES = ("ant", "bee", "grass")  # two things, one stuff


def truth(ids: list[list[int]], labels: list[int], crowds: list[bool] | None = None) -> PanopticTarget:
    return PanopticTarget(
        ids=torch.tensor(ids, dtype=torch.int32),
        labels=torch.tensor(labels, dtype=torch.int64),
        crowds=torch.tensor(crowds or [False] * len(labels), dtype=torch.bool),
    )


def found(ids: list[list[int]], labels: dict[int, int]) -> PanopticMap:
    """``labels`` by id."""
    pixels = torch.tensor(ids, dtype=torch.int32)
    segments = [Segment(i, label, label < 2, 1.0, int((pixels == i).sum())) for i, label in labels.items()]
    return PanopticMap(pixels, tuple(segments))


def quality(maps, truths) -> PanopticQuality:
    metric = PanopticQuality(NAMES, 2)
    metric.update(maps, truths)
    return metric


# --- by hand


def test_a_match_counts_its_overlap():
    metric = quality([found([[5, 5, 5, 0]], {5: 0})], [truth([[1, 1, 1, 1]], [0])])
    stats = metric.compute().stats
    assert (stats["pq"], stats["sq"], stats["rq"]) == pytest.approx((75, 75, 100))
    assert stats["pq_things"] == pytest.approx(75)
    assert math.isnan(stats["pq_stuff"])
    assert "pq_stuff" not in metric.compute().summary()
    assert math.isnan(metric.compute().by_class["bee"]["pq"])


@pytest.mark.parametrize(("pixels", "expected"), [([1, 1, 0, 0], 0), ([1, 1, 1, 0], 75)])
def test_half_an_overlap_is_no_match(pixels, expected):
    metric = quality([found([pixels], {1: 0})], [truth([[1, 1, 1, 1]], [0])])
    assert metric.compute().stats["pq"] == pytest.approx(expected)
    assert metric.counts[0].tolist() == ([0, 0, 1, 1] if not expected else [0.75, 1, 0, 0])


def test_a_wrong_class_is_invented_and_missed():
    metric = quality([found([[1, 1]], {1: 1})], [truth([[1, 1]], [0])])
    assert metric.counts.tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert metric.compute().stats["pq"] == 0


def test_void_is_no_part_of_a_union():
    # 4 of 6 found pixels are right, 1 lies on void, 1 on another class: 4 / (4 + 6 - 1 - 4)
    metric = quality([found([[1] * 6], {1: 0})], [truth([[1, 1, 1, 1, 0, 2]], [0, 2])])
    assert metric.counts[0].tolist() == [0.8, 1, 0, 0]


@pytest.mark.parametrize(("pixels", "mistakes"), [([0, 0, 0, 2], 0), ([0, 0, 2, 2], 1), ([0, 2, 2, 2], 1)])
def test_what_lies_mostly_on_void_is_no_mistake(pixels, mistakes):
    metric = quality([found([[1] * 4], {1: 0})], [truth([pixels], [1, 2])])
    assert metric.counts[0].tolist() == [0, 0, mistakes, 0]


@pytest.mark.parametrize(("label", "mistakes"), [(0, 0), (1, 1)])
def test_what_lies_mostly_in_a_crowd_of_its_class_is_no_mistake(label, mistakes):
    metric = quality([found([[1] * 4], {1: label})], [truth([[1, 1, 0, 2]], [0, 2], [True, False])])
    assert metric.counts[label].tolist() == [0, 0, mistakes, 0]
    assert metric.counts[:2, 3].sum() == 0  # and the crowd is not missed
    assert metric.counts[:, 1].sum() == 0  # nor found, however well it is covered


def test_of_several_crowds_of_a_class_the_last_counts():
    crowds = truth([[1, 1, 1, 2]], [0, 0], [True, True])
    assert quality([found([[1] * 4], {1: 0})], [crowds]).counts[0].tolist() == [0, 0, 1, 0]


def test_classes_weigh_the_same_whatever_their_number():
    one = truth([[1, 2, 3, 0]], [0, 0, 2])
    stats = quality([found([[1, 2, 0, 0]], {1: 0, 2: 0})], [one]).compute().stats
    assert (stats["pq"], stats["pq_things"], stats["pq_stuff"]) == pytest.approx((50, 100, 0))


def test_a_map_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="1 x 2 and 1 x 3 pixels"):
        quality([found([[1, 1]], {1: 0})], [truth([[1, 1, 1]], [0])])
    with pytest.raises(InputError, match="does not list"):
        quality([found([[1, 7]], {1: 0})], [truth([[1, 1]], [0])])
    with pytest.raises(InputError, match="does not list"):
        quality([found([[1, 1]], {})], [truth([[1, 1]], [0])])


def test_segments_whose_ids_cannot_be_counted_are_refused():
    with pytest.raises(InputError, match=r"a segment with the id 0, but 0 is void.*from 1"):
        quality([found([[0, 1]], {0: 0, 1: 1})], [truth([[1, 2]], [0, 1])])
    twice = found([[4, 4]], {4: 0})
    with pytest.raises(InputError, match="two segments with the id 4"):
        quality([replace(twice, segments=twice.segments * 2)], [truth([[1, 1]], [0])])
    with pytest.raises(InputError, match="ids from 1 to 2, but 1 segments"):
        quality([found([[1, 1]], {1: 0})], [truth([[1, 2]], [0])])


# --- against a slow one


def slow(one: PanopticMap, true: PanopticTarget) -> list[list[float]]:
    """The rules again, set by set."""
    ids, true_ids = one.ids.flatten().tolist(), true.ids.flatten().tolist()
    pixels = range(len(ids))
    void = {p for p in pixels if true_ids[p] == 0}
    theirs = [{p for p in pixels if true_ids[p] == i + 1} for i in range(len(true.labels))]
    counts = [[0.0] * 4 for _ in NAMES]
    matched = set()
    for segment in one.segments:
        mine = {p for p in pixels if ids[p] == segment.id}
        if not mine:
            continue
        partner = None
        on_nothing = len(mine & void)
        crowd = None
        for i, other in enumerate(theirs):
            if true.labels[i] != segment.label:
                continue
            if true.crowds[i]:
                crowd = other
            elif other and len(mine & other) / len((mine | other) - (mine & void)) > 0.5:
                partner = i
        if partner is not None:
            matched.add(partner)
            counts[segment.label][0] += len(mine & theirs[partner]) / len((mine | theirs[partner]) - (mine & void))
            counts[segment.label][1] += 1
        elif (on_nothing + len(mine & (crowd or set()))) / len(mine) <= 0.5:
            counts[segment.label][2] += 1
    for i, label in enumerate(true.labels.tolist()):
        if i not in matched and not true.crowds[i]:
            counts[label][3] += 1
    return counts


def image(seed: int) -> tuple[PanopticMap, PanopticTarget]:
    """Of a few pixels; most of what is found is there, so that there is something to match."""
    draw = np.random.default_rng(seed)
    count, segments = draw.integers(0, 6, 2)
    true = draw.integers(0, count + 1, draw.integers(1, 6, 2))
    places = np.where(draw.random(true.shape) < 0.7, true, draw.integers(0, segments + 1, true.shape))
    ids = [0, *draw.choice(10**6, segments, replace=False) + 1]
    seen = [[int(ids[place]) if place <= segments else 0 for place in row] for row in places]
    labels = draw.integers(0, len(NAMES), 6)
    guesses = np.where(draw.random(6) < 0.8, labels, draw.integers(0, len(NAMES), 6))
    one = found(seen, {int(ids[i + 1]): int(guesses[i]) for i in range(segments)})
    return one, truth(true.tolist(), labels[:count].tolist(), (draw.random(count) < 0.25).tolist())


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_counts_are_those_of_a_slow_implementation(seed):
    one, true = image(seed)
    metric = quality([one], [true])
    torch.testing.assert_close(metric.counts, torch.tensor(slow(one, true), dtype=torch.float64))
    for figures in metric.compute().by_class.values():
        if not math.isnan(figures["pq"]):
            assert figures["pq"] == pytest.approx(figures["sq"] * figures["rq"] / 100)
            assert 0 <= figures["pq"] <= 100


def test_images_add_up_in_any_order():
    some = [image(seed) for seed in range(4)]
    together, apart = quality(*zip(*some, strict=True)), quality([], [])
    for one, true in reversed(some):
        apart.update([one], [true])
    torch.testing.assert_close(together.counts, apart.counts)


def test_processes_add_up(monkeypatch):
    some = [image(seed) for seed in range(4)]
    parts = [quality(*zip(*some[i::2], strict=True)) for i in (0, 1)]

    def gather(gathered, _):
        gathered[:] = [part.counts.clone() for part in parts]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    parts[1].gather()
    torch.testing.assert_close(parts[1].counts, quality(*zip(*some, strict=True)).counts)


def test_what_is_there_found_as_it_is_has_the_best_quality(shared):
    root = shared / "data/coco_panoptic_sample"
    annotated = read_panoptic(root / "panoptic_examples.json")
    maps = find_maps(root, annotated.path, list(annotated.maps.values()))
    label_of = annotated.label_of()
    metric = PanopticQuality(annotated.class_names, annotated.num_things)
    for image in annotated.images:
        ids = torch.from_numpy(read_ids(maps, annotated.maps[image.image_id], image))
        labels = [label_of[a["category_id"]] for a in image.annotations]
        crowds = [bool(a["iscrowd"]) for a in image.annotations]
        true = PanopticTarget(ids=ids, labels=torch.tensor(labels), crowds=torch.tensor(crowds))
        segments = [Segment(i + 1, label, True, 1.0, 0) for i, label in enumerate(labels)]
        metric.update([PanopticMap(ids, tuple(segments))], [true])
    stats = metric.compute().stats
    assert all(stats[name] == 100 for name in ("pq", "sq", "rq", "pq_things", "pq_stuff"))
    assert metric.counts.sum(0).tolist() == [47, 47, 0, 0]  # 50 segments, 3 of them crowds


# --- objects


def detections(masks: torch.Tensor, scores: list[float]) -> Detections:
    count = len(masks)
    return Detections(torch.zeros(count, 4), torch.tensor(scores), torch.zeros(count, dtype=torch.int64), masks=masks)


def test_objects_are_laid_side_by_side_best_first():
    masks = torch.zeros(4, 2, 6, dtype=torch.bool)
    masks[0, :, :3] = masks[1, :, 2:5] = masks[2, :, 1:4] = masks[3, :, 5:] = True
    laid = predicted_map(
        detections(masks, [0.9, 0.8, 0.7, 0.3])
    )  # nothing is left of the third, the last is too unsure
    assert laid.ids.tolist() == [[1, 1, 1, 2, 2, 0]] * 2
    assert [(s.id, s.area, s.is_thing) for s in laid.segments] == [(1, 6, True), (2, 4, True)]
    with pytest.raises(ConfigError, match="boxes only"):
        predicted_map(replace(detections(masks, [1.0] * 4), masks=None))


def test_of_overlapping_annotations_the_smaller_is_in_front():
    masks = torch.zeros(4, 1, 6, dtype=torch.bool)
    masks[0, :, :2] = masks[1, :, :4] = masks[2] = True
    masks[3, :, 0] = True
    one = target_map(masks, torch.tensor([4, 3, 2, 1]), torch.tensor([False, False, True, False]))
    assert one.ids.tolist() == [[4, 1, 2, 2, 3, 3]]
    masks[3, :, :2] = True  # as large as the first, and behind it in the file: it covers the first altogether
    one = target_map(masks, torch.tensor([4, 3, 2, 1]), torch.tensor([False, False, True, False]))
    assert one.ids.tolist() == [[3, 3, 1, 1, 2, 2]]
    assert (one.labels.tolist(), one.crowds.tolist()) == ([3, 2, 1], [False, True, False])
    nothing = target_map(
        torch.zeros(0, 2, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0).bool()
    )
    assert nothing.ids.tolist() == [[0, 0, 0]] * 2
