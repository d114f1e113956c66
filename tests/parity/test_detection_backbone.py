"""Our backbone against the official dense-prediction backbones (mmdet's and FocalNet-DINO's), one test a case."""

from __future__ import annotations

import torch

from focalnet import FocalNet, FocalNetConfig
from tests.parity.golden import Case, assert_forward, assert_gradient, cases, weights

SOURCES = {"det": "mmdet", "dinobb": "dino"}  # which official file a case's name stands for


def build(case: Case) -> FocalNet:
    source = SOURCES[case.path.stem.split("_")[0]]
    model = FocalNetConfig.from_official(case.facts["config"], source=source).build().eval()
    model.load_state_dict(weights(case.tensors))
    return model


def outputs(model: FocalNet, images: torch.Tensor) -> dict[int, torch.Tensor]:
    """Our feature maps by the number of their stage."""
    return dict(zip(model.out_indices, model(images).values(), strict=True))


def expected_feature_maps(case: Case) -> dict[int, torch.Tensor]:
    """The i-th stored feature map belongs to the i-th of ``out_indices``."""
    tensors = case.tensors
    config = case.facts["config"]
    stages = sorted(config.get("out_indices", range(len(config["depths"]))))
    return {stage: tensors[f"out.{i}"] for i, stage in enumerate(stages)}


@cases("detection/d*.json")
def test_feature_maps(case: Case) -> None:
    with torch.no_grad():
        features = outputs(build(case), case.tensors["input"])
    expected = expected_feature_maps(case)
    assert list(features) == list(expected)
    for stage, value in expected.items():
        assert_forward(features[stage], value)


@cases("detection/d*.json")
def test_gradients(case: Case) -> None:
    model, expected = build(case), case.tensors
    images = expected["input"].requires_grad_()
    total = torch.zeros(())
    for i, value in enumerate(model(images).values()):
        # The reference's own seeds, see golden/README.md.
        generator = torch.Generator().manual_seed(case.facts["seed"] + 2 + i)
        total = total + (value * torch.randn(value.shape, generator=generator, dtype=torch.float64)).sum()
    total.backward()
    if "grad.input" in expected:
        assert_gradient(images.grad, expected["grad.input"])
    stored = [key for key in expected if key.startswith("grad.param.")]
    assert stored
    for key in stored:
        assert_gradient(model.get_parameter(key.removeprefix("grad.param.")).grad, expected[key])


@cases("detection/d*.json")
def test_parameters_and_feature_info(case: Case) -> None:
    model = build(case)
    assert sum(p.numel() for p in model.parameters()) == case.facts["num_params"]
    height, width = case.facts["input_shape"][2:]
    for info, shape in zip(model.feature_info, case.facts["out_shapes"].values(), strict=True):
        assert [info.channels, -(-height // info.stride), -(-width // info.stride)] == shape[1:]
