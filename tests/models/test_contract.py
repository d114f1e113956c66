"""What every network can be asked, whatever it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import focalnet
from focalnet import registry
from focalnet.errors import ConfigError, InputError
from focalnet.models import FocalNetBase, Model, TrainingStep
from focalnet.results.base import Result
from focalnet.samples import Batch, ImageInfo, LabelMapTarget
from tests.models import small

NETWORKS: dict[str, Any] = {
    "classifier": lambda: registry.configure("focalnet_nano", num_classes=3),
    **{name: (lambda name=name: small.config(name)) for name in small.METHODS},
    "upernet": small.upernet,
    "mask2former": small.mask2former,
}


def batch(output: str) -> Batch[Any]:
    targets: Any = [small.target(2), small.target(1)]
    if output == "classification":
        targets = torch.tensor([0, 2])
    elif output == "semantic":
        labels = torch.zeros(64, 96, dtype=torch.int64)
        labels[20:50, 10:70] = 2
        targets = [LabelMapTarget(labels)] * 2
    infos = [ImageInfo(f"{i}.png", size) for i, size in enumerate(small.ORIGINALS)]
    return Batch(small.images(), small.SIZES, targets, infos)


def test_every_family_is_tried() -> None:
    assert set(NETWORKS) == {family.name for family in registry.families()}
    kinds = [family.file_kind for family in registry.families()]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_contract(name: str) -> None:
    torch.manual_seed(0)
    config = NETWORKS[name]()
    model: Model[Any, Any] = config.build()
    assert model.config is config
    assert registry.family_of(model).name == name
    assert isinstance(model.backbone, FocalNetBase)
    assert model.backbone.shape == config.backbone
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert type(config).from_dict(config.to_dict()) == config
    given = batch(config.output)
    torch.manual_seed(1)  # for samplers and random points
    terms = model.train().loss(given)
    assert all(value.dtype == torch.float32 and value.ndim == 0 and value.isfinite() for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    results = model.eval().predict(given.images, given.sizes, given.original_sizes)
    assert len(results) == len(given)
    assert all(isinstance(result, Result) for result in results)
    assert len(model.predict(given.images)) == 2
    with pytest.raises(InputError, match="do not fit a batch"):
        model.predict(given.images, [(65, 96)] * 2)


@pytest.mark.parametrize("name", ["classifier", "atss", "upernet"])
def test_a_training_step_is_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().build().eval()  # nothing random
    given = batch(model.config.output)
    expected, terms = model.loss(given), TrainingStep(model)(given)
    assert expected.keys() == terms.keys()
    assert all(torch.equal(terms[key], expected[key]) for key in terms)


@pytest.mark.parametrize(
    ("task", "things", "output", "num_things"),
    [("panoptic", 2, "panoptic", 2), ("semantic", 3, "semantic", None), ("detection", 3, "instance", None)],
)
def test_one_network_for_several_tasks(task: Any, things: int, output: str, num_things: int | None) -> None:
    config = small.mask2former()
    asked: Any = registry.for_task(config, task, things)
    assert (asked.output, asked.num_things) == (output, num_things)
    assert config == small.mask2former()  # nothing is changed afterwards
    with pytest.raises(ConfigError, match=r"a mask2former is not a network for classification; .* classifier"):
        registry.for_task(config, "classification")
    model: Any = focalnet.create_model("mask2former_focalnet_nano", num_classes=3, task=task)
    assert model.config.output == output


@pytest.mark.parametrize("name", ["upernet", "mask2former"])
def test_targets_are_padded_like_the_images_and_never_cut(name: str) -> None:
    model = NETWORKS[name]().build().eval()
    labels = torch.zeros(61, 90, dtype=torch.int64)
    labels[20:50, 10:70] = 2
    terms = []
    for target in (LabelMapTarget(labels), LabelMapTarget(labels).padded((64, 96))):
        torch.manual_seed(0)  # for random points
        terms.append(model.loss(Batch(small.images(), [small.SIZES[0]] * 2, [target] * 2, [])))
    assert all(torch.equal(terms[0][key], terms[1][key]) for key in terms[0])
    original = LabelMapTarget(torch.zeros(122, 180, dtype=torch.int64))
    with pytest.raises(InputError, match=r"122 x 180 pixels .* do not fit into 64 x 96"):
        model.loss(Batch(small.images(), small.SIZES, [original] * 2, []))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model: Any = NETWORKS[name]().build().eval().to(dtype)
    with torch.no_grad():
        results = model.predict(torch.randn(2, 3, 64, 96, dtype=dtype), small.SIZES)
    assert len(results) == 2
    assert all(isinstance(result, Result) for result in results)
