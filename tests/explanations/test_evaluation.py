"""Evaluations of heat maps: the table, its verdicts, what is written, and going on after an interruption."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet import explain
from focalnet.cli.main import main
from focalnet.errors import ConfigError, DataError
from focalnet.explanations import evaluation as evaluating
from focalnet.explanations import measures
from focalnet.explanations import subjects as subjects_of
from focalnet.explanations.evaluation import COLUMNS, evaluate
from focalnet.explanations.page import write_page
from focalnet.weights import save
from tests.data.panoptic import write_map
from tests.explanations import cases
from tests.explanations.test_attribution import dense
from tests.inference.small import CARD, noise

METHODS = ["modulator_cam", "grad_cam"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for i, name in enumerate(("ant", "bee", "cat")):
        for j in range(3):
            path = root / "test" / name / f"{j}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(20, 18, seed=3 * i + j).save(path)
    return root


def network() -> Any:
    model = cases.network()
    model.card = CARD
    return model


def test_every_method_and_control_is_measured(folders: Path, tmp_path: Path) -> None:
    found = evaluate(network(), folders, tmp_path, methods=METHODS, images=3)
    assert list(found.cells) == [*METHODS, "random", "center", "edges"]
    for row in found.cells.values():
        assert set(COLUMNS) - set(row) == {"pointing_game", "energy_inside", "contrast"}  # which need objects
        for cell in row.values():
            assert cell.images == 3
            assert cell.low <= cell.mean <= cell.high
    assert found.cells["center"]["mprt"].mean == pytest.approx(1)  # it does not look at the network
    assert found.cells["edges"]["random_logit"].mean == pytest.approx(1)
    assert found.cells["modulator_cam"]["random_logit"].mean < 0.99
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written == found.to_dict()
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").read_text().splitlines()))
    assert len(rows) == sum(map(len, found.cells.values()))
    assert {row["verdict"] for row in rows} <= {"", "valid", "undecided", "invalid"}
    page = write_page(found, tmp_path / "evaluation.html").read_text()
    assert page.count("data:image/png") == len(found.examples) == 1
    assert "modulator_cam" in page


def test_an_interrupted_evaluation_goes_on_and_gives_the_same(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects_of, "BATCH", 1)
    whole = evaluate(network(), folders, tmp_path / "whole", methods=["grad_cam"], images=3)
    lines = (tmp_path / "whole" / "values.jsonl").read_text().splitlines(keepends=True)
    cut = tmp_path / "cut" / "values.jsonl"
    cut.parent.mkdir()
    cut.write_text("".join(lines[:6]) + lines[6][:40])  # killed while it wrote
    measured: list[str] = []
    original = evaluating._measured

    def counted(subjects: Any, method: str, wanted: Any) -> Any:
        measured.append(method)
        return original(subjects, method, wanted)

    monkeypatch.setattr(evaluating, "_measured", counted)
    again = evaluate(network(), folders, tmp_path / "cut", methods=["grad_cam"], images=3)
    assert len(measured) == len(lines) - 6
    assert again.to_dict() == whole.to_dict()
    assert cut.read_text().splitlines() == [line.rstrip("\n") for line in lines]
    with pytest.raises(ConfigError, match="other options"):
        evaluate(network(), folders, tmp_path / "cut", methods=["gates"], images=3)


def test_an_evaluation_grows_and_its_first_images_are_those_of_a_smaller_one(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects_of, "BATCH", 2)
    options: Any = {"methods": ["grad_cam"], "measured": ["insertion_patches", "gini"]}
    few = evaluate(network(), folders, tmp_path / "few", images=3, **options)
    many = evaluate(network(), folders, tmp_path / "many", images=6, **options)
    measured: list[int] = []
    original = evaluating._measured

    def counted(subjects: Any, method: str, wanted: Any) -> Any:
        measured.append(len(subjects.targets))
        return original(subjects, method, wanted)

    monkeypatch.setattr(evaluating, "_measured", counted)
    grown = evaluate(network(), folders, tmp_path / "few", images=6, **options)
    assert measured == [2] * 8  # of four methods: the batch that had one image, and the new one
    assert grown.to_dict() == many.to_dict()
    shrunk = evaluate(network(), folders, tmp_path / "many", images=3, **options)
    assert measured[8:] == [1] * 4
    assert shrunk.to_dict() == few.to_dict()


def test_a_measure_that_a_control_wins_is_invalid() -> None:
    good, bad = torch.linspace(0.8, 0.9, 20), torch.linspace(0.1, 0.2, 20)
    control = {"random": {"insertion": bad}, "edges": {"insertion": bad}}
    verdicts = evaluating._verdicts
    assert verdicts({"grad_cam": {"insertion": good}, "center": {"insertion": bad}, **control}) == {
        "insertion": "valid"
    }
    assert verdicts({"grad_cam": {"insertion": bad}, "center": {"insertion": good}, **control}) == {
        "insertion": "invalid"
    }
    near = bad + torch.tensor([0.5, -0.4] * 10)
    assert verdicts({"grad_cam": {"insertion": near}, "center": {"insertion": bad}, **control}) == {
        "insertion": "undecided"
    }
    leaders = evaluating._leaders
    rows = {"a": {"insertion": good}, "b": {"insertion": bad}, "c": {"insertion": good + near - bad}, **control}
    assert leaders(rows) == {"insertion": ["c", "a"]}  # b is worse on every image; controls do not count
    lower = {"grad_cam": {"deletion": bad}, **{name: {"deletion": good} for name in ("random", "center", "edges")}}
    assert verdicts(lower) == {"deletion": "valid"}


def test_detections_are_compared_with_annotated_objects(tmp_path: Path) -> None:
    model = dense("mask_rcnn")
    image = noise(90, 70)
    found = explain(model, image).prediction
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "a.png")
    left, top, right, bottom = found.boxes[0].tolist()
    box = [left, top, right - left, bottom - top]
    entry = {"id": 1, "image_id": 1, "category_id": int(found.labels[0]) + 1, "bbox": box, "iscrowd": 0, "area": 9}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 90, "height": 70}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(("ant", "bee", "cat"))],
        "annotations": [entry],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_test.json").write_text(json.dumps(content))
    (subjects,) = subjects_of.find_subjects(model, tmp_path, 1, "test")
    assert subjects.inside is not None
    share = (box[2] * box[3]) / (90 * 70)
    assert float(subjects.inside.float().mean()) == pytest.approx(share, abs=0.05)
    score = subjects.probability(subjects.pixels[..., :64, :82], torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(score, found.scores[:1])  # of the detection, times an IoU of 1

    middle = left + box[2] / 2  # the left half of the box
    entry["segmentation"] = [[left, top, middle, top, middle, bottom, left, bottom]]
    entry["area"] = box[2] * box[3] / 2
    (tmp_path / "annotations" / "instances_test.json").write_text(json.dumps(content))
    (subjects,) = subjects_of.find_subjects(model, tmp_path, 1, "test")
    assert subjects.inside is not None
    assert float(subjects.inside.float().mean()) == pytest.approx(share / 2, abs=0.05)  # of the mask, not of the box
    columns = subjects.inside[0].any(0).nonzero().flatten()
    assert float(columns.max()) == pytest.approx(middle * 82 / 90, abs=2)


def test_segments_are_compared_with_label_maps(tmp_path: Path) -> None:
    for folder in ("images/test", "annotations/test"):
        (tmp_path / folder).mkdir(parents=True)
    noise(90, 70).save(tmp_path / "images/test/a.png")
    labels = torch.arange(3, dtype=torch.uint8).repeat_interleave(30).expand(70, 90)
    Image.fromarray(labels.numpy()).save(tmp_path / "annotations/test/a.png")
    (tmp_path / "classes.json").write_text(json.dumps(["ant", "bee", "cat"]))
    found = list(subjects_of.find_subjects(dense("upernet"), tmp_path, 1, "test"))
    assert 1 <= len(found) <= 3
    for subjects in found:
        assert subjects.inside is not None
        (label,) = {target.label for target in subjects.targets}
        columns = subjects.inside[0].float().mean(0).nonzero().flatten()
        assert columns.min() == pytest.approx(label * 82 / 3, abs=1)
        assert 0 < float(subjects.probability(subjects.pixels[..., :64, :82], torch.zeros(1, dtype=torch.int64))) < 1


def write_segments(root: Path, model: Any, names: Sequence[str] = ("ant", "bee", "cat")) -> tuple[Any, list[int]]:
    """A panoptic data set of one image whose segments are those that the model predicts; two may be crowds."""
    image = noise(90, 70)
    found = explain(model, image).prediction
    (root / "images").mkdir()
    image.save(root / "images/a.png")
    ids = found.ids.numpy().astype(np.int64)
    write_map(root / "annotations/panoptic_test/a.png", ids)
    segments = [
        {"id": s.id, "category_id": s.label + 1, "area": s.area, "iscrowd": 0, "bbox": [0, 0, 9, 9]}
        for s in found.segments
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 90, "height": 70}],
        "categories": [{"id": i + 1, "name": name, "isthing": int(i < 2)} for i, name in enumerate(names)],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
    }
    (root / "annotations/panoptic_test.json").write_text(json.dumps(content))
    return found, [s.label for s in sorted(found.segments, key=lambda s: -s.area)][:3]


def test_segments_of_a_panoptic_network_are_compared_with_annotated_ones(tmp_path: Path) -> None:
    model = dense("panoptic")
    found, labels = write_segments(tmp_path, model)
    subjects = list(subjects_of.find_subjects(model, tmp_path, 1, "test"))
    assert [one.targets[0].label for one in subjects] == labels
    for one in subjects:
        assert one.inside is not None
        predicted = one.targets[0].inside(one.prepared[0])
        assert torch.equal(one.inside[0], predicted)  # the annotated segment is the predicted one
    evaluation = evaluate(
        model, tmp_path, tmp_path / "out", methods=["modulator"], measured=["contrast", "gini", "energy_inside"]
    )
    assert evaluation.images == len(labels)
    assert set(evaluation.cells["modulator"]) == {"contrast", "gini", "energy_inside"}
    assert len(found.segments) >= 1


def test_other_classes_than_those_of_the_data_are_refused(tmp_path: Path) -> None:
    model = dense("panoptic")
    write_segments(tmp_path, model, names=("ant", "cat", "bee"))
    with pytest.raises(ConfigError, match='its class 1 is "cat", and that of the network "bee"'):
        evaluate(model, tmp_path, tmp_path / "out", images=1)
    content = json.loads((tmp_path / "annotations/panoptic_test.json").read_text())
    content["categories"].append({"id": 4, "name": "dog", "isthing": 0})
    (tmp_path / "annotations/panoptic_test.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="has 4 classes, and the network 3"):
        evaluate(model, tmp_path, tmp_path / "out", images=1)


def test_each_image_has_its_own_noise(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise for all would be one sample, however many images there are."""
    monkeypatch.setattr(subjects_of, "BATCH", 2)
    found: list[torch.Tensor] = []
    original = evaluating.saliency

    def kept(request: Any, method: str) -> torch.Tensor:
        maps = original(request, method)
        if method == "random":
            found.extend(maps)
        return maps

    monkeypatch.setattr(evaluating, "saliency", kept)
    monkeypatch.setattr(evaluating, "_example", lambda *_: None)
    evaluate(network(), folders, tmp_path, methods=["gates"], measured=["gini"], images=5)
    assert len(found) == 5
    assert len({tuple(one.flatten().tolist()) for one in found}) == 5


def test_contrast_compares_inside_with_outside() -> None:
    inside = torch.zeros(4, 6, 6, dtype=torch.bool)
    inside[:, :2] = True
    inside[3] = True  # nothing is outside
    maps = torch.ones(4, 6, 6)
    maps[0, :2], maps[1, :2] = -3, 0
    assert measures.contrast(maps, inside).tolist() == pytest.approx([0.5, -1, 0, 0])


def test_what_cannot_be_evaluated_is_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='measure: "inserton" is unknown; did you mean "insertion"'):
        evaluate(network(), folders, tmp_path / "a", measured=["inserton"])
    with pytest.raises(ConfigError, match="measure: contrast cannot be measured of a Classifier"):
        evaluate(network(), folders, tmp_path / "a", measured=["contrast", "insertion"])
    with pytest.raises(ConfigError, match="measure: random_logit cannot be measured of a ATSS"):
        evaluate(dense("atss"), folders, tmp_path / "a", measured=["random_logit"])
    with pytest.raises(ConfigError, match="split"):
        evaluate(network(), folders, tmp_path / "b", images=1, split="tests")
    with pytest.raises(ConfigError, match="unknown"):
        evaluate(network(), folders, tmp_path / "c", methods=["cam"])
    with pytest.raises(DataError):
        evaluate(network(), tmp_path / "absent", tmp_path / "d")
    (tmp_path / "values.jsonl").write_text("no json\n{\n")
    with pytest.raises(ConfigError, match="not a file of this evaluation"):
        evaluate(network(), folders, tmp_path)


def test_the_command_line_evaluates(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = tmp_path / "small.safetensors", tmp_path / "out"
    save(network(), weights)
    command = ["explain", "--model", str(weights), "--out", str(out), "--evaluate", str(folders), "--images", "2"]
    assert main([*command, "--method", "gates"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json", "evaluation.csv", "evaluation.html", "values.jsonl"
    }  # fmt: skip
    assert "insertion" in capsys.readouterr().out
    capsys.readouterr()
    assert main([*command, "some.png"]) == 2
    assert main([*command, "--levels", "--target", "ant"]) == 2
    assert "--target, --levels: have no effect with --evaluate" in capsys.readouterr().err
    assert main(["explain", "some.png", "--measure", "road", "--images", "3"]) == 2
    assert "--measure, --images: need --evaluate DATA" in capsys.readouterr().err
    assert main(["explain"]) == 2


def test_flat_maps_have_an_order_that_is_not_that_of_reading() -> None:
    order = measures.ranks(torch.zeros(2, 8, 8))
    assert torch.equal(order[0].sort().values, torch.arange(64))
    assert abs(float(order[0, :32].float().mean()) - 31.5) < 8
