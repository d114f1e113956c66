"""Our classifier against numbers computed by the official classification code, one test a case."""

from __future__ import annotations

import pytest
import torch

from focalnet import Classifier, ClassifierConfig
from tests.parity.golden import Case, assert_forward, assert_gradient, cases, weights


def build(case: Case, dtype: torch.dtype = torch.float32) -> Classifier:
    model = ClassifierConfig.from_official(case.facts["config"]).build().eval()
    model.load_state_dict(weights(case.tensors))
    return model.to(dtype)


def tokens(features_BHWC: torch.Tensor) -> torch.Tensor:
    return features_BHWC.flatten(1, 2)


@cases("classification/*.json")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_features_and_logits(case: Case, dtype: torch.dtype) -> None:
    model, expected = build(case, dtype), case.tensors
    images = expected["input"].to(dtype)
    with torch.no_grad():
        stem = model.patch_embed(images)
        stages = list(model.forward_stages(images))
        features, logits = model.forward_features(images), model(images)
    assert_forward(tokens(stem).float(), expected["patch_embed.out"])
    for i, (stage, size) in enumerate(zip(stages, case.facts["stage_HW"], strict=True)):
        assert list(stage.shape[1:3]) == size
        assert_forward(tokens(stage).float(), expected[f"stage.{i}.out"])
    assert_forward(tokens(features).float(), expected["forward_featuremaps"])
    assert_forward(features.mean((1, 2)).float(), expected["forward_features"])
    assert_forward(logits.float(), expected["logits"])


@cases("classification/*.json")
def test_gradients(case: Case) -> None:
    model, expected = build(case), case.tensors
    images = expected["input"].requires_grad_()
    (model(images) * expected["grad_seed_vector"]).sum().backward()
    assert_gradient(images.grad, expected["grad.input"])
    stored = [key for key in expected if key.startswith("grad.param.")]
    assert stored
    for key in stored:
        assert_gradient(model.get_parameter(key.removeprefix("grad.param.")).grad, expected[key])


@cases("classification/*.json")
def test_parameters(case: Case) -> None:
    model = build(case)
    assert sum(p.numel() for p in model.parameters()) == case.facts["num_params"]
    assert set(model.state_dict()) == set(weights(case.tensors))
