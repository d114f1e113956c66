"""What a network is trained on: right numbers of any type that holds them, one line for everything that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import focalnet
from focalnet.errors import ConfigError, InputError
from focalnet.models.targets import checked_classes, checked_label_maps, checked_objects, checked_segments
from focalnet.samples import IGNORED, Batch, LabelMapTarget, ObjectTarget, PanopticTarget
from tests.models import small
from tests.models.test_contract import NETWORKS

NAN = float("nan")
Change = Callable[[ObjectTarget], Any]


def batch(targets: Any, images: Tensor | None = None) -> Batch[Any]:
    return Batch(torch.zeros(2, 3, 64, 96) if images is None else images, small.SIZES, targets, [])


def of_objects(change: Change) -> Batch[ObjectTarget]:
    return batch([change(small.target(2)), small.target(1)])


def setting(**values: Any) -> Change:
    return lambda target: replace(target, **values)


WRONG_OBJECTS: list[tuple[Change, str]] = [
    *((setting(labels=torch.tensor([0, label])), f"label {label} is none of the 3 classes") for label in (3, -1, -100)),
    (setting(labels=torch.tensor([0.0, 1.0])), "must be integers, not float32"),
    (setting(labels=torch.tensor([False, True])), "must be integers, not bool"),
    (setting(labels=torch.tensor([[0], [1]])), r"labels must be \(2,\), one for each object, not \(2, 1\)"),
    (setting(labels=torch.tensor([0, 1, 2])), r"labels must be \(2,\), one for each object, not \(3,\)"),
    (setting(labels=[0, 1]), "labels must be a tensor, not a list"),
    (lambda t: replace(t, boxes=t.boxes * torch.tensor([1, 1, 1, NAN])), r"box \[5, 6, 40, nan\] .* finite"),
    (lambda t: replace(t, boxes=t.boxes[:, [2, 3, 0, 1]]), r"box \[40, 30, 5, 6\] .* width and height above 0"),
    (lambda t: replace(t, boxes=t.boxes[:, [0, 1, 0, 3]]), "width and height above 0"),
    (lambda t: replace(t, boxes=t.boxes + 90), "lies outside its image"),
    (lambda t: replace(t, boxes=-t.boxes.flip(1)), "lies outside its image"),
    (lambda t: replace(t, boxes=torch.cat([t.boxes, t.boxes[:, :1]], 1)), r"boxes must be \(N, 4\)"),
    (lambda t: replace(t, boxes=t.boxes.to("meta")), "boxes is on meta, the images are on cpu"),
    (lambda t: replace(t, ignored=t.boxes[0]), r"ignored must be \(N, 4\)"),
    (lambda t: replace(t, masks=t.masks.to(torch.uint8) * 255), r"masks must be bool, .*masks > 0 makes them"),
    (lambda t: replace(t, masks=t.masks[:1]), r"has 2 boxes, but masks \(1, 64, 96\)"),
    (lambda t: replace(t, masks=t.masks.repeat(2, 1, 1)), r"has 2 boxes, but masks \(4, 64, 96\)"),
    (lambda t: replace(t, masks=t.masks[:, ::2, ::2]), "has 32 x 48 pixels, but its image 61 x 90"),
    (lambda t: replace(t, masks=t.masks.repeat(1, 2, 2)), "128 x 192 pixels .* do not fit into 64 x 96"),
    (lambda t: {"boxes": t.boxes, "labels": t.labels}, "is a dict: this network learns from ObjectTarget"),
    (lambda t: LabelMapTarget(torch.zeros(64, 96, dtype=torch.int64)), "is a LabelMapTarget"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), WRONG_OBJECTS)
def test_objects_that_cannot_be(change: Change, says: str) -> None:
    with pytest.raises(InputError, match=says):
        checked_objects(of_objects(change), 3, masks=True)


@pytest.mark.parametrize("name", [*small.METHODS, "mask2former"])
def test_every_family_refuses_them(name: str) -> None:
    model = NETWORKS[name]().build()
    with pytest.raises(InputError, match="label 3 is none of the 3 classes"):
        model.loss(of_objects(setting(labels=torch.tensor([0, 3]))))
    with pytest.raises(InputError, match="needs a list of 2 targets"):
        model.loss(batch([small.target(1)]))
    with pytest.raises(InputError, match=r"at least one, not \(0, 3, 64, 96\)"):
        model.loss(batch([], torch.zeros(0, 3, 64, 96)))
    with pytest.raises(InputError, match=r"not \(3, 64, 96\)"):
        model.loss(batch([small.target(1)] * 3, torch.zeros(3, 64, 96)))
    with pytest.raises(InputError, match=r"sizes .* do not fit"):
        model.loss(Batch(torch.zeros(2, 3, 64, 96), [(0, 0), (64, 96)], [small.target(1)] * 2, []))


def test_relative_boxes_are_told_from_what_a_crop_leaves() -> None:
    relative = [replace(t, boxes=t.boxes / 96) for t in (small.target(2), small.target(1))]
    with pytest.raises(InputError, match=r"lies in the first pixel .* boxes are in pixels"):
        checked_objects(batch(relative), 3)
    sliver = replace(small.target(1), boxes=torch.tensor([[0.0, 0.0, 0.5, 0.75]]))
    assert len(checked_objects(batch([sliver, small.target(0)]), 3)) == 2


@pytest.mark.parametrize("name", ["mask_rcnn", "atss", "sparse_rcnn", "dino", "mask2former"])
def test_other_types_of_the_same_numbers_have_the_same_loss(name: str) -> None:
    model, torch_types = NETWORKS[name]().build().eval(), (torch.uint8, torch.int32)
    empty = ObjectTarget(torch.zeros(0), torch.zeros(0), torch.zeros(0), None)  # type: ignore[arg-type]
    given = [[small.target(2), small.target(0)]]
    for kind in torch_types:
        given.append([setting(labels=torch.tensor([0, 1], dtype=kind))(given[0][0]), empty])
    given.append([replace(t, boxes=t.boxes.double(), masks=t.masks.float()) for t in given[0]])  # type: ignore[union-attr]
    given.append([replace(given[0][0], boxes=given[0][0].boxes.half()), empty])
    losses = []
    for targets in given:
        torch.manual_seed(0)
        losses.append(model.loss(batch(targets)))
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0])


@pytest.mark.parametrize("name", small.METHODS)
def test_a_diverged_network_has_a_loss_that_is_not_finite(name: str) -> None:
    model = NETWORKS[name]().build()
    losses = model.loss(batch([small.target(2), small.target(1)], torch.full((2, 3, 64, 96), NAN)))
    assert not torch.stack(list(losses.values())).sum().isfinite()


def test_label_maps() -> None:
    labels = torch.arange(64 * 96).view(64, 96) % 3

    def checked(labels: Tensor) -> Tensor:
        return checked_label_maps(batch([LabelMapTarget(labels), LabelMapTarget(labels[:, :75])]), 3)

    with_ignored = labels.masked_fill(labels == 1, IGNORED)
    assert torch.equal(checked(with_ignored.to(torch.uint8))[0], with_ignored)
    assert (checked(labels)[1, :, 75:] == IGNORED).all()
    for wrong, says in (
        (labels + 1, f"label 3 is none of the 3 classes .* 0..2, or {IGNORED} where nothing is labeled"),
        (labels - 1, "label -1"),
        (labels.float(), r"must be integers \(H, W\), not torch.float32"),
        (labels[None], r"not torch.int64 \(1, 64, 96\)"),
        (labels[::2, ::2], "has 32 x 48 pixels, but its image"),
    ):
        with pytest.raises(InputError, match=says):
            checked(wrong)
    with pytest.raises(InputError, match="needs a list of 2 targets"):
        small.upernet().build().loss(batch(labels[None].repeat(2, 1, 1)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": torch.tensor([3, 0])}, "label 3 is none of the 3 classes"),
        ({"labels": torch.tensor([0])}, r"labels must be \(2,\)"),
        ({"ids": torch.full((64, 96), 3)}, "the number of one of the 2 segments, from 1, not 3..3"),
        ({"ids": torch.full((64, 96), -1)}, "from 1, not -1..-1"),
        ({"ids": torch.ones(64, 96)}, "ids must be integers"),
        ({"crowds": torch.tensor([0, 2])}, "crowds must be bool"),
    ],
)
def test_panoptic_targets(changes: dict[str, Tensor], says: str) -> None:
    ids = torch.zeros(64, 96, dtype=torch.int32)
    ids[:20], ids[30:] = 1, 2
    target = PanopticTarget(ids, torch.tensor([0, 2]), torch.tensor([False, True]))
    assert [len(one.labels) for one in checked_segments(batch([target] * 2), 3)] == [1, 1]
    with pytest.raises(InputError, match=says):
        checked_segments(batch([replace(target, **changes)] * 2), 3)


ONE_HOT = torch.eye(3)[:2]


@pytest.mark.parametrize(
    ("targets", "multi_label", "says"),
    [
        *((torch.tensor([0, label]), False, f"label {label} is none of the 3") for label in (3, -1, -100)),
        (torch.tensor([0.0, 2.0]), False, r"integer class indices .* not float32 \(2,\)"),
        (torch.tensor([[0], [2]]), False, r"not int64 \(2, 1\)"),
        (ONE_HOT.long(), False, r"not int64 \(2, 3\)"),
        (2 * ONE_HOT, False, "between 0 and 1"),
        (ONE_HOT.flip(0) * NAN, False, "between 0 and 1"),
        (ONE_HOT + ONE_HOT.flip(0), False, "must sum to 1; .* multi_label=True"),
        (torch.eye(4)[:2], False, r"not float32 \(2, 4\)"),
        (["cat", "dog"], False, "not a list"),
        (None, False, "not a NoneType"),
        (torch.tensor([0, 2]), True, r"for each image and class, \(2, 3\), not \(2,\)"),
        (255 * ONE_HOT.long(), True, "between 0 and 1"),
    ],
)
def test_classes_that_cannot_be(targets: Any, multi_label: bool, says: str) -> None:
    with pytest.raises(InputError, match=says):
        checked_classes(batch(targets), 3, multi_label=multi_label)


def test_classes_of_the_head_that_is_there() -> None:
    model = focalnet.create_model("focalnet_nano", num_classes=0, depths=(1, 1, 1))
    images, sizes = torch.randn(2, 3, 32, 32), [(32, 32)] * 2
    with pytest.raises(ConfigError, match=r"num_classes=0 has no loss: reset_classifier\(n\)"):
        model.loss(Batch(images, sizes, torch.tensor([0, 1]), []))
    model.head = torch.nn.Linear(model.num_features, 5)
    with pytest.raises(InputError, match="label 5 is none of the 5 classes"):
        model.loss(Batch(images, sizes, torch.tensor([0, 5]), []))
    expected = torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 4]))
    for targets in ([0, 4], torch.tensor([0, 4], dtype=torch.uint8), torch.eye(5)[[0, 4]].half()):
        torch.testing.assert_close(model.loss(Batch(images, sizes, targets, []))["loss"], expected)
