"""Images that are small as files and large as what becomes of them, in every place where they are prepared."""

from __future__ import annotations

import io
import resource
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from focalnet import create_model, explain, weights
from focalnet.card import LARGEST, ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.data import images
from focalnet.data.augment import Augmentation
from focalnet.data.preprocess import THINNEST, middle, preprocess
from focalnet.errors import ConfigError, ImageError, NonFiniteOutputs
from focalnet.inference import Predictor, Views
from focalnet.models import Classifier
from tests.inference.segmenters import colours
from tests.models.small import METHODS, config, mask2former, upernet

THIN = [(1, 30_000), (30_000, 1), (2, 60_000)]
MOST = 400 << 20  # bytes; the strip of 138 bytes took 8 GB


@contextmanager
def within(most: int) -> Iterator[None]:
    """Fails if the process comes to hold so many bytes more than it ever held."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < most, f"{grown >> 20} MB"


def png(width: int, height: int) -> bytes:
    """A PNG file of that size with one color; a few hundred bytes, whatever its size."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return buffer.getvalue()


CARD = ModelCard(name="x", class_names=("a", "b", "c"), preprocessing=Preprocessing(image_size=32))


def classifier() -> Classifier:
    model = create_model("focalnet_nano", num_classes=3, depths=(1, 1, 1))
    model.card = CARD
    return model.eval()


# --- Strips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize("crop", ["padded", "center", "resized"])
def test_a_strip_is_trained_on(size: tuple[int, int], crop: str, attacks: Callable[[int], None]) -> None:
    attacks(1)
    augment = Augmentation(crop=crop).build(Preprocessing(image_size=224))
    with within(MOST):
        assert augment(images.read(png(*size))).shape == (3, 224, 224)


@pytest.mark.parametrize("size", THIN)
def test_a_strip_is_seen(size: tuple[int, int], tmp_path: Path, attacks: Callable[[int], None]) -> None:
    attacks(4)
    file = png(*size)
    assert len(file) < 700
    with within(MOST):
        for preprocessing in (Preprocessing(), Preprocessing(image_size=800, max_size=1333)):
            prepared = preprocess(images.read(file), preprocessing)
            assert prepared.numel() <= 3 * 1333 * 1333
            tensor = preprocess(torch.zeros(3, size[1], size[0], dtype=torch.uint8), preprocessing)
            assert tensor.shape == prepared.shape
        result = Predictor(classifier())(file)
        assert max(result.draw().size) <= 4096
        explained = explain(classifier(), file)
        assert explained.save(tmp_path / "maps")


@pytest.mark.parametrize("size", THIN[:2])
@pytest.mark.parametrize("views", [Views(), Views(tile=640, flip=True), Views(short_sides=(64, 96))])
def test_a_strip_is_searched(size: tuple[int, int], views: Views, attacks: Callable[[int], None]) -> None:
    attacks(2)
    network = config("mask_rcnn", masks=False).build()
    network.card = ModelCard(
        name="x", class_names=("a", "b", "c"), preprocessing=Preprocessing(image_size=64, max_size=96)
    )
    with within(MOST):
        assert max(Predictor(network, views=views)(png(*size)).draw().size) <= 4096
        assert Predictor(colours(), views=views)(png(*size)).labels.shape == (size[1], size[0])


def test_tiles_are_prepared_one_by_one() -> None:
    """A thousand tiles of 32 pixels, each enlarged to 640: 5 GB at once."""
    network = config("mask_rcnn", masks=False).build()
    network.card = ModelCard(name="x", class_names=("a", "b", "c"))
    predictor = Predictor(network, views=Views(tile=32, overlap=0))
    with within(MOST):
        prepared = predictor._pipeline.prepare(images.read(png(32, 32_000)))
        assert len(prepared) == 1000
        assert prepared[0][1]().shape == (3, 800, 800)


@pytest.mark.parametrize("size", [(10, 10 * THINNEST), (300, 20), (1, THINNEST)])
def test_other_images_are_not_cut(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    assert middle(image) is image


def test_of_a_strip_the_middle_is_seen() -> None:
    strip = Image.new("RGB", (4, 4000), "red")
    strip.paste((0, 0, 255), (0, 1990, 4, 2010))
    seen = preprocess(strip, Preprocessing(image_size=8, crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert seen[2].mean() > 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 10**6},
        {"image_size": 10**30},
        {"crop_pct": 1e-9},
        {"crop_pct": 5e-324},
        {"max_size": 10**9},
        {"image_size": LARGEST, "crop_pct": 0.9},
    ],
)
def test_a_card_that_asks_for_too_large_images_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"more than {LARGEST} pixels a side"):
        Preprocessing(**wrong)


# --- Bombs -----------------------------------------------------------------------------------------------------------


def claimed(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_a_file_that_claims_any_size(size: tuple[int, int], attacks: Callable[[int], None]) -> None:
    attacks(1)
    with within(MOST), pytest.raises(ImageError, match=r"bomb: is (too large|truncated|not an image)"):
        images.read(claimed(*size), "bomb")


# --- Outputs that are no numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [*METHODS, "upernet", "mask2former"])
def test_no_result_is_made_of_outputs_that_are_not_finite(
    method: str, value: float, attacks: Callable[[int], None]
) -> None:
    attacks(1)
    configs = {"upernet": upernet, "mask2former": mask2former}
    network = (configs[method]() if method in configs else config(method)).build()
    names = tuple(f"class {i}" for i in range(network.config.num_classes))
    network.card = ModelCard(name="x", class_names=names, preprocessing=Preprocessing(image_size=64, max_size=96))
    image = Image.new("RGB", (60, 40), "teal")
    assert Predictor(network)(image).to_dict()  # finite, with padding and all
    with torch.no_grad():
        network.backbone.patch_embed.proj.weight.fill_(value)
    with pytest.raises(NonFiniteOutputs, match="NaN or infinite values"):
        Predictor(network)(image)


@pytest.mark.filterwarnings("ignore::focalnet.weights.NonFiniteWeights")
def test_no_class_is_told_by_weights_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = classifier()
    with torch.no_grad():
        network.head.bias[0] = float("nan")
    path = weights.save(network, tmp_path / "x.safetensors")
    (tmp_path / "a.png").write_bytes(png(40, 30))
    for command in ("predict", "explain"):
        before = warnings.showwarning
        try:
            assert main([command, str(tmp_path / "a.png"), "--model", str(path), "--out", str(tmp_path / "out")]) == 2
        finally:
            warnings.showwarning = before
        printed = capsys.readouterr()
        assert "error: the network computes NaN or infinite values" in printed.err
        assert printed.out == ""
