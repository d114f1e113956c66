"""``focalnet predict`` and ``explain`` with segmenters: what is printed and written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet import Predictor, optimize, weights, zoo
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.data.formats.coco_panoptic import read_ids, read_panoptic
from focalnet.data.readers.image_files import FolderOfImages
from focalnet.results import Classification, PanopticMap, SemanticMap
from tests.inference.segmenters import NAMES, Colours, blocks, colours

TRUNK = {"embed_dim": 8, "depths": (1, 1, 1, 1), "focal_levels": (1, 1, 1, 1), "focal_windows": (3, 3, 3, 3)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate(("a", "b")):
        blocks(96, 64, seed=i, block=32)[0].save(folder / f"{name}.png")
    return folder


@pytest.fixture
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Colours:
    """What ``--model colours`` loads."""
    found = colours(request.param)
    monkeypatch.setattr(zoo, "load", lambda name: found)
    return found


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("network", kinds, indirect=True)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@of_kind("semantic")
@pytest.mark.parametrize("options", [[], ["--flip", "--short-side", "64", "--short-side", "96"], ["--tile", "48"]])
def test_a_semantic_model_writes_label_maps(network, options, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(pictures), "--model", "colours", "--out", str(out), *options]) == 0
    expected = ["a-prediction.png", "a.labels.png", "b-prediction.png", "b.labels.png", "predictions.json"]
    assert written(out) == expected
    report = json.loads((out / "predictions.json").read_text())
    assert report["categories"] == [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    for i, one in enumerate(report["predictions"]):
        truth = blocks(96, 64, seed=i, block=32)[1].numpy()
        with Image.open(one["labels"]) as png:
            assert png.mode == "P"
            labels = np.asarray(png)
        assert (labels == truth).mean() > 0.93
        assert (one["height"], one["width"]) == (64, 96)
        for entry in one["classes"]:
            assert entry["share"] == pytest.approx((labels == entry["label"]).mean())
        assert Path(one["picture"]).is_file()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(pictures / "a.png")
    first = report["predictions"][0]["classes"][0]
    assert lines[1].split() == [f"{100 * first['share']:.1f}", "%", first["name"]]


@of_kind("panoptic")
def test_a_panoptic_model_writes_what_our_own_reader_takes(network, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(pictures), "--model", "colours", "--out", str(out)]) == 0
    assert written(out) == [
        "a-prediction.png", "a.panoptic.png", "b-prediction.png", "b.panoptic.png", "panoptic.json", "predictions.json",
    ]  # fmt: skip
    found = read_panoptic(out / "panoptic.json")
    assert not found.problems
    assert (found.class_names, found.num_things) == (NAMES, 2)
    for i, image in enumerate(found.images):
        truth = blocks(96, 64, seed=i, block=32)[1].numpy()
        numbers = read_ids(FolderOfImages(out), found.maps[image.image_id], image)
        for number, segment in enumerate(image.annotations, start=1):
            label = found.label_of()[segment["category_id"]]
            assert ((numbers == number) == (truth == label)).all()
            rows, columns = np.nonzero(truth == label)
            left, top, width, height = segment["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert segment["area"] == len(rows)
    printed = capsys.readouterr().out
    assert "red (1)" in printed  # an object
    assert "blue (1)" not in printed
    # Its ids are those of the truth, if told so.
    annotations = json.loads((out / "panoptic.json").read_text())
    for number, entry in ((77, annotations["images"][0]), (78, annotations["images"][1])):
        entry["id"] = number
    for number, entry in ((77, annotations["annotations"][0]), (78, annotations["annotations"][1])):
        entry["image_id"] = number
    (tmp_path / "truth.json").write_text(json.dumps(annotations))
    arguments = ["predict", str(pictures), "--model", "colours", "--out", str(out)]
    assert main([*arguments, "--annotations", str(tmp_path / "truth.json")]) == 0
    assert [one["image_id"] for one in json.loads((out / "panoptic.json").read_text())["annotations"]] == [77, 78]


@of_kind("instance")
def test_an_instance_model_writes_cocos_results(network, pictures, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(pictures), "--model", "colours", "--out", str(out), "--tile", "64"]) == 0
    assert written(out) == ["a-prediction.png", "b-prediction.png", "detections.json", "predictions.json"]
    found = json.loads((out / "detections.json").read_text())
    assert {one["image_id"] for one in found} == {1, 2}
    assert all(one["segmentation"]["size"] == [64, 96] for one in found)


@of_kind("panoptic")
def test_folders_are_kept_and_no_two_files_are_mixed(network, tmp_path, capsys):
    places = ["one/a.png", "one/more/a.png", "one/more/a.jpg", "two/a.png"]
    for i, place in enumerate(places):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        blocks(96, 64, seed=i, block=32)[0].save(tmp_path / place)
    out = tmp_path / "out"
    given = [str(tmp_path / "one"), f"{tmp_path}/two/*.png"]
    assert main(["predict", *given, "--model", "colours", "--out", str(out), "--table", str(out / "a.csv")]) == 0
    written = json.loads((out / "predictions.json").read_text())
    names = {Path(one["path"]).relative_to(tmp_path).as_posix(): one for one in written["predictions"]}
    drawn = {place: str(Path(one["picture"]).relative_to(out)) for place, one in names.items()}
    assert drawn == {
        "one/a.png": "a-prediction.png", "one/more/a.jpg": "more/a-prediction.png",
        "one/more/a.png": "more/a-2-prediction.png", "two/a.png": "a-2-prediction.png",
    }  # fmt: skip
    panoptic = json.loads((out / "panoptic.json").read_text())
    files = [entry["file_name"] for entry in panoptic["images"]]
    assert files == ["a.png", "more/a.jpg", str(tmp_path / "one/more/a.png"), str(tmp_path / "two/a.png")]
    maps = [entry["file_name"] for entry in panoptic["annotations"]]
    assert len(set(maps)) == 4
    assert all((out / name).is_file() for name in maps)
    rows = list(csv.DictReader((out / "a.csv").read_text().splitlines()))
    assert len(rows) == sum(len(one["segments"]) for one in written["predictions"])
    assert {row["path"] for row in rows} == {one["path"] for one in written["predictions"]}


def test_lists_are_written_as_in_one_piece(tmp_path):
    from focalnet.cli.results import Results

    results = Results(tmp_path, "mine", None)
    results.header["categories"] = [{"name": "\0"}, {"name": "é"}]
    found = [
        Classification((i,), (0.5,), (f"é{i}",), path=f"{i}.png", image=Image.new("RGB", (8, 8))) for i in range(3)
    ]
    with results.kept():
        for i, one in enumerate(found):
            results.add(one, str(i))
        results.write()
    text = (tmp_path / "predictions.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    assert [one["path"] for one in json.loads(text)["predictions"]] == ["0.png", "1.png", "2.png"]
    assert list(json.loads(text)) == ["model", "predictions", "categories"]


@of_kind("semantic", "instance", "panoptic")
def test_films_go_frame_by_frame(network, tmp_path):
    pytest.importorskip("cv2", reason="films need the extra video")
    from focalnet.inference.video import frame_rate, frames, write_video

    film = write_video([blocks(96, 64, seed=i)[0] for i in range(3)], tmp_path / "clip.mp4", 10.0)
    assert main(["predict", str(film), "--model", "colours", "--out", str(tmp_path / "out")]) == 0
    drawn = tmp_path / "out/clip-prediction.mp4"
    assert (len(list(frames(drawn))), frame_rate(drawn)) == (3, 10.0)


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        ("semantic", ["--tile", "8"], "--tile"),
        ("semantic", ["--tile", "40", "--overlap", "1"], "overlap"),
        ("semantic", ["--annotations", "some.json"], "--annotations"),
        ("panoptic", ["--tile", "64"], "panoptic map"),
        ("panoptic", ["--annotations", "absent.json"], "absent.json"),
        ("semantic", ["--max-megapixels", "1", "large.png"], "--max-megapixels"),
    ],
    indirect=["network"],
)
def test_what_does_not_go_together_is_refused(network, options, expected, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (1100, 1000)).save("large.png")
    out = tmp_path / "out"
    before = Image.MAX_IMAGE_PIXELS
    assert main(["predict", str(pictures), "--model", "colours", "--batch-size", "8", "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert before == Image.MAX_IMAGE_PIXELS


@of_kind("semantic")
def test_a_picture_within_the_limit_gives_no_warning(network, tmp_path, capsys):
    Image.new("RGB", (1100, 800), (0, 255, 0)).save(tmp_path / "large.png")
    assert main(["predict", str(tmp_path / "large.png"), "--model", "colours", "--max-megapixels", "1"]) == 0
    assert "100.0 %  green" in capsys.readouterr().out


# --- real networks


@pytest.fixture(scope="module")
def upernet(tmp_path_factory) -> str:
    torch.manual_seed(0)
    network = zoo.create_model("upernet_focalnet_tiny_srf", num_classes=4, channels=16, auxiliary_channels=8, **TRUNK)
    network.card = ModelCard(
        name="upernet_small.test",
        class_names=("a", "b", "c", "d"),
        preprocessing=Preprocessing(image_size=64, max_size=256),
    )
    return str(weights.save(network, tmp_path_factory.mktemp("model") / "model.safetensors"))


def test_upernet_from_its_file(upernet, pictures, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(pictures), "--model", upernet, "--out", str(out), "--tile", "48"]) == 0
    assert "a.labels.png" in written(out)
    assert main(["explain", str(pictures / "a.png"), "--model", upernet, "--out", str(out / "explained")]) == 0
    assert (out / "explained/a/sheet.png").is_file()


@pytest.mark.parametrize("segments", ["semantic", "instance", "panoptic"])
def test_mask2former_gives_every_result(segments):
    torch.manual_seed(0)
    network = zoo.create_model(
        "mask2former_focalnet_tiny_srf", num_classes=4, segments=segments, num_things=2, num_queries=6, channels=32,
        encoder_layers=1, encoder_hidden=32, decoder_layers=1, decoder_hidden=32, object_threshold=0.0, **TRUNK,
    )  # fmt: skip
    network.card = ModelCard(name="small.test", preprocessing=Preprocessing(image_size=64, max_size=256))
    picture = blocks(50, 40)[0]
    plain = Predictor(network)(picture)
    done = optimize(network)
    found = Predictor(network)(picture)
    done.undo()
    again = Predictor(network)(picture)
    if isinstance(plain, SemanticMap):
        assert plain.labels.shape == (40, 50)
        assert (plain.labels == found.labels).float().mean() > 0.99
        assert torch.equal(plain.labels, again.labels)
    elif isinstance(plain, PanopticMap):
        assert plain.ids.shape == (40, 50)
        assert sum(segment.area for segment in plain.segments) == (plain.ids > 0).sum()
        assert (plain.ids == found.ids).float().mean() > 0.99
    else:
        assert plain.size == (40, 50)
        assert (plain.labels < 2).all()
    assert (
        type(plain).__name__
        == {"semantic": "SemanticMap", "instance": "Detections", "panoptic": "PanopticMap"}[segments]
    )


def test_optimize_gives_the_same_map(upernet):
    network = zoo.load(upernet)
    keys = network.state_dict().keys()
    picture = blocks(96, 64)[0]
    plain = Predictor(network)(picture)
    done = optimize(network)
    assert network.state_dict().keys() == keys
    assert (Predictor(network)(picture).labels == plain.labels).float().mean() > 0.999
    done.undo()
    assert torch.equal(Predictor(network)(picture).labels, plain.labels)
