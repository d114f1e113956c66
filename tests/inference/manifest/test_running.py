"""A manifest on the command line: what is written, resumed and refused."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pandas
import pyarrow as arrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from pycocotools import mask as coco_masks

from focalnet import Predictor, zoo
from focalnet.cli.main import main
from focalnet.errors import ConfigError
from focalnet.inference import BatchPredictor, predict_manifest
from focalnet.inference.manifest import ledger, running
from focalnet.inference.manifest.shards import FIELDS, schema
from focalnet.models.base import Output
from tests.docs.stand_ins import network as dense_network
from tests.inference.manifest.stub import Stub, job, read_rows
from tests.inference.segmenters import blocks, colours
from tests.inference.small import classifier, noise

NETWORKS = {
    "classification": classifier,
    "multilabel": functools.partial(classifier, multi_label=True),
    "detection": functools.partial(dense_network, "detection"),
    "instance": functools.partial(colours, "instance"),
    "semantic": functools.partial(colours, "semantic"),
    "panoptic": functools.partial(colours, "panoptic"),
}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Images, of which one is damaged and one missing, and a list of them with one twice, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.png", "b.png", "two words.png")):
        blocks(96, 64, seed=i, block=32)[0].save(name)
    Path("damaged.png").write_bytes(Path("a.png").read_bytes()[:100])
    names = ["a.png", "damaged.png", "b.png", "two words.png", "missing.png", "a.png"]
    Path("list.txt").write_text("\n".join(names) + "\n")
    return names


@pytest.fixture
def stub(monkeypatch):
    """Commands predict with a stub."""
    monkeypatch.setattr(running, "_ModelPredictor", lambda model, number, **options: Stub(**options))


def predict(*arguments: str) -> int:
    return main(["predict", *arguments])


@pytest.mark.parametrize("output", NETWORKS)
def test_rows_are_what_the_predictor_says(output, photos, monkeypatch, capsys):
    network = NETWORKS[output]()
    monkeypatch.setattr(zoo, "load", lambda name: network)
    options = ["--model", "mine", "--device", "cpu", "--min-score", "0", "--batch-size", "1", "--rows-per-shard", "4"]
    assert predict("list.txt", "--out", "one", *options) == 0
    assert predict("list.txt", "--out", "other", *options, "--shard-format", "jsonl") == 0
    assert "2 rows have no result" in capsys.readouterr().err
    rows, lines = read_rows(Path("one")), read_rows(Path("other"))
    assert [row["row"] for row in rows] == list(range(6))
    assert [row["path"] for row in rows] == photos
    assert {row["source"] for row in rows} == {"list.txt"}
    predictor = Predictor(network, "cpu", batch_size=1, min_score=0)
    for row, line, name in zip(rows, lines, photos, strict=True):
        if name in ("damaged.png", "missing.png"):
            assert name in row["error"]
            assert [row[field] for field in FIELDS[output]] == [None] * len(FIELDS[output])
            assert row == line
            continue
        expected = predictor(name).to_dict(masks=True)
        assert {field: line[field] for field in FIELDS[output]} == {field: expected[field] for field in FIELDS[output]}
        assert line == {**row, **{field: without_null_masks(row[field]) for field in FIELDS[output]}}
        assert set(line) == {"source", "row", "path", "error", *FIELDS[output]}
    assert parquet.read_schema("one/part-00001.parquet").equals(schema(output))


def test_every_kind_of_result_has_fields():
    assert set(FIELDS) == set(NETWORKS) == set(get_args(Output))


def test_the_least_score_is_that_of_the_task(photos, monkeypatch):
    network = classifier(multi_label=True)
    network.head.bias.data = torch.tensor([-0.4, 0.4, 9.0])  # scores of about 0.4, 0.6 and 1
    network.head.weight.data *= 0
    monkeypatch.setattr(zoo, "load", lambda name: network)
    predict_manifest("list.txt", "out", "mine", device="cpu", shard_format="jsonl")
    assert [one["name"] for one in read_rows(Path("out"))[0]["labels"]] == ["cat", "bee"]
    (names,) = BatchPredictor(network, device="cpu")({"path": np.array(["a.png"])})["labels"]
    assert [one["name"] for one in names] == ["cat", "bee"]


def without_null_masks(value):
    """The value of a Parquet shard as JSON has it, where objects without a mask do not have the field."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in one.items() if k != "segmentation" or v is not None} for one in value]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_masks_are_those_of_the_result(photos):
    network = colours("semantic")
    result = Predictor(network, "cpu")("a.png")
    for one in result.to_dict(masks=True)["classes"]:
        mask = coco_masks.decode({**one["segmentation"], "counts": one["segmentation"]["counts"].encode()})
        assert (mask.astype(bool) == (result.labels.numpy() == one["label"])).all()


def test_pandas_reads_the_folder(photos, stub):
    assert predict("list.txt", "--out", "out", "--rows-per-shard", "2") == 0
    table = pandas.read_parquet("out")
    assert table.path.tolist() == photos
    assert sorted(os.listdir("out")) == [".lock", "_ledger.jsonl", *(f"part-0000{i}.parquet" for i in range(3))]


def test_a_folder_needs_the_option(photos, stub, capsys):
    assert predict(".", "--out", "out", "--rows-per-shard", "3", "--shard-format", "jsonl") == 0
    rows = read_rows(Path("out"))
    assert [row["path"] for row in rows] == ["./a.png", "./b.png", "./damaged.png", "./two words.png"]
    assert predict(".", "--out", "other", "--workers", "2") == 2
    assert "add --rows-per-shard" in capsys.readouterr().err


def test_shares_are_disjoint_and_together_all(photos, stub, monkeypatch, capsys):
    options = ["list.txt", "--out", "out", "--rows-per-shard", "1", "--shard-format", "jsonl"]
    for i in (1, 3):
        assert predict(*options, "--shard", f"{i}/4") == 0
    assert sorted(path.name for path in Path("out").glob("part-*")) == [f"part-0000{i}.jsonl" for i in (0, 2, 4)]
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in (1, 3):
        monkeypatch.setenv("RANK", str(rank))
        assert predict(*options) == 0
    assert [row["row"] for row in read_rows(Path("out"))] == list(range(6))
    monkeypatch.setenv("RANK", "none")
    assert predict(*options) == 2
    assert "RANK is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--top", "3"], "begun with --top 5, not --top 3"),
        (["--min-score", "0.5"], "begun with no --min-score, not --min-score 0.5"),
        (["--tile", "64"], "begun with no --tile, not --tile 64"),
        (["--rows-per-shard", "3"], "begun with --rows-per-shard 2, not --rows-per-shard 3"),
        (["--shard-format", "jsonl"], "begun with --shard-format parquet, not --shard-format jsonl"),
        (["--max-megapixels", "9"], "begun with --max-megapixels 200, not --max-megapixels 9"),
        (["more.txt"], "begun with another manifest"),
    ],
)
def test_another_job_is_refused(changes, message, photos, stub, capsys):
    Path("more.txt").write_text("a.png\n")
    assert predict("list.txt", "--out", "out", "--rows-per-shard", "2") == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert predict("list.txt", "--out", "out", "--rows-per-shard", "2", *changes) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert "another --out" in error
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_another_model_or_a_changed_manifest_is_refused(photos, monkeypatch):
    seeds = iter(range(9))

    def load(name):
        network = classifier()
        network.head.bias.data += next(seeds)
        return network

    monkeypatch.setattr(zoo, "load", load)
    predict_manifest("list.txt", "out", "mine", device="cpu")
    with pytest.raises(ConfigError, match=r"another model, or other weights of it \(mine\)"):
        predict_manifest("list.txt", "out", "mine", device="cpu")
    with open("list.txt", "a") as file:
        file.write("b.png\n")
    with pytest.raises(ConfigError, match="another manifest, or this one before it was changed"):
        predict_manifest("list.txt", "out", "mine", device="cpu")


def test_how_it_is_computed_may_change(photos, stub):
    options = ["list.txt", "--out", "out", "--rows-per-shard", "2"]
    assert predict(*options, "--shard", "1/2") == 0
    assert predict(*options, "--batch-size", "1", "--device", "cpu", "--on-error", "skip") == 0


def test_relative_paths_start_where_the_job_was_begun(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    monkeypatch.chdir(tmp_path)
    begun = job(tmp_path / "list.txt", tmp_path / "out", rows_per_shard=1, mine=range(1))
    running.run(begun, print)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    running.run(job(tmp_path / "list.txt", tmp_path / "out", rows_per_shard=1), print)
    assert [row["top"][0]["name"] for row in read_rows(tmp_path / "out")] == [f"{tmp_path}/{n}.png" for n in "ab"]


def test_what_is_not_an_image_has_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "load", lambda name: classifier())
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("empty.jpg").touch()
    Image.new("RGB", (5000, 10)).save("strip.png")
    noise().save("two\nlines.png")
    os.rename(noise_file("x.png"), b"\xff.png")
    paths = ["https://host/a.jpg", "s3://bucket/a", "folder", "pipe", "empty.jpg", "nul\0.jpg", "", None, "x" * 5000]
    good = ["strip.png", "two\nlines.png", "two\nlines.png"]
    names = [*arrow.array([*paths, *good]).cast(arrow.binary()).to_pylist(), b"\xff.png"]
    column = arrow.array(names, arrow.binary()).view(arrow.string())  # which nobody has checked
    parquet.write_table(arrow.table({"path": column}), "list.parquet")
    assert predict("list.parquet", "--out", "out", "--device", "cpu", "--shard-format", "jsonl") == 0
    rows = read_rows(Path("out"))
    assert [row["path"] for row in rows] == [*paths, *good, "\\udcff.png"]
    assert [row["error"] is None for row in rows] == [False] * len(paths) + [True] * 4
    assert "is an address" in rows[0]["error"]
    assert f"{len(paths)} rows have no result" in capsys.readouterr().err


def noise_file(name: str) -> str:
    noise().save(name)
    return name


def test_the_first_error_may_end_the_run(photos, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "load", lambda name: classifier())
    options = ["list.txt", "--out", "out", "--rows-per-shard", "1", "--device", "cpu"]
    assert predict(*options, "--on-error", "raise") == 2
    assert "damaged.png" in capsys.readouterr().err
    assert sorted(path.name for path in Path("out").glob("*part*")) == ["part-00000.parquet"]
    assert predict(*options) == 0
    assert len(read_rows(Path("out"))) == 6


def test_a_row_that_no_batch_can_hold_has_an_error(photos, monkeypatch):
    """Outputs that are not finite: only the image at fault has no result."""
    network = classifier()
    monkeypatch.setattr(zoo, "load", lambda name: network)
    forward = network.forward

    def failing(images):
        logits = forward(images)
        return logits.where(images.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] < 2, float("nan"))

    monkeypatch.setattr(network, "forward", failing)
    Image.new("RGB", (32, 32), "white").save("white.png")
    Path("list.txt").write_text("a.png\nwhite.png\nb.png\n")
    predict_manifest("list.txt", "out", "mine", device="cpu", shard_format="jsonl")
    first, white, last = read_rows(Path("out"))
    assert "finite" in white["error"]
    assert first["top"]
    assert last["top"]


def test_a_tar_file_is_one_shard(photos, stub):
    import tarfile

    with tarfile.open("images.tar", "w") as archive:
        for name in ("a.png", "list.txt", "b.png"):
            archive.add(name)
    tarfile.open("none.tar", "w").close()
    assert predict("images.tar", "none.tar", "list.txt", "--out", "out", "--rows-per-shard", "4") == 0
    counts = [parquet.read_metadata(path).num_rows for path in sorted(Path("out").glob("part-*"))]
    assert counts == [2, 0, 4, 2]
    names = [row["top"][0]["name"] for row in read_rows(Path("out"))[:2]]
    assert names == [f"{os.path.getsize(name)} bytes of images.tar/{name}" for name in ("a.png", "b.png")]


def test_shards_that_were_lost_are_predicted_again(photos, stub, caplog):
    options = ["list.txt", "--out", "out", "--rows-per-shard", "2"]
    assert predict(*options) == 0
    Path("out/part-00000.parquet").unlink()
    Path("out/part-00001.parquet").write_bytes(b"cut")
    with open("out/_ledger.jsonl", "ab") as file:
        file.write(b'{"shard": 2, "fi')  # of a process that was killed here
    assert predict(*options) == 0
    assert [row["path"] for row in read_rows(Path("out"))] == photos
    assert caplog.text.count("is predicted again") == 2
    assert predict(*options) == 0  # what follows a line that is cut short is read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ("{}\n", "is damaged"),
        ("[1]\n", "is damaged"),
        ('{"format": 9}\n', "another version"),
        (None, "without its _ledger"),
    ],
)
def test_a_damaged_ledger_is_refused(content, message, photos, stub, capsys):
    Path("out").mkdir()
    Path("out/part-00000.parquet").write_bytes(b"rows")
    if content is not None:
        Path("out/_ledger.jsonl").write_text(content)
    assert predict("list.txt", "--out", "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "another --out" in error
    assert Path("out/part-00000.parquet").read_bytes() == b"rows"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list.txt"], "needs --out"),
        (["none.txt", "--out", "out"], "no such file"),
        (["*.txt.txt", "--out", "out", "--rows-per-shard", "1"], "matches nothing"),
        (["list.txt", "--out", "out", "--table", "a.csv"], "--table is not for manifests"),
        (["list.txt", "a.png", "--out", "out"], "a.png: a manifest is a .txt"),
        (["list.txt", "--out", "out", "--column", "path"], "--column names a column of Parquet"),
        (["list.txt", "--out", "out", "--shard", "0/4"], "count from 1/4 to 4/4"),
        (["list.txt", "--out", "out", "--shard", "5/4"], "count from 1/4 to 4/4"),
        (["list.txt", "--out", "out", "--shard", "4"], "must be I/N"),
        (["a.png", "--out", "out", "--shard", "1/4"], "--shard is for manifests"),
        (["list.txt", "--out", "list.txt"], "Not a directory; choose another --out"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message, photos, stub, capsys):
    assert predict(*arguments) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert not Path("out").exists()


def test_a_wrong_folder_is_noticed(photos, stub, monkeypatch, caplog):
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert predict("../list.txt", "--out", "../out") == 0
    assert "none of its first 6 paths exists, e.g. a.png; relative paths start in" in caplog.text


def test_without_locks_processes_divide_the_shards(photos, stub, monkeypatch, caplog):
    monkeypatch.setattr(ledger, "fcntl", None)
    one = job(Path("list.txt"), Path("out"), rows_per_shard=1, workers=2)
    running.work(one, 0, print)
    assert [json.loads(line)["shard"] for line in Path("out/_ledger.jsonl").read_text().splitlines()[1:]] == [0, 2, 4]
    running.work(one, 1, print)
    assert [row["row"] for row in read_rows(Path("out"))] == list(range(6))
    assert "this file system has no file locks" in caplog.text


@pytest.mark.parametrize(
    ("gpus", "local_rank", "workers", "devices"),
    [
        (0, 0, 2, [None, None]),
        (1, 0, 2, [None, None]),
        (4, 0, 2, ["cuda:0", "cuda:1"]),
        (2, 1, 2, ["cuda:0", "cuda:1"]),
    ],
)
def test_processes_use_the_gpus_in_turns(gpus, local_rank, workers, devices, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert [running._device(number, workers) for number in range(workers)] == devices


def test_a_full_disk_ends_the_run_in_one_line(photos, stub, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert predict("list.txt", "--out", "out") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in error


def test_one_process_works_once_in_a_folder(photos):
    header = {**job(Path("list.txt"), Path("out"), rows_per_shard=2).header, "model": {"name": "a", "sha256": "b"}}
    first = ledger.Ledger(Path("out"), header)
    with pytest.raises(ConfigError, match=r"this process already predicts to .*/out"):
        ledger.Ledger(Path("../" + Path.cwd().name + "/out"), header)
    first.close()
    ledger.Ledger(Path("out"), header).close()


def test_nothing_imports_pytorch_before_a_process_works(photos):
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from tests.inference.manifest.stub import job;"
        "from focalnet.inference import predict_manifest;"
        "job(Path('list.txt'), Path('out'), rows_per_shard=2); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
