"""What ``focalnet predict`` has finished is kept: whatever the names are, the disk does, or an image is."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from focalnet import results, zoo
from focalnet.cli.main import main
from focalnet.cli.results import keep_earlier
from tests.attacks.test_kills import network

SHORT = [b"cat.png", b"dog.png"]
NAMES = [
    b"\xff\xfe.png",  # no UTF-8
    b"n\xe4chste.png",  # Latin-1
    b"x" * 250 + b".png",
    b"x" * 250 + b".jpg",
    "字".encode() * 83 + b".png",  # 249 bytes
    "é.png".encode(),
    "e\N{COMBINING ACUTE ACCENT}.png".encode(),
    b"two\nlines.png",
    b"\x1b[31mred.png",
    b"a.png",
    b"a.jpg",
    b"A.png",
    b"a-2.png",
    b"a-prediction.png",
    b"a.labels.png",
    b" .png",
    b"-.png",
    b"%s{}.png",
    b"'\"\\.png",
]


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    model = network("classification")
    monkeypatch.setattr(zoo, "load", lambda name: model)


def images(folder: Path, names: list[bytes]) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (40, 32), (10 * i, 0, 255 - 10 * i)).save(folder / "image.png")
        os.rename(folder / "image.png", os.path.join(os.fsencode(folder), name))
    return folder


def predict(folder: Path, out: Path, *options: str) -> int:
    paths = [str(path) for path in sorted(folder.iterdir())]
    return main(["predict", *paths, "--model", "toy", "--out", str(out), "--device", "cpu", *options])


def entries(out: Path) -> list[dict[str, object]]:
    content = json.loads((out / "predictions.json").read_bytes().decode())  # JSON is UTF-8
    return list(content["predictions"])


def test_every_name_of_a_file(tmp_path, attacks):
    folder, out = images(tmp_path / "images", NAMES), tmp_path / "out"
    assert predict(folder, out, "--batch-size", "4") == 0
    found = {os.fsencode(str(entry["path"])): str(entry["picture"]) for entry in entries(out)}
    assert sorted(found) == sorted(os.path.join(os.fsencode(folder), name) for name in NAMES)
    assert len(set(found.values())) == len(NAMES)  # no two files in one
    assert all(Path(drawing).is_file() for drawing in found.values())
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["predictions.json", *(Path(drawing).name for drawing in found.values())]
    )
    attacks(len(NAMES))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_escaped(tmp_path, encoding, monkeypatch):
    folder = images(tmp_path / "images", [b"\xff.png", "字.png".encode()])
    shown = tmp_path / "shown"
    with shown.open("w", encoding=encoding) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert predict(folder, tmp_path / "out") == 0
    assert b"\\xff.png" in shown.read_bytes()
    assert b"wrote 2 images" in shown.read_bytes()


def failing_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """The drawing of one image cannot be written."""
    save, calls = results.Classification.save, []

    def saving(self: results.Classification, path: Path) -> Path:
        calls.append(path)
        if len(calls) == number:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(error))
                return save(self, path)
        return save(self, path)

    monkeypatch.setattr(results.Classification, "save", saving)


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_an_error_keeps_what_is_finished(tmp_path, monkeypatch, capsys, attacks):
    folder, out = images(tmp_path / "images", [b"1.png", b"2.png", b"3.png", b"4.png"]), tmp_path / "out"
    failing_at(monkeypatch, 3, FULL)
    assert predict(folder, out) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left" in line
    assert line.endswith(f"{out}/predictions.jsonl keeps the results of the 2 images before it")
    header, *kept = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert header == {"model": "toy"}
    assert [Path(one["prediction"]["path"]).name for one in kept] == ["1.png", "2.png"]
    assert predict(folder, out) == 0  # another run does not write over it
    assert len(entries(out)) == 4
    assert (out / "predictions.1.jsonl").read_text().count("\n") == 3
    assert not (out / "predictions.jsonl").exists()
    attacks(1)


def test_skipping_covers_writing(tmp_path, monkeypatch, capsys, attacks):
    folder, out = images(tmp_path / "images", [b"1.png", b"2.png", b"3.png", b"4.png"]), tmp_path / "out"
    (folder / "0.png").write_bytes(b"<html>")
    failing_at(monkeypatch, 2, FULL)
    assert predict(folder, out, "--on-error", "skip") == 0
    shown = capsys.readouterr()
    skipped = shown.err.splitlines()
    assert [line.partition(":")[0] for line in skipped] == ["skipped", "skipped"]
    assert "0.png" in skipped[0]
    assert "2-prediction.png" in skipped[1]
    assert [Path(str(entry["path"])).name for entry in entries(out)] == ["1.png", "3.png", "4.png"]
    assert "2.png" not in shown.out
    assert not list(out.glob(".*"))
    attacks(2)


def test_an_interruption_keeps_what_is_finished(tmp_path, monkeypatch, attacks):
    folder, out = images(tmp_path / "images", [b"1.png", b"2.png"]), tmp_path / "out"
    failing_at(monkeypatch, 2, KeyboardInterrupt())
    assert predict(folder, out) == 130
    assert (out / "predictions.jsonl").read_text().count("\n") == 2
    attacks(1)


@pytest.mark.parametrize("name", [b"cat-prediction.png", b"cat.labels.png", b"CAT-prediction.png"])
def test_no_image_to_predict_is_written_over(tmp_path, name, capsys):
    folder = images(tmp_path / "images", [b"cat.jpg", name])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code = predict(folder, folder)
    if name.startswith(b"CAT"):
        assert code == 0  # another file here
    else:
        assert code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "is an image to predict, and would be written over" in line
    assert {path: path.read_bytes() for path in before} == before


def test_files_of_ended_runs_are_kept_apart(tmp_path):
    path = tmp_path / "predictions.jsonl"
    for i in range(3):
        path.write_text(str(i))
        keep_earlier(path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "predictions.1.jsonl": "0",
        "predictions.2.jsonl": "1",
        "predictions.3.jsonl": "2",
    }


@pytest.mark.parametrize("broken", [b"", b"RIFF" + bytes(100)])
def test_a_broken_video_loses_no_image(tmp_path, monkeypatch, broken, capsys, attacks):
    pytest.importorskip("cv2", reason="videos need the extra video")
    model = network("detection")
    monkeypatch.setattr(zoo, "load", lambda name: model)
    folder, out = images(tmp_path / "images", SHORT), tmp_path / "out"
    for name in (b"film.avi", b"\xff.avi"):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(broken)
    assert predict(folder, out) == 2
    assert len(entries(out)) == 2
    shutil.rmtree(out)
    capsys.readouterr()
    assert predict(folder, out, "--on-error", "skip") == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["skipped", "skipped"]
    assert len(entries(out)) == 2
    attacks(4)
