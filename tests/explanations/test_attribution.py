"""Heat maps of answers: every method for every task, defaults, other libraries' models, compiled and frozen ones."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from transformers import FocalNetConfig as TheirConfig
from transformers import FocalNetForImageClassification

import focalnet
from focalnet import explanations
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import ConfigError, FrozenError, InputError
from focalnet.explanations import CONTROLS, METHODS, BoxTarget, ClassTarget, MaskTarget, PixelsTarget, attribute
from focalnet.explanations.attribution import SUMMED, Request, _gradients
from focalnet.results import Detections, PanopticMap, SemanticMap
from tests.explanations import cases
from tests.inference.small import backbone, classifier, noise
from tests.models.small import config, mask2former, upernet

CARD = ModelCard(
    name="small.test", class_names=("ant", "bee", "cat"), preprocessing=Preprocessing(image_size=64, max_size=128)
)


def dense(name: str) -> Any:
    torch.manual_seed(0)
    if name == "upernet":
        model: Any = upernet().build()
    elif name in ("semantic", "instance", "panoptic"):
        model = mask2former(segments=name).build()
    else:
        model = config(name).build()
    model.card = CARD
    return model.eval()


DENSE = ["mask_rcnn", "atss", "sparse_rcnn", "dino", "upernet", "semantic", "instance", "panoptic"]


@pytest.fixture(scope="module", params=DENSE)
def explained(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    model = dense(request.param)
    image = noise(90, 70)
    return model, image, explanations.explain(model, image)


def test_the_answers_of_every_task_are_explained(explained: tuple[Any, Any, Any]) -> None:
    model, image, explanation = explained
    target = explanations.targets_of(explanation.prediction)[0]
    found = attribute(model, image, target, "context_cam", result=explanation.prediction)
    assert found.values.shape == (64, 82)  # of the resized image, without the padding to 96
    assert found.region == (0, 0, 90, 70)
    assert found.values.abs().max() > 0
    assert found.target == target.name
    assert found.inside is not None
    assert found.inside.any()
    by_default = attribute(model, image, result=explanation.prediction)
    torch.testing.assert_close(by_default.values, found.values)
    assert (attribute(model, image, target, "hires_cam").values >= 0).all()


def test_targets_are_of_the_kind_of_the_result(explained: tuple[Any, Any, Any]) -> None:
    _, _, explanation = explained
    result = explanation.prediction
    targets = explanations.targets_of(result)
    if isinstance(result, Detections):
        kind: type = BoxTarget if result.masks is None else MaskTarget
        assert len(targets) == len(result)
    else:
        kind = PixelsTarget
        assert isinstance(result, (SemanticMap, PanopticMap))
    assert all(isinstance(target, kind) for target in targets)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_one_value_for_each_pixel(method: str) -> None:
    found = attribute(cases.network(), noise(), 1, method)
    assert found.values.shape == (16, 16)
    assert found.values.isfinite().all()
    assert found.values.std() > 0
    assert found.signed == bool((found.values < 0).any())
    assert bool(found.blocks) == (method not in {*CONTROLS, "integrated_gradients"})
    again = attribute(cases.network(), noise(), 1, method)
    torch.testing.assert_close(again.values, found.values)


@pytest.mark.parametrize("method", ["modulator_cam", "gates_cam", "grad_cam", "integrated_gradients"])
def test_maps_depend_on_the_class(method: str) -> None:
    one, other = (attribute(cases.network(), noise(), label, method).values for label in (0, 1))
    assert not torch.allclose(one, other)


def test_a_share_of_the_score_is_what_it_says() -> None:
    """``sum_c m dS/dm`` is the derivative of the score by a factor on the modulator at a position."""
    model, image = cases.network().double(), cases.images()[:1].double()
    block = model.layers[1].blocks[0]
    factors = torch.ones(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    handle = block.modulation.h.register_forward_hook(lambda _m, _i, output: output * factors)
    (expected,) = torch.autograd.grad(model(image)[0, 1], factors)
    handle.remove()
    request = Request(model, image, (16, 16), lambda pixels, _: model(pixels)[:, 1], ("layers.1.blocks.0",))
    traces, gradients = _gradients(request, lambda t: t.modulator)
    trace = traces["layers.1.blocks.0"]
    found = (trace.modulator * gradients["layers.1.blocks.0"]).sum(1)
    torch.testing.assert_close(found, expected[0])


def test_gates_are_the_modulator_but_for_the_bias_of_its_projection() -> None:
    model = cases.network()
    for block in (*model.layers[0].blocks, *model.layers[1].blocks):
        torch.nn.init.zeros_(block.modulation.h.bias)
    one, other = (attribute(model, cases.images()[:1], 1, method).values for method in ("modulator_cam", "gates_cam"))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_an_object_is_looked_for_in_the_stage_that_resolves_it() -> None:
    model = dense("mask_rcnn")
    small, large = (BoxTarget(0, box=(0.0, 0.0, side, side)) for side in (40.0, 70.0))
    image = noise(90, 70)
    assert attribute(model, image, small, "grad_cam").blocks == ("layers.0.blocks.0",)
    assert attribute(model, noise(700, 700), BoxTarget(0, box=(0.0, 0.0, 700.0, 700.0)), "modulator").blocks == (
        "layers.0.blocks.0",  # 64 pixels of input
    )
    assert len(attribute(model, image, large, SUMMED[1]).blocks) == 4
    assert attribute(cases.network(), noise(), 1, "grad_cam").blocks == ("layers.1.blocks.1",)


def test_an_object_that_is_not_detected_has_no_explanation_but_a_flat_map() -> None:
    model = dense("mask_rcnn")
    model.config = focalnet.models.rcnn.config.RCNNConfig.from_dict({**model.config.to_dict(), "score_threshold": 0.99})
    found = attribute(model, noise(90, 70), BoxTarget(0, box=(0.0, 0.0, 9.0, 9.0)), "grad_cam")
    assert not found.values.any()


def test_inside_and_outside_are_told_apart() -> None:
    mask = torch.zeros(70, 90, dtype=torch.bool)
    mask[10:40, 20:60] = True
    explanation = explanations.explain(dense("upernet"), noise(90, 70), target=PixelsTarget(1, mask=mask))
    assert explanation.heat is not None
    inside, outside = explanation.heat.contrast() or (0, 0)
    assert inside > 0
    assert outside > 0
    for block in explanation.blocks:
        within, without = block.contrast(explanation.heat) or (0, 0)
        assert block.modulator.min() <= within <= block.modulator.max()
        assert block.modulator.min() <= without <= block.modulator.max()


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_models_of_other_libraries_are_explained(library: str) -> None:
    torch.manual_seed(0)
    if library == "timm":
        model: Any = timm.models.focalnet.FocalNet(embed_dim=8, depths=(1, 1), focal_levels=(2, 2), num_classes=4)
    else:
        sizes = {"embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "focal_levels": [2, 2]}
        model = FocalNetForImageClassification(TheirConfig(image_size=40, num_labels=4, **sizes))
    model = model.eval()
    pixels = torch.randn(1, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    explanation = explanations.explain(model, pixels, target=2)
    assert [block.gates.shape for block in explanation.blocks] == [
        (3, 10, 9),
        (3, 5, explanation.blocks[1].gates.shape[2]),
    ]
    assert explanation.prediction is not None
    for method in ("modulator_cam", "grad_cam", "integrated_gradients"):
        assert attribute(model, pixels, 2, method).values.std() > 0
    with pytest.raises(ConfigError, match="preprocessing"):
        explanations.explain(model, noise())
    given = explanations.explain(model, noise(), preprocessing=Preprocessing(image_size=40))
    assert given.blocks[0].gates.shape == (3, 10, 10)


def test_compiled_models_are_explained_uncompiled() -> None:
    expected = attribute(cases.network(), noise(), 1).values
    wrapped = torch.compile(cases.network(), backend="eager")
    wrapped(cases.images())
    torch.testing.assert_close(attribute(wrapped, noise(), 1).values, expected)
    inplace = cases.network()
    inplace.card = classifier().card
    inplace.compile(backend="eager")
    inplace(cases.images())
    torch.testing.assert_close(attribute(inplace, noise(), 1).values, expected)
    assert len(explanations.explain(inplace, noise()).blocks) == 2


def test_frozen_models_are_refused_with_the_way_out() -> None:
    model = cases.network()
    done = focalnet.optimize(model)
    for method in ("modulator", "grad_cam", "integrated_gradients"):
        with pytest.raises(FrozenError, match="undo"):
            attribute(model, noise(), 1, method)
    done.undo()
    assert attribute(model, noise(), 1).values.any()


def test_wrong_targets_methods_and_images_are_refused() -> None:
    model = cases.network()
    with pytest.raises(ConfigError, match='"grad-cam" is unknown; did you mean "grad_cam"'):
        attribute(model, noise(), 1, "grad-cam")
    with pytest.raises(ConfigError, match="class 7 is not one of the 3"):
        attribute(model, noise(), 7)
    with pytest.raises(ConfigError, match='no class "be"; did you mean "bee"'):
        attribute(model, noise(), "be")
    with pytest.raises(ConfigError, match="detects no objects"):
        attribute(model, noise(), BoxTarget(0, box=(0.0, 0.0, 5.0, 5.0)))
    with pytest.raises(ConfigError, match="does not score pixels"):
        attribute(model, noise(), PixelsTarget(0, mask=torch.ones(30, 40, dtype=torch.bool)))
    with pytest.raises(ConfigError, match="does not classify"):
        attribute(dense("upernet"), noise(), ClassTarget(0))
    with pytest.raises(InputError, match="the mask has"):
        attribute(dense("upernet"), noise(), PixelsTarget(0, mask=torch.ones(3, 4, dtype=torch.bool)))
    with pytest.raises(InputError, match="batch of 2"):
        attribute(model, cases.images(), 1)
    with pytest.raises(ConfigError, match="does not classify"):
        attribute(backbone(), noise(), 1, "grad_cam")
    assert attribute(backbone(), noise(), method="modulator").target == ""


def test_the_model_is_left_as_it_was() -> None:
    model = cases.network(drop_rate=0.5).train()
    model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    explanations.explain(model, noise(), target=1)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_receptive_field_is_around_its_position() -> None:
    model = cases.network()
    field = explanations.receptive_field(model, noise(), "layers.0.blocks.0", (5.0, 9.0))
    assert field.shape == (16, 16)
    assert float(field.sum()) == pytest.approx(1, abs=1e-5)
    row, column = divmod(int(field.argmax()), 16)
    assert abs(row - 9) <= 2
    assert abs(column - 5) <= 2
    with pytest.raises(ConfigError, match="outside"):
        explanations.receptive_field(model, noise(), position=(16.0, 0.0))


def test_effective_kernels_are_the_convolution_of_the_levels() -> None:
    model = cases.network()
    profile = explanations.kernel_profiles(model, ["layers.0.blocks.0"])["layers.0.blocks.0"]
    assert [kernel.shape for kernel in profile.effective] == [(3, 3), (7, 7)]
    convs = model.layers[0].blocks[0].modulation.convs
    impulse = torch.zeros(1, 8, 9, 9)
    impulse[:, :, 4, 4] = 1
    response = convs[1](convs[0](impulse))[0, :, 1:-1, 1:-1].flip(1, 2).abs().mean(0)
    torch.testing.assert_close(torch.from_numpy(profile.effective[1]), (response / response.sum()).detach())
    assert profile.shares.shape == (2, 4)
    assert profile.shares.sum(1) == pytest.approx([1, 1], abs=1e-6)
    assert profile.stride == 2
