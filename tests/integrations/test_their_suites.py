"""What timm's and transformers' own tests ask of every model, asked of an accelerated FocalNet.

Their test suites do not come with the packages, so these are the same questions in our words:
``tests/test_models.py`` of timm, ``tests/models/focalnet/test_modeling_focalnet.py`` of transformers. Each is asked
beside a twin that is not accelerated. What ``test_accelerate.py`` asks already is not repeated: gradient checkpointing,
scripts, traces and graphs, copies, low precision.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import build_model_with_cfg
from timm.models.focalnet import FocalNet
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import focalnet
from tests.integrations.foreign import TIMM, TRANSFORMERS, config, distance, lively, transformers_model

SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_classes": 5}
SHAPES = {"focalnet_tiny_srf": "srf", "focalnet_large_fl4": "large_fl4_normalized", "focalnet_huge_fl3": "huge"}
EACH = pytest.mark.parametrize("name", SHAPES)
KINDS = pytest.mark.parametrize("kind", TRANSFORMERS)


def images(batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, 64, 64, generator=torch.Generator().manual_seed(1))


def twins(model: Any) -> tuple[Any, Any]:
    """An accelerated model, and the same one as its library made it."""
    other = copy.deepcopy(model)
    return focalnet.accelerate(model), other


def small(name: str, **options: Any) -> tuple[FocalNet, FocalNet]:
    """As ``timm.create_model`` makes it, which does not let us choose the widths."""
    shape = {**SMALL, **TIMM[SHAPES[name]], **options}
    return twins(lively(build_model_with_cfg(FocalNet, name, pretrained=False, **shape)))


def assert_same(ours: Any, theirs: Any) -> None:
    """Whatever both gave: tensors, or sequences of them, one inside another."""
    if isinstance(ours, Tensor):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < 1e-5
    else:
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)


# --- timm


@EACH
def test_the_default_configuration_names_what_is_there(name: str) -> None:
    model, _ = small(name)
    keys = model.state_dict().keys()
    assert f"{model.default_cfg['first_conv']}.weight" in keys
    assert f"{model.default_cfg['classifier']}.weight" in keys
    assert model.get_classifier() is model.head.fc


@EACH
def test_every_parameter_is_trained(name: str) -> None:
    model, _ = small(name)
    out = model.train()(images())
    out.mean().backward()
    assert out.shape == (2, 5)
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@EACH
def test_without_a_classifier(name: str) -> None:
    """Asked for so, or reset: pooled features, or the map itself; the class layer is gone from the state dict."""
    for options, shape in (({}, (2, 64)), ({"global_pool": ""}, (2, 64, 2, 2))):
        built = small(name, num_classes=0, **options)
        reset = small(name)
        for model in reset:
            model.reset_classifier(0, options.get("global_pool"))
        for ours, theirs in (built, reset):
            assert ours(images()).shape == shape
            assert_same(ours(images()), theirs(images()))
            assert f"{ours.default_cfg['classifier']}.weight" not in ours.state_dict()


@EACH
def test_another_classifier(name: str) -> None:
    model, _ = small(name)
    model.reset_classifier(7)
    assert model(images()).shape == (2, 7)
    assert model.num_classes == 7
    assert model.forward_head(model.forward_features(images()), pre_logits=True).shape == (2, model.head_hidden_size)


@EACH
@pytest.mark.parametrize(
    "options", [{}, {"norm": True}, {"indices": 2, "stop_early": True, "intermediates_only": True}]
)
def test_intermediates(name: str, options: dict[str, Any]) -> None:
    ours, theirs = (model.forward_intermediates(images(), **options) for model in small(name))
    assert_same(ours, theirs)
    maps = ours if "intermediates_only" in options else ours[1]
    assert [tuple(one.shape[1:]) for one in maps][-2:] == [(32, 4, 4), (64, 2, 2)]


def test_pruned_to_the_intermediates_that_are_wanted() -> None:
    both = small("focalnet_tiny_srf")
    for model in both:
        model.prune_intermediate_layers([0, 2])
    assert len(both[0].layers) == 3
    assert_same(*(model.forward_intermediates(images(), [0, 2], intermediates_only=True) for model in both))
    assert_same(*(model(images()) for model in both))


def test_features_of_a_graph() -> None:
    model, twin = small("focalnet_tiny_srf")
    graphs = [create_feature_extractor(m, ["layers.1", "layers.3"], suppress_diff_warning=True) for m in (model, twin)]
    assert_same(*(list(graph(images()).values()) for graph in graphs))


def test_other_inputs() -> None:
    """One channel, and sides that no stride divides."""
    assert_same(*(model(images(channels=1)) for model in small("focalnet_tiny_srf", in_chans=1)))
    assert_same(*(model(images()[:, :, :57, :45]) for model in small("focalnet_large_fl4")))


# --- transformers


def answers(model: nn.Module, x: Tensor, **options: Any) -> Any:
    with torch.no_grad():
        return model(x, **options)


@KINDS
def test_hidden_states(kind: str) -> None:
    """A map after the stem and one after each stage, as sequences and as maps."""
    model, twin = twins(transformers_model(kind))
    ours, theirs = (answers(m, images(), output_hidden_states=True) for m in (model, twin))
    shapes = [(256, 8), (64, 16), (16, 32), (4, 64), (4, 64)]  # the last stage makes no smaller map
    assert [tuple(one.shape[1:]) for one in ours.hidden_states] == shapes
    assert_same(ours.hidden_states, theirs.hidden_states)
    if kind != "backbone":
        for sequence, as_map in zip(ours.hidden_states, ours.reshaped_hidden_states, strict=True):
            assert torch.equal(as_map.flatten(2).transpose(1, 2), sequence)


@KINDS
def test_tuples_hold_what_names_hold(kind: str) -> None:
    model, twin = twins(transformers_model(kind))
    named = answers(model, images(), output_hidden_states=True).to_tuple()
    ours, theirs = (answers(m, images(), output_hidden_states=True, return_dict=False) for m in (model, twin))
    assert_same(ours, theirs)
    assert_same(ours, named[: len(ours)])  # the maps among them are left out of tuples


@KINDS
def test_images_of_a_batch_do_not_meet(kind: str) -> None:
    model, _ = twins(transformers_model(kind))
    together, alone = (answers(model, x).to_tuple() for x in (images(), images()[:1]))
    for one, other in zip(together, alone, strict=True):
        assert_same([part[:1] for part in one] if isinstance(one, tuple) else one[:1], other)


@pytest.mark.parametrize("wanted", [["stage1", "stage2", "stage3"], ["stage4"], None])
def test_maps_of_a_backbone(wanted: list[str] | None) -> None:
    model, twin = twins(transformers_model("backbone", out_features=wanted))
    maps = answers(model, images()).feature_maps
    assert_same(maps, answers(twin, images()).feature_maps)
    assert len(maps) == len(model.channels) == len(wanted or ["the last"])
    if wanted and len(wanted) == 3:
        assert [tuple(one.shape[1:]) for one in maps] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]


@pytest.mark.parametrize("channels", [1, 3])
def test_classification_with_and_without_labels(channels: int) -> None:
    both = twins(transformers_model("classifier", num_channels=channels))
    labels, x = torch.tensor([4, 0]), images(channels=channels)
    ours, theirs = (model(x, labels=labels) for model in both)
    assert ours.logits.shape == (2, 5)
    assert torch.allclose(ours.loss, nn.functional.cross_entropy(ours.logits, labels))
    assert_same([ours.loss, ours.logits], [theirs.loss, theirs.logits])
    ours.loss.backward()
    assert all(p.grad is not None for p in both[0].parameters())
    assert answers(both[0], x).loss is None


@pytest.mark.parametrize("channels", [1, 3])
def test_masked_images(channels: int) -> None:
    both = twins(transformers_model("masked", num_channels=channels))
    masked = torch.rand(2, 256, generator=torch.Generator().manual_seed(0)) > 0.5
    ours, theirs = (model(images(channels=channels), bool_masked_pos=masked) for model in both)
    assert ours.reconstruction.shape == (2, channels, 64, 64)
    assert_same([ours.loss, ours.reconstruction], [theirs.loss, theirs.reconstruction])
    ours.loss.backward()
    assert all(p.grad is not None for p in both[0].parameters())  # here the mask token is used


@KINDS
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    """What is saved is their model: it loads without this library, and can be accelerated again."""
    model, _ = twins(transformers_model(kind))
    want = answers(model, images()).to_tuple()
    model.save_pretrained(tmp_path)
    loaded = TRANSFORMERS[kind].from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert not [m for m in loaded.modules() if type(m).__module__.startswith("focalnet")]
    assert_same(answers(loaded, images()).to_tuple(), want)
    assert_same(answers(focalnet.accelerate(loaded), images()).to_tuple(), want)


def test_options_of_the_configuration() -> None:
    """Patches that do not divide the image, overlapping ones, dropout that does nothing in evaluation."""
    for options in ({"patch_size": 3}, {"use_conv_embed": True}, {"hidden_dropout_prob": 0.3, "drop_path_rate": 0.3}):
        both = twins(lively(TRANSFORMERS["model"](config(**options))))
        ours, theirs = (answers(model, images()) for model in both)
        assert_same([ours.last_hidden_state, ours.pooler_output], [theirs.last_hidden_state, theirs.pooler_output])
