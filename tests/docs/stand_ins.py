"""What a reader has and a test does not: images, weights of a run, and published weights, which need a network."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet

from focalnet import registry, weights, zoo
from focalnet.card import ModelCard, Preprocessing
from tests.docs.pages import ROOT
from tests.models import small

IMAGE = ROOT / "docs/images/cat.jpg"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SHAPE = {"embed_dim": 8, "depths": (1, 1, 6, 2), "focal_levels": (2,) * 4, "focal_windows": (3,) * 4}
NAMES = ("cat", "dog", "road")


def network(kind: str) -> Any:
    """A narrow network with random weights, for small images."""
    torch.manual_seed(0)
    configs = {
        "classifier": partial(registry.configure, "focalnet_tiny_srf", num_classes=3, **SHAPE),
        "detection": partial(small.config, "mask_rcnn", max_per_image=2),
        "segmentation": small.upernet,
        "panoptic": small.mask2former,
    }
    model: Any = configs[kind]().build().eval()
    preprocessing = Preprocessing(image_size=128, max_size=None if kind == "classifier" else 192)
    model.card = ModelCard(name=kind, class_names=NAMES, preprocessing=preprocessing)
    return model


def write_inputs(text: str, folder: Path) -> None:
    """Makes the images, folders of images and weights files that code or a command names and that do not exist."""
    for name in re.findall(r"[\w./*-]+", text):
        path = folder / name.replace("*", "0")
        if path.exists() or (path.is_absolute() and folder not in path.parents):
            continue
        if path.suffix in IMAGE_SUFFIXES and path.stem != "":
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(IMAGE, path) if path.suffix == ".jpg" else PIL.Image.open(IMAGE).save(path)
        elif name.endswith("/") and re.fullmatch(r"(photos|images|more)/", name):
            path.mkdir(parents=True, exist_ok=True)
            shutil.copy(IMAGE, path / "one.jpg")
        elif name.startswith("runs/") and path.name == "model.safetensors":
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = next((kind for kind in ("panoptic", "detection", "segmentation") if kind in name), "classifier")
            weights.save(network(kind), path)
        elif path.suffix == ".mp4":
            write_video(path)
        elif path.name in ("list.txt", "list.parquet", "0.tar"):
            write_manifest(path)
        elif path.suffix in (".pth", ".safetensors") and path.parent == folder:
            weights.save(network("classifier"), path)


def write_manifest(path: Path) -> None:
    """A list of one image, or a tar file with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        path.write_text(f"{IMAGE}\n")
    elif path.suffix == ".parquet":
        parquet.write_table(arrow.table({"id": [1], "file": [str(IMAGE)]}), path)
    else:
        with tarfile.open(path, "w") as archive:
            archive.add(IMAGE, "cat.jpg")


def write_video(path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for shade in (50, 100):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()


def patch_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights become random ones, and base and large networks tiny ones, which are built faster."""
    load, create = zoo.load, zoo.create_model

    def smaller(name: str, **options: Any) -> Any:
        return create(re.sub("_(base|large|xlarge|huge)_", "_tiny_", name), **options)

    def stand_in(name: Any, **options: Any) -> Any:
        hub = str(name).startswith(("owner/", "hf-hub:"))
        entry = weights.entries().get("focalnet_tiny_srf.ms_in1k" if hub else str(name))
        if entry is None or entry.embedded is not None:
            return load(name, **options)
        model = smaller(entry.architecture, **options).eval()
        preprocessing = dataclasses.replace(entry.preprocessing, image_size=64)
        model.card = dataclasses.replace(entry.card("a stand-in"), preprocessing=preprocessing)
        return model

    monkeypatch.setattr(zoo, "load", stand_in)
    monkeypatch.setattr(zoo, "create_model", smaller)
