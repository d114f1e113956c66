"""Videos keep every frame at its size, whatever is drawn on it, or are refused by name."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet import zoo
from focalnet.cli.main import main
from focalnet.errors import FocalNetError, ImageError
from focalnet.inference.video import frame_rate, frames, write_video
from focalnet.results import Detections, PanopticMap, Result, Segment, SemanticMap
from tests.inference.segmenters import Colours, colours

cv2 = pytest.importorskip("cv2", reason="videos need the extra video")


def images(size: tuple[int, int], count: int) -> list[Image.Image]:
    """Frames whose grey says which they are."""
    return [Image.new("RGB", size, (20 * i,) * 3) for i in range(count)]


def sizes(path: Path) -> list[tuple[int, int]]:
    return [one.size for one in frames(path)]


def objects(count: int, size: tuple[int, int], *, masks: bool) -> Detections:
    """So many, all over an image of ``size``, width and height."""
    width, height = size
    left = torch.arange(count) * max(width - 4, 1) / max(count, 1)
    boxes = torch.stack([left, torch.zeros(count), left + 4, torch.full((count,), height / 2)], 1)
    bitmaps = None
    if masks:
        bitmaps = torch.zeros(count, height, width, dtype=torch.bool)
        for bitmap, place in zip(bitmaps, left.long().tolist(), strict=True):
            bitmap[: height // 2, place : place + 4] = True
    return Detections(boxes, torch.linspace(0.9, 0.5, count), torch.arange(count) % 3, masks=bitmaps, size=size[::-1])


@pytest.mark.parametrize("size", [(96, 64), (97, 65), (97, 64), (96, 65), (2, 2), (1, 1), (3, 400), (1701, 31)])
def test_frames_are_read_as_they_were_written(size, tmp_path):
    written = write_video(images(size, 11), tmp_path / "clip.mp4", 10.0)
    found = list(frames(written))
    assert [one.size for one in found] == [size] * 11
    assert frame_rate(written) == 10.0
    greys = [np.asarray(one).mean() for one in found]
    assert greys == pytest.approx([20 * i for i in range(11)], abs=4)


@pytest.mark.parametrize("kind", ["boxes", "masks", "semantic", "panoptic"])
@pytest.mark.parametrize("size", [(96, 64), (97, 65), (8, 5), (1701, 900), (640, 480)])
@pytest.mark.parametrize("count", [0, 1, 19, 20, 300])
def test_what_is_drawn_on_a_frame_keeps_its_size(kind, size, count):
    image, (width, height) = Image.new("L", size), size
    ids = torch.arange(width * height).reshape(height, width) % (count + 1)
    result: Result
    if kind in ("boxes", "masks"):
        found = objects(count if size[0] < 1000 else min(count, 40), size, masks=kind == "masks")
        result = Detections(found.boxes, found.scores, found.labels, masks=found.masks, size=found.size, image=image)
    elif kind == "semantic":
        result = SemanticMap(ids, image=image)
    else:
        segments = [Segment(i, i % 7, i % 2 == 0, 0.9, int((ids == i).sum())) for i in range(1, count + 1)]
        result = PanopticMap(ids.int(), tuple(segments), image=image)
    drawn = result.draw(as_frame=True)
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert image.getextrema() == (0, 0)  # it is drawn on a copy


COUNTS = (0, 5, 18, 19, 20, 21, 40, 19, 3, 25, 0)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("size", [(96, 64), (97, 65), (400, 301)])
def test_as_many_frames_as_before_when_objects_become_a_crowd(size, masks, tmp_path, monkeypatch):
    network, counts = colours("instance"), iter(COUNTS)
    monkeypatch.setattr(zoo, "load", lambda name: network)
    monkeypatch.setattr(Colours, "_result", lambda self, scores, given: objects(next(counts), given[::-1], masks=masks))
    video = write_video(images(size, len(COUNTS)), tmp_path / "clip.mp4", 10.0)
    assert main(["predict", str(video), "--model", "colours", "--out", str(tmp_path / "out")]) == 0
    assert sizes(tmp_path / "out/clip-prediction.mp4") == [size] * len(COUNTS)
    assert next(counts, None) is None


@pytest.mark.parametrize("masks", [True, False])
def test_frames_with_any_number_of_objects_are_listed(masks, tmp_path, monkeypatch):
    counts = (0, 19, 20, 21, 200)
    network, left = colours("instance"), iter(counts)
    monkeypatch.setattr(zoo, "load", lambda name: network)
    monkeypatch.setattr(Colours, "_result", lambda self, scores, given: objects(next(left), given[::-1], masks=masks))
    video = write_video(images((320, 240), len(counts)), tmp_path / "in/more/clip.mp4", 10.0)
    table = tmp_path / "all.csv"
    assert main(["predict", str(video), "--model", "colours", "--out", str(tmp_path), "--table", str(table)]) == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["frame"] for row in rows] == [str(i) for i, count in enumerate(counts) for _ in range(count)]
    assert (rows[0]["path"], rows[0]["time"], rows[0]["score"][:3]) == (str(video), "0.1", "0.8")
    written = json.loads((tmp_path / "clip-prediction.json").read_text())
    assert (written["video"], written["frame_rate"], written["model"]) == (str(video), 10.0, "colours")
    assert [(one["frame"], one["time"], len(one["objects"])) for one in written["frames"]] == [
        (number, number / 10, count) for number, count in enumerate(counts)
    ]
    assert written["frames"][1]["objects"][0].keys() == {"label", "name", "score", "box"}
    assert len(written["categories"]) == 3
    assert sizes(tmp_path / "clip-prediction.mp4") == [(320, 240)] * len(counts)


@pytest.mark.parametrize(("stop", "expected"), [(None, 4), (2, 3)])
def test_a_stream_is_predicted_until_it_ends_or_ctrl_c(stop, expected, tmp_path, monkeypatch, capsys):
    network, number = colours("instance"), iter(range(9))
    monkeypatch.setattr(zoo, "load", lambda name: network)

    def result(self: Colours, scores: torch.Tensor, given: tuple[int, int]) -> Detections:
        if (count := next(number)) == stop:
            signal.raise_signal(signal.SIGINT)  # while a frame is predicted, which is still written
        return objects(count, given[::-1], masks=False)

    monkeypatch.setattr(Colours, "_result", result)
    source = write_video(images((96, 64), 4), tmp_path / "source.mp4", 10.0)
    out = tmp_path / "out"
    assert main(["predict", "--stream", str(source), "--model", "colours", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == ["frame 0", "  no objects"]
    assert printed.out.splitlines()[-1].startswith(f"wrote {expected} frames to {out}/stream-prediction.mp4")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(sizes(out / "stream-prediction.mp4")) == expected
    frames_of = json.loads((out / "stream-prediction.json").read_text())["frames"]
    assert [len(one["objects"]) for one in frames_of] == list(range(expected))
    number = iter(range(9))
    stop = None
    assert main(["predict", "--stream", str(source), "--model", "colours"]) == 0
    assert capsys.readouterr().out.count("frame ") == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--stream", "no/such.mp4"], "no/such.mp4: cannot be opened as a camera or stream"),
        (["--stream", "0", "a.png"], "and not both"),
        ([], "predict takes FILES|FOLDERS|GLOBS, or a camera"),
        (["--stream", "0", "--table", "a.csv"], "--table and --annotations are for images, not"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_streams_that_cannot_be_predicted_are_named(arguments, expected, monkeypatch, capsys):
    network = colours("instance")
    monkeypatch.setattr(zoo, "load", lambda name: network)
    assert main(["predict", *arguments, "--model", "colours"]) == 2
    assert expected in capsys.readouterr().err


def fake_ffmpeg(folder: Path, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ffmpeg").write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n{script}\n')
    (folder / "ffmpeg").chmod(0o755)


COPY = 'while [ "$1" != -i ]; do shift; done; cp "${2#file:}" "$(eval echo \\"\\${$#}\\" | sed s/^file://)"'


def test_the_sound_is_copied_by_ffmpeg_where_it_is_installed(tmp_path, monkeypatch, caplog):
    video = write_video(images((96, 64), 3), tmp_path / "clip.mp4", 10.0)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    fake_ffmpeg(tmp_path / "bin", COPY)
    again = write_video(images((96, 64), 3), tmp_path / "a.mp4", 10.0, sound_of=video)
    (called,) = (tmp_path / "bin/called").read_text().splitlines()
    assert f"-i file:{video} -map 0:v:0 -map 1:a? -c:v copy -c:a copy" in called
    assert len(sizes(again)) == 3
    fake_ffmpeg(tmp_path / "bin", "echo no such codec >&2; exit 1")
    assert len(sizes(write_video(images((96, 64), 3), tmp_path / "b.mp4", 10.0, sound_of=video))) == 3
    assert "its sound could not be copied: no such codec" in caplog.text
    assert len((tmp_path / "bin/called").read_text().splitlines()) == 3  # copied, then encoded, in vain
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert len(sizes(write_video(images((96, 64), 3), tmp_path / "c.mp4", 10.0, sound_of=video))) == 3


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_real_sound_is_kept(tmp_path):
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-c:a", "pcm_s16le"]
    silent = write_video(images((96, 64), 10), tmp_path / "silent.mp4", 10.0)
    source = tmp_path / "loud.mkv"
    ffmpeg = ["ffmpeg", "-v", "error", "-i", str(silent), *tone, "-c:v", "copy", str(source)]
    subprocess.run(ffmpeg, check=True)
    written = write_video(images((96, 64), 10), tmp_path / "out.mp4", 10.0, sound_of=source)
    said = subprocess.run(["ffmpeg", "-i", str(written)], capture_output=True, text=True, check=False).stderr
    assert "Audio: " in said
    assert len(sizes(written)) == 10


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
def test_every_kind_of_result_keeps_size_and_number(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "load", lambda name: colours(kind))
    video = write_video(images((75, 51), 5), tmp_path / "clip.mp4", 7.0)
    assert main(["predict", str(video), "--model", "colours", "--out", str(tmp_path / "out")]) == 0
    assert sizes(tmp_path / "out/clip-prediction.mp4") == [(75, 51)] * 5


@pytest.mark.parametrize("other", [(96, 66), (95, 64), (64, 96)])
def test_a_frame_of_another_size_is_an_error_and_leaves_no_file(other, tmp_path):
    some = [*images((96, 64), 2), *images(other, 1)]
    with pytest.raises(FocalNetError, match=rf"clip\.mp4: frame 3 has {other[0]} x {other[1]} pixels.*96 x 64"):
        write_video(some, tmp_path / "clip.mp4", 10.0)
    assert list(tmp_path.iterdir()) == []


def test_frames_that_are_lost_in_writing_are_told(tmp_path, monkeypatch):
    class Forgetful:
        def __init__(self, *arguments):
            self.writer, self.count = writer(*arguments), 0

        def write(self, one):
            self.count += 1
            if self.count != 3:
                self.writer.write(one)

        def __getattr__(self, name):
            return getattr(self.writer, name)

    writer = cv2.VideoWriter
    monkeypatch.setattr(cv2, "VideoWriter", Forgetful)
    with pytest.raises(FocalNetError, match=r"of 5 frames of 96 x 64 pixels, OpenCV wrote 4"):
        write_video(images((96, 64), 5), tmp_path / "clip.mp4", 10.0)
    assert list(tmp_path.iterdir()) == []


def test_frames_that_are_lost_in_prediction_are_told(tmp_path, monkeypatch, capsys):
    from focalnet import Predictor

    stream = Predictor.stream
    monkeypatch.setattr(zoo, "load", lambda name: colours("semantic"))
    monkeypatch.setattr(Predictor, "stream", lambda self, given, **o: list(stream(self, given, **o))[1:])
    video = write_video(images((96, 64), 5), tmp_path / "clip.mp4", 10.0)
    assert main(["predict", str(video), "--model", "colours", "--out", str(tmp_path / "out")]) == 2
    assert "5 frames were read, and 4 have predictions" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.mp4"))


@pytest.mark.parametrize("rate", [float("nan"), 0.0])
def test_a_video_that_opencv_cannot_make_is_an_error(rate, tmp_path):
    with pytest.raises(FocalNetError, match=r"cannot write .*clip\.mp4"):
        write_video(images((96, 64), 2), tmp_path / "clip.mp4", rate)
    with pytest.raises(FocalNetError, match=r"cannot write .*clip\.mp4"):
        write_video([], tmp_path / "clip.mp4", 10.0)


def test_a_damaged_video_is_told(tmp_path, caplog):
    video = write_video(images((97, 65), 10), tmp_path / "clip.mp4", 10.0)
    list(frames(video))
    assert caplog.text == ""
    damaged = bytearray(video.read_bytes())
    start = damaged.rfind(b"\xff\xd8\xff")  # of the last JPEG
    damaged[start : start + 200] = bytes(200)
    shutil.copy(video, tmp_path / "damaged.mp4")
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    assert len(list(frames(tmp_path / "damaged.mp4"))) == 9
    assert "only 9 frames could be read, of 10" in caplog.text
    (tmp_path / "none.mp4").write_bytes(b"no video")
    with pytest.raises(ImageError, match="none"):
        list(frames(tmp_path / "none.mp4"))


@pytest.mark.parametrize(("times", "warned"), [([0, 100, 200, 300], False), ([40, 140, 900, 1000], True)])
def test_a_variable_frame_rate_is_told(times, warned, tmp_path, monkeypatch, caplog):
    path = write_video(images((64, 48), 4), tmp_path / "film.mp4", 10)

    class Uneven:
        def __init__(self, path: str) -> None:
            self.video, self.count = opened(path), 0

        def read(self):
            self.count += 1
            return self.video.read()

        def get(self, key: int) -> float:
            return times[self.count - 1] if key == cv2.CAP_PROP_POS_MSEC else self.video.get(key)

        def release(self) -> None:
            self.video.release()

    assert len(list(frames(path))) == 4
    assert not caplog.messages
    opened = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Uneven)
    assert len(list(frames(path))) == 4
    assert [line.split(": ")[1] for line in caplog.messages] == ["has a variable frame rate"] * warned
    assert not warned or "up to 0.7 s" in caplog.text
