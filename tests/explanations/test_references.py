"""Maps and measures against pytorch-grad-cam, captum and Quantus, whose numbers are stored; see ``references.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from focalnet.explanations import attribute, imputation, measures
from focalnet.explanations.attribution import Request, saliency
from tests.explanations import cases

REFERENCES = load_file(Path(__file__).with_name("references.safetensors"))
LABELS = torch.tensor(cases.LABELS)


def assert_equal(found: Tensor, name: str, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found.double(), REFERENCES[name].double(), rtol=tolerance, atol=tolerance)


def request(method: str) -> Request:
    model = cases.network()

    def score(pixels: Tensor, index: Tensor) -> Tensor:
        return model(pixels).gather(1, LABELS[index][:, None])[:, 0]

    blocks = ("layers.1.blocks.1",) if method.endswith("cam") else ()
    return Request(model, cases.images(), (16, 16), score, blocks)


def probability(channels: int = 3) -> Callable[[Tensor, Tensor], Tensor]:
    model = cases.network(in_chans=channels)
    return lambda pixels, index: model(pixels).softmax(1).gather(1, LABELS[index][:, None])[:, 0]


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "layer_cam", "score_cam"])
def test_cams_are_those_of_pytorch_grad_cam(method: str) -> None:
    maps = saliency(request(method), method)
    expected = REFERENCES[method].double()
    assert expected.std() > 0.05
    torch.testing.assert_close(_coarse(maps), _coarse(expected), rtol=1e-5, atol=1e-5)


def _coarse(maps: Tensor) -> Tensor:
    """A resized map without its scale; both are resized linearly, so scaling them alike makes them equal."""
    low, high = maps.double().flatten(1).aminmax(dim=1)
    return (maps.double() - low[:, None, None]) / (high - low)[:, None, None]


def test_integrated_gradients_are_those_of_captum() -> None:
    assert_equal(saliency(request("integrated_gradients"), "integrated_gradients"), "integrated_gradients", 1e-5)


def test_a_batch_and_single_images_have_the_same_maps() -> None:
    together = saliency(request("modulator_cam"), "modulator_cam")
    for image, label, expected in zip(cases.images(), cases.LABELS, together, strict=True):
        alone = attribute(cases.network(), image[None], label, "modulator_cam", blocks=["layers.1.blocks.1"])
        torch.testing.assert_close(alone.values, expected)


def test_imputation_is_that_of_pytorch_grad_cam() -> None:
    gone = cases.maps() >= cases.maps().flatten(1).quantile(0.3, dim=1)[:, None, None]
    assert_equal(measures.impute(cases.images(), gone), "imputed")


def test_road_is_that_of_pytorch_grad_cam() -> None:
    most, least = measures.road(probability(), cases.images(), cases.maps(), noise=0)
    assert_equal(most, "road_morf")
    assert_equal(least, "road_lerf")


def test_drop_and_increase_are_those_of_pytorch_grad_cam() -> None:
    before = probability()(cases.images(), torch.arange(2)).detach().double()
    drop = measures.average_drop(probability(), cases.images(), cases.maps())
    assert_equal(drop * before, "drop")  # which is not divided by the probability there
    assert_equal(measures.increase(probability(), cases.images(), cases.maps()), "increase")


def test_deletion_is_the_area_under_pixel_flipping_of_quantus() -> None:
    images = cases.images(1)
    whole = probability(1)(images, torch.arange(2)).detach().double()
    curve = torch.cat([whole[:, None], REFERENCES["pixel_flipping"].double()], 1)
    expected = (curve.sum(1) - curve[:, 0] / 2 - curve[:, -1] / 2) / (curve.shape[1] - 1)
    found = measures.deletion(probability(1), images, cases.maps(), step=16)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_localization_and_complexity_are_those_of_quantus() -> None:
    assert_equal(measures.pointing_game(cases.maps(), cases.inside()), "pointing_game")
    assert REFERENCES["pointing_game"].tolist() == [1, 0]
    assert_equal(measures.energy_inside(cases.maps(), cases.inside()), "energy_inside")
    assert_equal(measures.gini(cases.maps()), "gini")
    assert_equal(measures.entropy(cases.maps()), "entropy")


def test_rank_correlation_with_equal_values_is_that_of_quantus() -> None:
    rounded = torch.from_numpy(cases.maps().numpy().round(2))
    assert_equal(measures.spearman(rounded[:1], rounded[1:]), "spearman")


def test_cascading_randomization_is_that_of_quantus() -> None:
    def explain(model: torch.nn.Module, images: Tensor) -> Tensor:
        pixels = images.clone().requires_grad_()
        return torch.autograd.grad(model(pixels).gather(1, LABELS[:, None]).sum(), pixels)[0].sum(1)

    model = cases.network(in_chans=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = measures.cascading_randomization(model, explain, cases.images(1), seed=7)
    assert next(iter(found)) == "head"
    assert_equal(torch.stack(list(found.values())), "mprt", 1e-5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_max_sensitivity_is_that_of_captum() -> None:
    model = cases.network()

    def explain(images: Tensor) -> Tensor:
        pixels = images.clone().requires_grad_()
        return torch.autograd.grad(model(pixels)[:, 1].sum(), pixels)[0].sum(1)

    assert_equal(measures.max_sensitivity(explain, cases.images(), samples=4), "max_sensitivity", 1e-5)


def test_imputation_of_large_images_solves_the_same_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    images = cases.images().repeat(1, 1, 5, 4)[..., :70, :61]
    place = torch.linspace(-1, 1, 70)[:, None] ** 2 + torch.linspace(-1, 1, 61)[None] ** 2
    gone = (place < 1.2).expand(2, -1, -1)
    assert max(images.shape) > imputation.SMALL
    fast = imputation.impute(images, gone)
    monkeypatch.setattr(imputation, "SMALL", 100)
    torch.testing.assert_close(fast, imputation.impute(images, gone), rtol=1e-5, atol=1e-6)
    assert torch.equal(fast[0, :, ~gone[0]], images[0, :, ~gone[0]])
    right, below = fast[:, :, 35, 31], fast[:, :, 36, 30]
    around = (fast[:, :, 35, 29] + right + fast[:, :, 34, 30] + below) / 6
    corners = sum(fast[:, :, 35 + dy, 30 + dx] for dy in (-1, 1) for dx in (-1, 1)) / 12
    torch.testing.assert_close(fast[:, :, 35, 30], around + corners, rtol=1e-5, atol=1e-5)
