"""The predictor: one image or many, in any form, with the model's own preparation."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import torch

from focalnet import Predictor
from focalnet.card import ModelCard
from focalnet.data.preprocess import eval_transform
from focalnet.errors import ConfigError, ImageError, InputError, UnknownName
from tests.inference.small import CARD, backbone, classifier, noise


def test_it_is_softmax_of_the_model_on_the_prepared_image() -> None:
    model, image = classifier(), noise()
    with torch.no_grad():
        scores = model(eval_transform(CARD.preprocessing)(image)[None]).softmax(1)[0]
    result = Predictor(model)(image)
    assert result.labels == tuple(scores.argsort(descending=True).tolist())
    assert result.scores == pytest.approx(scores.sort(descending=True).values.tolist(), rel=1e-5)
    assert result.names == tuple(CARD.class_names[i] for i in result.labels)
    assert result.image is not None
    assert result.image.size == image.size


def test_an_image_may_come_as_path_string_bytes_or_image(tmp_path: Path) -> None:
    path, buffer = tmp_path / "a.png", io.BytesIO()
    noise().save(path)
    noise().save(buffer, "PNG")
    predictor = Predictor(classifier())
    from_path, from_string, from_bytes, from_image = (
        predictor(source) for source in (path, str(path), buffer.getvalue(), noise())
    )
    assert from_path.scores == from_string.scores == from_bytes.scores == from_image.scores
    assert from_path.path == from_string.path == str(path)
    assert from_bytes.path is from_image.path is None


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_list_gives_a_list_in_order_whatever_the_batch_size(batch_size: int) -> None:
    images = [noise(20 + i, 30, seed=i) for i in range(7)]
    one_by_one = [Predictor(classifier())(image) for image in images]
    together = Predictor(classifier(), batch_size=batch_size)(images)
    assert [r.labels for r in together] == [r.labels for r in one_by_one]
    for a, b in zip(together, one_by_one, strict=True):
        assert a.scores == pytest.approx(b.scores, rel=1e-4)


def test_an_empty_list_gives_an_empty_list() -> None:
    assert Predictor(classifier())([]) == []


def test_top_k_limits_the_classes() -> None:
    assert len(Predictor(classifier(), top_k=2)(noise()).labels) == 2
    assert len(Predictor(classifier(), top_k=9)(noise()).labels) == 3


def test_a_broken_image_is_named_or_skipped(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    predictor = Predictor(classifier(), batch_size=2)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        predictor([noise(), broken])
    errors: list[ImageError] = []
    results = list(predictor.stream([broken, broken, noise(), broken, noise()], skip=errors.append))
    assert len(results) == 2
    assert len(errors) == 3


def test_streaming_reads_no_further_than_asked() -> None:
    asked: list[int] = []

    def images():
        for i in range(100):
            asked.append(i)
            yield noise(seed=i)

    next(Predictor(classifier(), batch_size=4).stream(images()))
    assert len(asked) == 4


def test_it_evaluates_a_model_that_was_training() -> None:
    model = classifier(drop_rate=0.5, drop_path_rate=0.5).train()
    predictor = Predictor(model)
    assert predictor(noise()).scores == predictor(noise()).scores


def test_a_model_that_cannot_name_things_is_refused() -> None:
    bare, wrong, headless = classifier(), classifier(), classifier()
    bare.card = None
    wrong.card = ModelCard(name="wrong", class_names=("only", "two"))
    headless.reset_classifier(0)
    for model, why in (
        (bare, "model.card"),
        (wrong, "3 classes and its card names 2"),
        (headless, "no classes"),
        (backbone(), "FocalNet has no classes"),
    ):
        with pytest.raises(ConfigError, match=why):
            Predictor(model)


def test_classes_without_names_are_numbered() -> None:
    model = classifier()
    model.card = ModelCard(name="nameless", preprocessing=CARD.preprocessing)
    result = Predictor(model)(noise())
    assert result.names == tuple(f"class {label}" for label in result.labels)


def test_other_channels_than_three_are_refused() -> None:
    model = classifier(in_chans=4)
    model.card = dataclasses.replace(CARD)
    with pytest.raises(InputError, match="4"):
        Predictor(model)(noise())


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", ""])
def test_an_absent_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="there are: cpu"):
        Predictor(classifier(), device)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        Predictor(classifier(), batch_size=0)
    with pytest.raises(ConfigError, match="top_k=-1"):
        Predictor(classifier(), top_k=-1)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownName, match="focalnet_nani"):
        Predictor("focalnet_nani.cifar10")


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:FutureWarning",
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:Converting a tensor to a Python:torch.jit.TracerWarning",  # by checks of sizes, which a trace fixes
)
@pytest.mark.parametrize("trainable", [True, False])
def test_a_classifier_is_traced_in_eval_mode(trainable: bool) -> None:
    model = classifier().requires_grad_(trainable)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.jit.trace(model, images)(images), model(images))
