"""Every path from an image to a network gives the same tensor, and that is the one of the published models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from focalnet import Predictor, explain
from focalnet.card import ModelCard, Preprocessing
from focalnet.data import ClassificationData, DetectionData, PanopticData, SemanticData
from focalnet.data.augment import Augmentation
from focalnet.data.preprocess import covering_size, eval_transform, fitted_size, preprocess, resize
from focalnet.errors import InputError
from focalnet.inference import Views
from tests.data.coco import write_coco
from tests.data.panoptic import write_panoptic
from tests.data.semantic import write_semantic
from tests.inference.small import classifier
from tests.models.small import config, mask2former, upernet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHOLE = Views(tile=512)  # larger than any image here


def picture(width: int = 90, height: int = 70) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width * 4, height * 4), Image.Resampling.BICUBIC)


# --- the published models' way


@pytest.mark.parametrize("size", [(360, 280), (200, 333), (224, 224), (50, 40)])
@pytest.mark.parametrize("image_size", [224, 384])
def test_evaluation_is_the_official_one(image_size: int, size: tuple[int, int]):
    official = T.Compose(
        [
            T.Resize(int(256 / 224 * image_size), interpolation=InterpolationMode.BICUBIC),
            T.CenterCrop(image_size),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )
    image = picture().resize(size)
    ours = eval_transform(Preprocessing(image_size=image_size))(image)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, official(image), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.int16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resizing_is_torchvisions(dtype, channels):
    torch.manual_seed(0)
    for height, width in ((40, 60), (33, 7), (1, 5)):
        rows = torch.randint(256, (channels, height, width)).to(dtype)
        for image in (rows, rows.permute(1, 2, 0).contiguous().permute(2, 0, 1), rows[:, ::2]):
            for size in ((17, 23), (80, 120), tuple(image.shape[1:]), (50, 3)):
                expected = F.resize(image, list(size), antialias=False)
                found = resize(image, size)
                assert found.dtype == dtype
                assert torch.equal(found, expected)


def test_the_resized_side_is_the_official_one_at_every_usual_size():
    for image_size in range(32, 1025, 32):
        how = Preprocessing(image_size=image_size)
        assert covering_size((400, 300), how.crop, how.crop_pct)[1] == int(256 / 224 * image_size)


@pytest.mark.parametrize(("size", "covered"), [((64, 64), (80, 80)), ((30, 90), (40, 120)), ((100, 10), (800, 80))])
def test_rectangles_are_covered_and_their_center_is_cropped(size, covered):
    how = Preprocessing(image_size=(32, 64), crop_pct=0.8)
    assert covering_size(size, how.crop, how.crop_pct) == covered
    image = picture().resize(size[::-1])
    seen = preprocess(image, how)
    assert seen.shape == (3, 32, 64)
    resized = F.resize(image, list(covered), interpolation=InterpolationMode.BICUBIC, antialias=True)
    expected = F.center_crop(T.ToTensor()(resized), [32, 64])
    torch.testing.assert_close(seen, F.normalize(expected, list(MEAN), list(STD)))


@pytest.mark.parametrize("crop", ["resized", "padded", "center"])
def test_training_images_are_rectangles_too(crop):
    transform = Augmentation(crop=crop).build(Preprocessing(image_size=(24, 40)))
    assert {tuple(transform(picture().resize(size)).shape) for size in ((50, 30), (20, 90))} == {(3, 24, 40)}


def test_evaluation_follows_its_preprocessing():
    how = Preprocessing(image_size=32, crop_pct=1.0, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))
    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3))
    torch.testing.assert_close(eval_transform(how)(image), T.ToTensor()(image))


@pytest.mark.parametrize("size", [(360, 280), (200, 333), (53, 40)])
def test_the_way_of_dense_prediction_is_the_official_one(size: tuple[int, int]):
    image = picture().resize(size)
    scale = min(100 / min(size), 160 / max(size))
    expected_size = [int(side * scale + 0.5) for side in (image.height, image.width)]
    resized = F.resize(F.pil_to_tensor(image), expected_size, antialias=False)
    expected = F.normalize(resized.float(), [255 * v for v in MEAN], [255 * v for v in STD])
    ours = preprocess(image, Preprocessing(image_size=100, crop_pct=1.0, max_size=160))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


# --- one tensor, whichever way the image comes


def seen(network: torch.nn.Module) -> list[Tensor]:
    """What the network's backbone is given from now on, image by image."""
    images: list[Tensor] = []
    getattr(network, "backbone", network).register_forward_pre_hook(lambda _, inputs: images.extend(inputs[0]))
    return images


def prepared(task: str, root: Path):
    """A data module, and a network for its task."""
    options = {"image_size": 47, "max_size": 70, "num_workers": 0}
    if task == "classification":
        for number, name in enumerate(("ant", "bee")):
            (root / "val" / name).mkdir(parents=True)
            picture(60 + number, 40).save(root / "val" / name / "a.png")
        data = ClassificationData(root, val_split="val", image_size=31, num_workers=0)
        return data, classifier()
    if task == "semantic":
        return SemanticData(write_semantic(root), **options), upernet().build().eval()
    if task == "panoptic":
        data = PanopticData(write_panoptic(root), **options)
        return data, mask2former(segments="panoptic", num_classes=4, num_things=2).build().eval()
    network = config("mask_rcnn") if task == "detection" else mask2former(segments="instance", num_classes=2)
    return DetectionData(write_coco(root), **options), network.build().eval()


@pytest.mark.parametrize("task", ["classification", "detection", "instance", "semantic", "panoptic"])
def test_evaluation_prediction_tiles_and_explanations_give_a_network_the_same(task: str, tmp_path: Path):
    if task in ("detection", "instance", "panoptic"):
        pytest.importorskip("pycocotools", reason="detection needs the extra dense")
    data, network = prepared(task, tmp_path)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    (height, width), path = batch.sizes[0], batch.paths[0]
    evaluated = batch.images[0, :, :height, :width]
    network.card = ModelCard(name="test", preprocessing=data.preprocessing)
    images = seen(network)
    Predictor(network, "cpu")(path)
    tiled = task not in ("classification", "panoptic")  # these have no tiles
    if tiled:
        Predictor(network, "cpu", views=WHOLE)(path)
    backbone = getattr(network, "backbone", network)
    backbone.card = network.card
    explain(backbone, path)
    assert len(images) == 2 + tiled
    for image in images:
        assert torch.equal(image[:, :height, :width], evaluated)
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()


# --- any channels, any depth


def how(channels: int, max_size: int | None) -> Preprocessing:
    mean, std = (tuple(value + 0.01 * i for i in range(channels)) for value in (0.4, 0.2))
    return Preprocessing(image_size=24, crop_pct=1.0, interpolation="bilinear", mean=mean, std=std, max_size=max_size)


@pytest.mark.parametrize("max_size", [None, 60])
@pytest.mark.parametrize("channels", [1, 5])
def test_values_are_scaled_by_the_range_of_their_type(channels: int, max_size: int | None):
    values = np.random.default_rng(0).integers(0, 256, (channels, 48, 48)).astype(np.uint8)
    wide = torch.from_numpy(values.astype(np.uint16) * 257)  # 65535 is white, as 255 is
    way = how(channels, max_size)
    eight, sixteen = preprocess(torch.from_numpy(values), way), preprocess(wide, way)
    unit = preprocess(torch.from_numpy(values).float() / 255, way)
    assert eight.shape == sixteen.shape == unit.shape == (channels, 24, 24)
    assert eight.dtype == sixteen.dtype == unit.dtype == torch.float32
    torch.testing.assert_close(sixteen, unit)
    assert (eight - unit).abs().max() < 1.01 / 255 / 0.2  # uint8 is rounded after resizing
    white = preprocess(torch.ones(channels, 48, 48), way).mean((1, 2))
    torch.testing.assert_close(white, (1 - torch.tensor(way.mean)) / torch.tensor(way.std))


def test_gray_images_of_16_bits_are_read():
    values = np.full((20, 20), 65535, np.uint16)
    pixels = preprocess(Image.fromarray(values), how(1, 60), (5, 7))
    torch.testing.assert_close(pixels, torch.full((1, 5, 7), 0.6 / 0.2))


@pytest.mark.parametrize("channels", [1, 4])
def test_another_number_of_channels_is_refused(channels: int):
    with pytest.raises(InputError, match=f"has {channels} channels, .* 3"):
        preprocess(torch.zeros(channels, 8, 8), Preprocessing(image_size=4))
    assert fitted_size((8, 8), 4, 9) == (4, 4)
