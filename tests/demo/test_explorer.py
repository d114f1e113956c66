"""What the page asks of models, without the page."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

import focalnet
from focalnet.card import ModelCard, Preprocessing
from focalnet.demo import explorer as module
from focalnet.demo.explorer import AUTOMATIC, GATE, VIEWS, Explorer, View
from focalnet.demo.uploads import Upload
from focalnet.errors import ConfigError
from focalnet.explanations import attribute, explain, receptive_field


def upload(image: Image.Image, key: str = "k") -> Upload:
    return Upload(key, "a.png", image, image.size)


def test_predictions_are_those_of_the_predictor(explorer, nano, cat_and_horse):
    study = explorer.study("nano", cat_and_horse)
    expected = focalnet.Predictor(nano)(cat_and_horse.image)
    assert study.result.names == expected.names
    assert study.result.scores == pytest.approx(expected.scores, abs=1e-5)
    assert [target.name for target, _ in study.targets[:5]] == list(expected.names)
    assert len(study.targets) == 10
    assert sum(score for _, score in study.targets) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", [m for m in VIEWS if m not in (GATE, "score_cam", "integrated_gradients")])
def test_maps_are_those_of_attribute(method, explorer, nano, cat_and_horse):
    shown = explorer.map(View("nano", "horse", method), cat_and_horse)
    expected = attribute(nano, cat_and_horse.image, "horse", method)
    np.testing.assert_allclose(shown.values, expected.values.numpy(), rtol=1e-4, atol=1e-6)
    assert (shown.blocks, shown.target, shown.region) == (expected.blocks, expected.target, expected.region)


def test_gates_and_modulator_are_those_of_explain(explorer, nano, cat_and_horse):
    (expected,) = explain(nano, cat_and_horse.image, ["layers.1.blocks.0"]).blocks
    for i, level in enumerate(("level 1", "level 2", "global")):
        shown = explorer.map(View("nano", "#0", GATE, "layers.1.blocks.0", level), cat_and_horse)
        np.testing.assert_allclose(shown.values, expected.gates[i], rtol=1e-4, atol=1e-5)
    strip = explorer.strip(View("nano", block="layers.1.blocks.0"), cat_and_horse)
    assert [each.title for each in strip] == ["level 1", "level 2", "global", "modulator"]
    np.testing.assert_allclose(strip[-1].values, expected.modulator, rtol=1e-4)


def test_a_pixel_is_read_where_it_is(explorer, nano, cat_and_horse):
    """The image has 360 x 360 pixels, the first stage's feature map 16 x 16 cells."""
    view = View("nano", "#0", "modulator", "layers.0.blocks.1")
    reading = explorer.reading(view, cat_and_horse, 359, 23)
    (maps,) = explain(nano, cat_and_horse.image, ["layers.0.blocks.1"]).blocks
    assert (reading.row, reading.column, reading.size) == (1, 15, (16, 16))
    assert list(reading.gates.values()) == pytest.approx(maps.gates[:, 1, 15].tolist(), abs=1e-4)
    assert reading.modulator == pytest.approx(maps.modulator[1, 15], rel=1e-4)
    expected = receptive_field(nano, cat_and_horse.image, "layers.0.blocks.1", (31.9, 2.1))
    np.testing.assert_allclose(reading.field.values, expected.numpy(), atol=1e-6)


def test_what_a_classifier_crops_away_is_not_read(explorer):
    wide = upload(Image.new("RGB", (300, 100), "blue"))
    assert explorer.reading(View("nano"), wide, 150, 50).row == 2
    for x in (0, 99, 200, 299):
        with pytest.raises(ConfigError, match="outside the part of the image that the network sees"):
            explorer.reading(View("nano"), wide, x, 50)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (View("nan"), 'model: no "nan"; did you mean "nano"'),
        (View("nano", "hors"), 'class: no "hors"; did you mean "horse"'),
        (View("nano", "#10"), 'class: no "#10"'),
        (View("nano", "#" + "9" * 400), "class: no"),
        (View("nano", "#0", "grad-cam"), 'method: no "grad-cam"; did you mean "grad_cam"'),
        (View("nano", "#0", "grad_cam", "layers.9"), 'block: no "layers.9"'),
        (View("nano", "#0", GATE, AUTOMATIC, "level 9"), r'has no "level 9"; it has level 1, level 2, global'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_settings_are_named(view, said, explorer, cat_and_horse):
    with pytest.raises(ConfigError, match=said) as caught:
        explorer.map(view, cat_and_horse)
    assert len(str(caught.value)) < 400


def test_answers_are_kept_in_bounded_number(explorer, nano, monkeypatch):
    monkeypatch.setattr(module, "STUDIES", 3)
    monkeypatch.setattr(module, "MAPS", 5)
    passes = []
    handle = nano.register_forward_hook(lambda *_: passes.append(1))
    try:
        images = [upload(Image.effect_noise((32, 32), 9 + i).convert("RGB"), str(i)) for i in range(4)]
        first = explorer.map(View("nano"), images[0])
        count = len(passes)
        assert explorer.map(View("nano"), images[0]) is first
        assert len(passes) == count
        for image in images:
            explorer.map(View("nano"), image)
            for block in explorer.blocks("nano")[:2]:
                explorer.map(View("nano", block=block), image)
        assert len(explorer._studies) == 3
        assert len(explorer._maps) == 5
    finally:
        handle.remove()


def test_requests_at_the_same_time_do_not_mix(nano, cat_and_horse):
    """Each thread has its own image; the maps are those of one thread."""
    images = [upload(cat_and_horse.image.rotate(90 * i), str(i)) for i in range(4)]
    alone = [Explorer({"nano": nano}).map(View("nano", "cat"), image).values for image in images]
    shared, found = Explorer({"nano": nano}), {}

    def ask(i: int) -> None:
        found[i] = shared.map(View("nano", "cat"), images[i]).values

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_allclose(found[i], alone[i], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("mask_rcnn_focalnet_nano", None),
        ("atss_focalnet_nano", None),
        ("upernet_focalnet_nano", None),
        ("mask2former_focalnet_nano", "panoptic"),
    ],
)
def test_networks_of_every_task_are_explained(name, task, cat_and_horse):
    """Random weights: what is predicted is noise, or nothing; then that is said."""
    torch.manual_seed(0)
    options = {} if task is None else {"task": task, "num_things": 2}
    model = focalnet.create_model(name, num_classes=3, **options).eval()
    model.card = ModelCard(
        name="toy", class_names=("a", "b", "c"), preprocessing=Preprocessing(image_size=64, max_size=128)
    )
    small = upload(cat_and_horse.image.resize((96, 64)))
    explorer = Explorer({"m": model})
    study = explorer.study("m", small)
    assert study.result.image is small.image
    assert explorer.map(View("m", method="modulator"), small).values.shape == study.prepared.size
    assert explorer.reading(View("m", method="modulator"), small, 90, 60).gates
    if study.targets:
        shown = explorer.map(View("m", method="grad_cam"), small)
        assert shown.target == study.targets[0][0].name
    else:
        with pytest.raises(ConfigError, match=r"nothing is predicted.*choose modulator, gates"):
            explorer.map(View("m", method="grad_cam"), small)
