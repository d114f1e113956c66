"""UPerNet against mmseg's, one test a stage of the computation."""

from __future__ import annotations

import re

import pytest
import torch

from focalnet.inference.tta import slide
from focalnet.models.upernet import UPerNet, UPerNetConfig
from focalnet.ops.label_maps import label_map
from focalnet.samples import IGNORED, Batch, LabelMapTarget
from tests.parity import openmmlab
from tests.parity.golden import Case, cases

PATTERN = "openmmlab/upernet_*.json"


def build(case: Case) -> UPerNet:
    model = UPerNetConfig.from_official(case.facts["config"]).build().eval()
    model.load_state_dict(openmmlab.state(case.tensors))
    assert sum(t.numel() for t in model.state_dict().values()) == case.facts["num_params"]
    return model


def normalized(case: Case, name: str) -> torch.Tensor:
    rule = case.facts["input"]
    mean, std = (torch.tensor(rule[key])[:, None, None] for key in ("mean", "std"))
    return (case.tensors[name].float() - mean) / std


def assert_close(case: Case, expected: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    torch.testing.assert_close(openmmlab.subsampled(case, name, value), expected[name], **openmmlab.FEATURE_MAPS)


@cases(PATTERN)
@torch.no_grad()
def test_feature_maps(case: Case) -> None:
    model, expected = build(case), case.tensors
    features = list(model.backbone(normalized(case, "img")[None]).values())
    openmmlab.assert_feature_maps(case, expected, "backbone", features)
    head = model.decode_head
    pooled: list[torch.Tensor] = []
    head.bottleneck.bn.register_forward_hook(lambda *args: pooled.append(args[-1].relu()))
    assert_close(case, expected, "head.feature", head.features(features))
    assert_close(case, expected, "head.psp", pooled[0])
    assert_close(case, expected, "head.logits", head(features))
    assert_close(case, expected, "aux.logits", model.auxiliary_head(features[model.config.auxiliary_index]))


@pytest.mark.parametrize("mode", ["whole", "slide"])
@cases(PATTERN)
@torch.no_grad()
def test_labels(case: Case, mode: str) -> None:
    model, expected, facts = build(case), case.tensors, case.facts
    size, original = (tuple(facts["img_meta"][key]) for key in ("img_shape", "ori_shape"))
    images = normalized(case, "img")[None]
    if mode == "slide":
        scores = slide(model, images, tuple(facts["slide"]["crop_size"]), tuple(facts["slide"]["stride"]))
        labels = label_map(scores[0], original)
    else:
        scores = model.class_scores(images)
        (semantic_map,) = model.predict(images, [size], [original])
        labels = semantic_map.labels
    assert_close(case, expected, f"{mode}.logits_input_size", scores)
    resized = torch.nn.functional.interpolate(scores, original, mode="bilinear")
    assert_close(case, expected, f"{mode}.logits_ori_size", resized)
    assert (labels == expected[f"{mode}.pred"]).float().mean() > 0.999


def training_batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, some of them padded after normalization as the rule of JSON ``train_input`` says, and their labels."""
    numbers = range(len(case.facts["train_input"]["ignored_fraction"]))
    images = torch.stack([normalized(case, f"train.img.{i}") for i in numbers])
    labels = torch.stack([case.tensors[f"train.gt.{i}"].long() for i in numbers])
    rule = case.facts["train_input"]["rule"]
    padded = re.findall(r"i == (\d+) rows >= (\d+) and columns >= (\d+)", rule)
    assert len(padded) == rule.count("rows >="), rule
    for i, height, width in (map(int, numbers) for numbers in padded):
        images[i, :, height:], images[i, :, :, width:] = 0, 0
        assert (labels[i, height:] == IGNORED).all()
        assert (labels[i, :, width:] == IGNORED).all()
    ignored = (labels == IGNORED).float().mean((1, 2))
    torch.testing.assert_close(ignored, torch.tensor(case.facts["train_input"]["ignored_fraction"]))
    return images, labels


@pytest.mark.parametrize("mode", ["train", "train_bn"])
@cases(PATTERN)
def test_losses_and_gradients(case: Case, mode: str) -> None:
    model, facts, expected = build(case), case.facts[mode], case.tensors
    if mode == "train_bn":
        model.train()
        for head in (model.decode_head, model.auxiliary_head):
            head.dropout.p = 0.0
    images, labels = training_batch(case)
    losses = model.loss(Batch(images, [], [LabelMapTarget(one) for one in labels], []))
    rtol, total_rtol = (1e-3, 1e-4) if mode == "train" else (2e-3, 2e-3)
    openmmlab.assert_losses(losses, facts, rtol=rtol, total_rtol=total_rtol)
    torch.stack(list(losses.values())).sum().backward()
    openmmlab.assert_gradient_norms(model, facts["grad_norms"])
    after = {k.removeprefix("train_bn.after."): v for k, v in expected.items() if k.startswith("train_bn.after.")}
    assert after
    for key, value in after.items() if mode == "train_bn" else ():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-4, atol=1e-5)
