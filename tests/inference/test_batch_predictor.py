"""Batches of columns, as Ray Data has them, become batches with results."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from focalnet import Predictor, weights, zoo
from focalnet.errors import InputError
from focalnet.inference import BatchPredictor
from focalnet.inference.manifest.shards import schema
from tests.docs.pages import ROOT, blocks
from tests.inference.segmenters import blocks as blocks_of_colors
from tests.inference.segmenters import colours
from tests.inference.small import classifier, noise


@pytest.fixture
def images(tmp_path) -> list[str]:
    paths = [str(tmp_path / name) for name in ("a.png", "two\nlines.png", "字.png")]
    for seed, path in enumerate(paths):
        noise(seed=seed).save(path)
    return paths


def objects(values) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def columns_of(kind: str, paths: list[str]) -> np.ndarray:
    if kind == "text":
        return np.array(paths)
    if kind == "objects":
        return objects(paths)
    if kind == "paths":
        return objects([Path(path) for path in paths])
    if kind == "bytes":
        return objects([Path(path).read_bytes() for path in paths])
    arrays = [np.asarray(noise(seed=seed)) for seed in range(len(paths))]
    return np.stack(arrays) if kind == "array" else objects(arrays)


@pytest.mark.parametrize("kind", ["text", "objects", "paths", "bytes", "array", "arrays"])
def test_images_of_every_kind(kind, images):
    predictor = BatchPredictor(classifier(), "image", device="cpu", batch_size=2, top_k=2)
    batch = {"id": np.arange(3), "image": columns_of(kind, images)}
    found = predictor(batch)
    assert list(found) == ["id", *(["image"] if kind in ("text", "objects", "paths") else []), "error", "top"]
    expected = [one.to_dict()["top"] for one in Predictor(classifier(), "cpu", batch_size=2, top_k=2)(images)]
    assert found["top"].tolist() == expected
    assert found["error"].tolist() == [None] * 3
    assert all(isinstance(column, np.ndarray) and len(column) == 3 for column in found.values())


def test_what_cannot_be_read_has_an_error(images, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"no image")
    paths = [images[0], None, str(tmp_path / "damaged.png"), float("nan"), images[1], str(tmp_path / "none")]
    found = BatchPredictor(classifier(), device="cpu")({"path": objects(paths)})
    assert [error is None for error in found["error"]] == [True, False, False, False, True, False]
    assert [top is None for top in found["top"]] == [False, True, True, True, False, True]
    assert found["error"][1] == 'column "path" is null'
    arrays = objects([np.zeros((4, 4, 3), np.uint8), np.zeros(4), np.full((4, 4, 3), 2.0)])
    errors = BatchPredictor(classifier(), "image", device="cpu")({"image": arrays})["error"]
    assert errors[0] is None
    assert "is not an image" in errors[1]
    assert "give 0 to 1" in errors[2]


def test_masks_and_sizes_are_columns(tmp_path):
    blocks_of_colors(96, 64, seed=0, block=32)[0].save(tmp_path / "a.png")
    found = BatchPredictor(colours("semantic"), device="cpu")({"path": np.array([str(tmp_path / "a.png"), "none"])})
    assert list(found) == ["path", "error", "height", "width", "classes"]
    assert found["height"].tolist() == [64, None]
    assert found["classes"][0][0]["segmentation"]["size"] == [64, 96]


def test_it_is_pickled_without_the_network_of_a_file(images, tmp_path, monkeypatch):
    weights.save(classifier(), tmp_path / "model.safetensors")
    predictor = BatchPredictor(tmp_path / "model.safetensors", device="cpu")
    fresh = len(pickle.dumps(predictor))
    loads = []
    load = zoo.load
    monkeypatch.setattr(zoo, "load", lambda name: loads.append(name) or load(name))
    batch = {"path": np.array(images)}
    expected = predictor(batch)
    predictor(batch)
    assert len(loads) == 1
    assert len(pickle.dumps(predictor)) == fresh < 1000
    assert pickle.loads(pickle.dumps(predictor))(batch)["top"].tolist() == expected["top"].tolist()
    assert pickle.loads(pickle.dumps(BatchPredictor(classifier())))(batch)["top"][0] == expected["top"][0]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": np.array(["a"])}, 'no column "path" in the batch, which has image'),
        ({"path": np.array([b"a"])}, "loses zero bytes"),
        ({"path": np.array([1])}, "has a int64: give paths, bytes or arrays"),
        ({"path": np.array(["a"]), "error": np.array([1])}, 'has a column "error", which is one of the results'),
    ],
)
def test_other_batches_are_refused(batch, message):
    with pytest.raises(InputError, match=message):
        BatchPredictor(classifier(), device="cpu")(batch)


def test_no_rows_have_no_results():
    found = BatchPredictor(classifier(), device="cpu")({"path": np.array([], dtype=object)})
    assert {name: len(column) for name, column in found.items()} == {"path": 0, "error": 0, "top": 0}


@pytest.mark.parametrize("kind", ["paths", "images"])
def test_tables_keep_their_types(kind, images, tmp_path):
    paths = [*images, None, str(tmp_path / "none")]
    values = paths if kind == "paths" else [Path(path).read_bytes() for path in images] + [None, b"no image"]
    predictor = BatchPredictor(classifier(), "image", device="cpu")
    found = predictor(arrow.table({"id": range(5), "image": values}))
    assert found.column_names == ["id", *(["image"] if kind == "paths" else []), "error", "top"]
    expected = predictor({"image": objects(values)})
    assert found.column("top").to_pylist() == expected["top"].tolist()
    assert found.column("error").to_pylist() == expected["error"].tolist()
    for rows in (found.slice(0, 1), found.slice(3), predictor(arrow.table({"id": [1], "image": values[3:4]}))):
        assert rows.schema.field("error").type == arrow.string()
        assert rows.schema.field("top").type == schema("classification").field("top").type
    with pytest.raises(InputError, match="has the type int64: give text"):
        predictor(arrow.table({"image": [1]}))


def test_the_example_of_the_docs_is_the_one_that_is_tested():
    (example,) = [block.text for block in blocks("docs/scale.md") if block.language == "py"]
    assert (ROOT / "tests/inference/ray_example.py").read_text().endswith(example)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own
def test_ray_data_predicts_and_resumes(images, tmp_path):
    """The example of docs/scale.md: the second run predicts only what the first one has not."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data.checkpoint")
    from tests.inference.ray_example import predict

    def read(column: str) -> list[object]:
        return [
            value for path in (tmp_path / "out").glob("*") for value in parquet.read_table(path)[column].to_pylist()
        ]

    weights.save(classifier(), tmp_path / "model.safetensors")
    arguments = [str(tmp_path / name) for name in ("list.parquet", "out", "checkpoint", "model.safetensors")]
    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False, log_to_driver=False)
    try:
        parquet.write_table(arrow.table({"path": [images[0], "missing.png"]}), tmp_path / "list.parquet")
        predict(*arguments, actors=1)
        first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert sorted(read("path")) == sorted([images[0], "missing.png"])
        parquet.write_table(arrow.table({"path": [images[0], "missing.png", *images[1:]]}), tmp_path / "list.parquet")
        predict(*arguments, actors=1)
    finally:
        ray.shutdown()
    assert sorted(read("path")) == sorted([*images, "missing.png"])  # once each
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name in first} == first
    assert sum(error is not None for error in read("error")) == 1
