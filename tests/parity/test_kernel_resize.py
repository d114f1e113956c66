"""Backbone adaptation against the official detection loader, one test a case. It copies, so equality is exact."""

from __future__ import annotations

import torch

from focalnet.models import ClassifierConfig
from focalnet.models.backbone import FocalNetConfig
from focalnet.weights import dense
from tests.parity.golden import Case, cases


@cases("detection/kernel_resize_*.json")
def test_a_classifier_initializes_a_detection_backbone(case: Case) -> None:
    tensors, facts = case.tensors, case.facts
    pretrained = _classifier_state(facts["config"]["pretrained"])
    stored = {k.removeprefix("pretrained."): v for k, v in tensors.items() if k.startswith("pretrained.")}
    assert stored.keys() <= pretrained.keys()
    pretrained |= stored
    backbone = FocalNetConfig.from_official(facts["config"]["detector_backbone"], source="mmdet").build()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}

    adapted = dense.adapt(pretrained, before)
    missing, unexpected = backbone.load_state_dict(adapted, strict=False)

    after = backbone.state_dict()
    resized = {k.removeprefix("after."): v for k, v in tensors.items() if k.startswith("after.")}
    for key, expected in resized.items():
        if key not in facts["keys_left_at_their_initial_value"]:
            torch.testing.assert_close(after[key], expected, rtol=0, atol=0, msg=key)
    for key in facts["keys_copied_verbatim"]:
        assert torch.equal(after[key], pretrained[key]), key
    for key in facts["keys_left_at_their_initial_value"]:
        assert torch.equal(after[key], before[key]), key
    assert set(missing) == set(facts["keys_left_at_their_initial_value"]) == set(dense.initial(pretrained, before))
    assert not unexpected
    covered = {*resized, *facts["keys_copied_verbatim"], *facts["keys_left_at_their_initial_value"]}
    assert covered == after.keys()


def _classifier_state(official: dict[str, object]) -> dict[str, torch.Tensor]:
    """A classification checkpoint of that shape, random where the case stores nothing."""
    generator = torch.Generator().manual_seed(0)
    shapes = ClassifierConfig.from_official(official).build().state_dict()
    return {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}
