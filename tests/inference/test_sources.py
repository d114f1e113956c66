"""What people give to a predictor as images: each is read, or refused with what is taken."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from focalnet import Predictor, explain
from focalnet.data.images import find
from focalnet.errors import DataError, ImageError, InputError
from focalnet.inference.sources import read, several
from tests.inference.small import classifier, noise

IMAGE = noise(20, 12)
ARRAY = np.asarray(IMAGE)


def png() -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG")
    return buffer.getvalue()


ONE = {
    "array": ARRAY,
    "array that is not contiguous": np.flip(np.flip(ARRAY, 1), 1),
    "array of floats": ARRAY / 255,
    "array of float32": (ARRAY / 255).astype(np.float32),
    "array of 16 bits": ARRAY.astype(np.uint16) * 257,
    "array of integers": ARRAY.astype(np.int64),
    "array with opacity": np.dstack((ARRAY, np.full_like(ARRAY[:, :, 0], 255))),
    "tensor": torch.from_numpy(ARRAY.copy()).permute(2, 0, 1),
    "tensor of floats": torch.from_numpy(ARRAY / 255).permute(2, 0, 1).requires_grad_(),
    "opened bytes": io.BytesIO(png()),
    "bytearray": bytearray(png()),
    "memoryview": memoryview(png()),
    "image": IMAGE,
}


@pytest.mark.parametrize("kind", ONE)
def test_every_kind_of_one_image_is_read(kind: str) -> None:
    image, path = read(ONE[kind])
    assert (image.mode, path) == ("RGB", None)
    assert np.array_equal(np.asarray(image), ARRAY)


@pytest.mark.parametrize("gray", [ARRAY[..., 0], ARRAY[..., :1], torch.from_numpy(ARRAY[..., 0].copy())])
def test_gray_is_read_as_three_equal_channels(gray: object) -> None:
    assert np.array_equal(np.asarray(read(gray)[0]), ARRAY[..., :1].repeat(3, 2))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "a NoneType is not an image; what is taken is a path, address, folder"),
        (3, "a int is not an image"),
        ({"image": IMAGE}, "a dict is not an image"),
        (ARRAY.transpose(2, 0, 1), r"shape \(3, 12, 20\) is not an image.*channels last"),
        (torch.zeros(12, 20, 3), r"shape \(12, 20, 3\) is not an image.*channels first"),
        (np.zeros((0, 5, 3), np.uint8), "is not an image"),
        (np.zeros(5), "is not an image"),
        (np.ones((4, 4, 3)) * 2, "values from 2 to 2: give 0 to 1"),
        (np.full((4, 4, 3), np.nan), "give 0 to 1"),
        (torch.randn(3, 8, 8), "neither normalized"),
        (np.full((4, 4, 3), 300), "int64 with values from 300 to 300"),
        (np.zeros((4, 4), bool), "of bool"),
        (np.array([["a"]]), "is not an image"),
        (io.StringIO("x"), "binary mode"),
        ([None], "a NoneType is not an image"),
        (torch.zeros(3, 8, 8, device="meta"), r"a tensor without plain values \(torch.strided, meta\)"),
        (torch.zeros(3, 8, 8).to_sparse(), "a tensor without plain values"),
        (np.ma.masked_array(ARRAY, mask=True), r"a masked array is not an image: fill it"),
    ],
)
def test_anything_else_is_refused_with_what_is_taken(source: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Predictor(classifier())(source)  # type: ignore[call-overload]


def write(folder: Path) -> Path:
    for name in ("b.png", "a.png", "more/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        IMAGE.save(folder / name)
    return folder


def test_several_images_give_a_list(tmp_path: Path) -> None:
    write(tmp_path)
    predictor = Predictor(classifier())
    expected = predictor(IMAGE).scores
    batch = np.stack([ARRAY, ARRAY])
    for source, count in (
        (tmp_path, 3),
        (str(tmp_path), 3),
        (f"{tmp_path}/*.png", 2),
        ((image for image in (IMAGE, ARRAY)), 2),
        (batch, 2),
        (torch.from_numpy(batch).permute(0, 3, 1, 2), 2),
        ((IMAGE, png(), ARRAY), 3),
    ):
        results = predictor(source)
        assert len(results) == count
        assert all(result.scores == pytest.approx(expected) for result in results)
    assert [result.path for result in predictor.stream(str(tmp_path / "*.png"))] == [
        str(tmp_path / name) for name in ("a.png", "b.png")
    ]
    with pytest.raises(DataError, match="no images there"):
        predictor(f"{tmp_path}/*.tif")
    with pytest.raises(ImageError, match=r"nowhere\.png: cannot be read"):
        predictor("nowhere.png")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "a[1].png")
    assert Predictor(classifier())(tmp_path / "a[1].png").path == str(tmp_path / "a[1].png")


def test_the_frames_of_a_video_are_images(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    from focalnet.inference.video import write_video

    video = write_video([noise(32, 32, seed=i) for i in range(3)], tmp_path / "x.mp4", 5.0)
    assert len(Predictor(classifier())(video)) == 3


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/a%20b/x.png?y=1"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(png() if found else b"")

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_addresses_are_fetched_and_stay_as_they_were_written(server: str) -> None:
    predictor = Predictor(classifier())
    assert predictor(f"{server}/a b/x.png?y=1").path == f"{server}/a b/x.png?y=1"
    with pytest.raises(ImageError, match=rf"^{server}/nothing: cannot be fetched \(.*404.*; download it"):
        predictor(f"{server}/nothing")
    with pytest.raises(DataError, match=rf"^{server}/x\.png: is an address"):
        find([f"{server}/x.png"])


def test_an_explanation_takes_the_same_images() -> None:
    assert explain(classifier(), ARRAY).path is None


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(DataError, match='"" names no file'):
        next(several(""))
