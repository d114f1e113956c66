"""UPerNet against mmseg's, one test a stage of the computation."""

from __future__ import annotations

import pytest
import torch

from focalnet.inference.segmenting import slide
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


def image(case: Case) -> torch.Tensor:
    rule = case.facts["input"]
    mean, std = (torch.tensor(rule[name])[:, None, None] for name in ("mean", "std"))
    return ((case.tensors["img"].float() - mean) / std)[None]


def assert_close(case: Case, expected: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    torch.testing.assert_close(openmmlab.stored_part(case, name, value), expected[name], **openmmlab.MAPS)


@cases(PATTERN)
@torch.no_grad()
def test_maps(case: Case) -> None:
    model, expected = build(case), case.tensors
    maps = list(model.backbone(image(case)).values())
    openmmlab.assert_maps(case, expected, "backbone", maps)
    head = model.decode_head
    seen: list[torch.Tensor] = []
    head.bottleneck.bn.register_forward_hook(lambda *args: seen.append(args[-1].relu()))
    assert_close(case, expected, "head.feature", head.features(maps))
    assert_close(case, expected, "head.psp", seen[0])
    assert_close(case, expected, "head.logits", head(maps))
    assert_close(case, expected, "aux.logits", model.auxiliary_head(maps[model.config.auxiliary_index]))


@pytest.mark.parametrize("mode", ["whole", "slide"])
@cases(PATTERN)
@torch.no_grad()
def test_labels(case: Case, mode: str) -> None:
    model, expected, facts = build(case), case.tensors, case.facts
    images, size, original = image(case), tuple(facts["img_meta"]["img_shape"]), tuple(facts["img_meta"]["ori_shape"])
    if mode == "slide":
        scores = slide(model, images, tuple(facts["slide"]["crop_size"]), tuple(facts["slide"]["stride"]))
        labels = label_map(scores[0], original)
    else:
        scores = model.class_scores(images)
        (found,) = model.predict(images, [size], [original])
        labels = found.labels
    assert_close(case, expected, f"{mode}.logits_input_size", scores)
    resized = torch.nn.functional.interpolate(scores, original, mode="bilinear")
    assert_close(case, expected, f"{mode}.logits_ori_size", resized)
    assert (labels == expected[f"{mode}.pred"]).float().mean() > 0.999


def training_batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images; the second is padded after normalisation, see JSON ``train_input``."""
    rule, tensors = case.facts["input"], case.tensors
    mean, std = (torch.tensor(rule[name])[:, None, None] for name in ("mean", "std"))
    images = torch.stack([(tensors[f"train.img.{i}"].float() - mean) / std for i in range(2)])
    images[1, :, 55:], images[1, :, :, 58:] = 0, 0
    labels = torch.stack([tensors[f"train.gt.{i}"].long() for i in range(2)])
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
