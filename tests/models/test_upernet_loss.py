"""The losses of UPerNet, against what they say of themselves."""

from __future__ import annotations

import math

import pytest
import torch

from focalnet.models.upernet import UPerNetTrainingOutputs
from focalnet.models.upernet.loss import losses, pixelwise_cross_entropy
from focalnet.samples import IGNORED
from tests.models.small import upernet


def test_ignored_pixels_count_but_add_nothing() -> None:
    logits, labels = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    assert float(pixelwise_cross_entropy(logits, labels)) == pytest.approx(math.log(4))
    labels[:, :2] = IGNORED
    assert float(pixelwise_cross_entropy(logits, labels)) == pytest.approx(math.log(4) * 3 / 4)
    labels[:] = IGNORED
    assert float(pixelwise_cross_entropy(logits, labels)) == 0


def test_no_gradient_from_ignored_pixels() -> None:
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    labels = torch.full((1, 8, 8), IGNORED)
    labels[:, :, :4] = 1
    pixelwise_cross_entropy(logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad[..., 4:].abs().sum() == 0 < logits.grad[..., :4].abs().sum()


def test_the_auxiliary_head_has_its_weight() -> None:
    labels = torch.randint(0, 3, (2, 16, 16))
    outputs = UPerNetTrainingOutputs(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1))
    full, half = (losses(upernet(auxiliary_weight=weight), outputs, labels) for weight in (1.0, 0.5))
    assert list(full) == ["decode.loss_ce", "aux.loss_ce"]
    torch.testing.assert_close(half["aux.loss_ce"], full["aux.loss_ce"] / 2)
    torch.testing.assert_close(half["decode.loss_ce"], full["decode.loss_ce"])
