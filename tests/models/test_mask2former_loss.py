"""The losses of Mask2Former: what they are, whom they reach, and what they survive."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.models.mask2former import Mask2FormerOutputs
from focalnet.models.mask2former import loss as losses
from focalnet.samples import Segments
from tests.models.small import images, mask2former, segments

CONFIG = mask2former()


def layer(seed: int = 0, queries: int = 6, *, logits: float = 1.0) -> Mask2FormerOutputs:
    """What a layer says of two images of 32 x 48 pixels."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(2, queries, CONFIG.num_classes + 1, generator=generator) * logits
    return Mask2FormerOutputs(classes, torch.randn(2, queries, 8, 12, generator=generator) * 4, (32, 48))


def truth(count: int, seed: int = 0) -> Segments:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 32, 48, generator=generator) > 0.6
    return Segments(labels=torch.randint(CONFIG.num_classes, (count,), generator=generator), masks=masks)


def seeded(outputs: list[Mask2FormerOutputs], targets: list[Segments], seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    return {name: float(value) for name, value in losses.losses(CONFIG, outputs, targets).items()}


def test_terms_of_a_perfect_prediction() -> None:
    masks = torch.zeros(1, 6, 32, 48, dtype=torch.bool)
    masks[0, 0, :20, :30], masks[0, 1, 20:], masks[0, 2, :20, 30:] = True, True, True
    target = Segments(labels=torch.tensor([2, 0, 2]), masks=masks[0, :3])
    wanted = torch.tensor([[2, 0, 2, 3, 3, 3]])
    sure = Mask2FormerOutputs(torch.nn.functional.one_hot(wanted) * 50.0, masks * 200.0 - 100.0, (32, 48))
    torch.manual_seed(0)
    found = losses.losses(dataclasses.replace(CONFIG, importance=0.0), [sure], [target])
    assert list(found) == ["loss_cls", "loss_mask", "loss_dice"]
    assert found["loss_cls"] < 1e-6
    assert found["loss_mask"] < 5  # of logits of 100, at points between two pixels
    assert found["loss_dice"] < 0.3


def test_class_loss_of_no_knowledge() -> None:
    """Six queries, two segments: the mean over queries, of which the four without a segment weigh a tenth."""
    outputs, target = layer(logits=0.0), truth(2)
    found = seeded([outputs], [target, target])
    assert found["loss_cls"] == pytest.approx(2 * math.log(CONFIG.num_classes + 1), rel=1e-5)


@pytest.mark.parametrize("counts", [(3, 2), (2, 0), (0, 0)])
def test_losses_are_finite_and_reach_every_parameter(counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = mask2former().build().train()
    terms = losses.losses(model.config, model.training_outputs(images()), [segments(n) for n in counts])
    assert len(terms) == 3 * (model.config.decoder_layers + 1)
    assert all(value.ndim == 0 and value.dtype == torch.float32 and value.isfinite() for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []  # DDP waits for every one of them
    assert all(p.grad.isfinite().all() for p in model.parameters())


@settings(max_examples=20)
@given(order=st.permutations(range(4)), seed=st.integers(0, 2**31))
def test_the_order_of_segments_does_not_matter(order: list[int], seed: int) -> None:
    target = truth(4, seed)
    other = Segments(labels=target.labels[order], masks=target.masks[order])
    a, b = (seeded([layer(seed)], [t, truth(1)]) for t in (target, other))
    assert a == pytest.approx(b, rel=1e-4)


@settings(max_examples=20)
@given(
    first=st.lists(st.tuples(st.integers(0, 31), st.integers(0, 47)), max_size=8),
    seed=st.integers(0, 2**31),
)
def test_masks_of_one_pixel_and_more_segments_than_queries(first: list[tuple[int, int]], seed: int) -> None:
    masks = torch.zeros(len(first), 32, 48, dtype=torch.bool)
    for mask, place in zip(masks, first, strict=True):
        mask[place] = True
    one = Segments(labels=torch.zeros(len(first), dtype=torch.long), masks=masks)
    found = seeded([layer(seed), layer(seed + 1)], [one, truth(0)], seed)
    assert set(found) == {f"{p}{name}" for p in ("d0.", "") for name in ("loss_cls", "loss_mask", "loss_dice")}
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


def test_a_seed_decides() -> None:
    outputs, targets = [layer()], [truth(3), truth(1)]
    assert seeded(outputs, targets, 1) == seeded(outputs, targets, 1)
    assert seeded(outputs, targets, 1) != seeded(outputs, targets, 2)


def test_float32_within_autocast() -> None:
    outputs, targets = [layer()], [truth(3), truth(1)]
    exact = seeded(outputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert seeded(outputs, targets) == exact


def test_masks_are_counted_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with 3 and 1 segments divide by 2 both; the class loss does not count segments."""
    outputs, targets = [layer()], [truth(3), truth(0)]
    alone = seeded(outputs, targets)
    monkeypatch.setattr(losses, "mean_over_processes", lambda count: (count + 1) / 2)
    shared = seeded(outputs, targets)
    assert shared["loss_mask"] == pytest.approx(alone["loss_mask"] * 3 / 2)
    assert shared["loss_dice"] == pytest.approx(alone["loss_dice"] * 3 / 2)
    assert shared["loss_cls"] == alone["loss_cls"]


def test_what_is_not_a_number_is_the_losses_to_report() -> None:
    outputs = layer()
    outputs.masks[0, 0] = torch.nan
    found = seeded([outputs], [truth(6), truth(0)])
    assert math.isnan(found["loss_mask"])


def test_cost_is_the_loss_of_each_pair() -> None:
    """All pairs at once against one pair at a time."""
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(4, 6, generator=generator), torch.randn(4, 30, generator=generator) * 5
    labels, wanted = torch.tensor([2, 0, 4]), torch.rand(3, 30, generator=generator).round()
    cost = losses.matching_cost(logits, masks, labels, wanted)
    for q in range(4):
        for g in range(3):
            x, t = masks[q], wanted[g]
            entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, t)
            dice = 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
            expected: Any = 5 * entropy + 5 * dice - 2 * logits[q].softmax(0)[labels[g]]
            torch.testing.assert_close(cost[q, g], expected)
