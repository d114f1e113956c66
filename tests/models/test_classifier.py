"""The classifier: heads, costs, postprocessing, names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from focalnet import Classifier, ClassifierConfig, create_model, list_models, registry
from focalnet.card import ModelCard
from focalnet.errors import ConfigError, UnknownName
from focalnet.models.classifier import best_classes
from focalnet.models.variants import VARIANTS
from focalnet.zoo import cost


@pytest.mark.parametrize("name", VARIANTS)
def test_every_architecture_runs_on_meta(name: str) -> None:
    size = VARIANTS[name].image_size
    with torch.device("meta"), torch.no_grad():
        logits = create_model(name).eval()(torch.empty(2, 3, size, size))
    assert tuple(logits.shape) == (2, VARIANTS[name].num_classes)


@pytest.mark.parametrize(
    ("name", "millions"),  # published: Tables 2 and 3 of the paper
    [
        ("focalnet_tiny_srf_overlap", 30.4),
        ("focalnet_small_srf_overlap", 51.8),
        ("focalnet_base_srf_overlap", 91.6),
        ("focalnet_tiny_srf_deep", 25.1),
        ("focalnet_small_srf_deep", 38.2),
        ("focalnet_base_srf_deep", 85.1),
    ],
)
def test_published_parameters_of_the_augmented_variants(name: str, millions: float) -> None:
    assert round(cost(name).params / 1e6, 1) == millions


def test_pooled_features_and_new_heads() -> None:
    torch.manual_seed(0)
    model = create_model("focalnet_nano", num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model(images)
    assert tuple(features.shape) == (2, model.num_features)
    torch.testing.assert_close(features, model.forward_features(images).mean((1, 2)))
    model.card = ModelCard(name="old", class_names=("a", "b", "c"), metrics={"top1": 90.0})
    model.reset_classifier(7)
    assert model.card == ModelCard(name="old")
    assert tuple(model(images).shape) == (2, 7)
    assert isinstance(model.get_classifier(), torch.nn.Linear)
    assert model.config.num_classes == 7
    with pytest.raises(ConfigError, match="num_classes=-1"):
        model.reset_classifier(-1)


def test_config_goes_through_plain_dicts() -> None:
    config = create_model("focalnet_nano", drop_path_rate=0.1).config
    assert ClassifierConfig.from_dict(config.to_dict()) == config
    assert isinstance(config.build(), Classifier)


def test_options_reach_the_network() -> None:
    model = create_model("focalnet_nano", in_chans=1, num_classes=3, drop_path_rate=0.2)
    assert tuple(model(torch.randn(1, 1, 40, 24)).shape) == (1, 3)


def test_unknown_names_and_options() -> None:
    with pytest.raises(UnknownName, match='no model "focalnet_tiny_lrv"; did you mean "focalnet_tiny_lrf"'):
        create_model("focalnet_tiny_lrv")
    with pytest.raises(ConfigError, match='no option "drop_path"; did you mean "drop_path_rate"'):
        create_model("focalnet_nano", drop_path=0.1)


def test_list_models() -> None:
    assert len(list_models()) == sum(len(family.variants) for family in registry.families())
    assert list_models()[: len(VARIANTS)] == list(VARIANTS)
    assert list_models("*_iso") == ["focalnet_tiny_iso", "focalnet_small_iso", "focalnet_base_iso"]


def test_postprocess_ranks() -> None:
    (result,) = best_classes(torch.tensor([[0.0, 2.0, 1.0]]), ["a", "b", "c"], top_k=2)
    assert result.names == ("b", "c")
    assert result.scores == pytest.approx(torch.tensor([0.0, 2.0, 1.0]).softmax(0)[[1, 2]].tolist())


def test_compiled_with_inductor() -> None:
    model, images = create_model("focalnet_nano", depths=(1, 1, 1)).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("classes", [10**13, 10**18])
@pytest.mark.parametrize("name", ["focalnet_nano", "mask_rcnn_focalnet_tiny_srf"])
def test_what_does_not_fit_into_memory_is_an_option_too_large(name: str, classes: int) -> None:
    with pytest.raises(ConfigError, match=r"does not fit into memory.*lower num_classes") as raised:
        create_model(name, num_classes=classes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("classes", [10**13, -1, 2.5])
def test_a_head_that_cannot_be_leaves_the_old_one(classes: Any) -> None:
    model = create_model("focalnet_nano", num_classes=7)
    with pytest.raises(ConfigError):
        model.reset_classifier(classes)
    assert (model.num_classes, model.config.num_classes, model.head.out_features) == (7, 7, 7)
