"""A training step of a narrow network of every family, with its task, its data module and Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from PIL import Image

from focalnet.data import ClassificationData, DetectionData, PanopticData, SemanticData
from focalnet.data.augment import DetectionAugmentation, PanopticAugmentation, SemanticAugmentation
from focalnet.training import ClassificationTask, DetectionTask, SemanticTask
from focalnet.training.failures import explained
from focalnet.training.tasks.base import Task
from focalnet.training.tasks.panoptic import PanopticTask
from tests.data.coco import write_coco
from tests.data.panoptic import write_panoptic
from tests.data.semantic import write_semantic
from tests.models.small import options_of

DETECTORS = ("mask_rcnn", "cascade_mask_rcnn", "atss", "sparse_rcnn", "dino")
DENSE = (*DETECTORS, "upernet", "mask2former", "mask2former_instance", "mask2former_panoptic")
FAMILIES = ("classifier", *DENSE)
_IMAGES: dict[str, Any] = {"batch_size": 2, "num_workers": 0}
_CROPPED = DetectionAugmentation(short_sides=(60,), crop_prob=0.0)


def write_data(root: Path) -> Path:
    """Writes data for every family, each in its own folder."""
    for part in ("train", "val"):
        for number, name in enumerate(("ant", "bee", "ant", "bee")):
            path = root / f"classes/{part}/{name}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (60 * number, 200, 90)).save(path)
    write_coco(root / "coco")
    write_panoptic(root / "panoptic")
    write_semantic(root / "semantic")
    return root


def data_for(family: str, root: Path, **options: Any) -> Any:
    """A data module with two images per batch."""
    if family == "classifier":
        return ClassificationData(str(root / "classes"), image_size=32, **_IMAGES, **options)
    if family in ("upernet", "mask2former"):
        given = {"augmentation": SemanticAugmentation(crop=(40, 40)), **options}
        return SemanticData(root / "semantic", image_size=48, max_size=64, **_IMAGES, **given)
    if family == "mask2former_panoptic":
        given = {"augmentation": PanopticAugmentation(crop=40), **options}
        return PanopticData(root / "panoptic", image_size=60, max_size=96, **_IMAGES, **given)
    given = {"augmentation": _CROPPED, **options}
    return DetectionData(root / "coco", image_size=60, max_size=96, **_IMAGES, **given)


def task_for(family: str, network: dict[str, Any] | None = None, **options: Any) -> Task:
    """A task for a narrow network; ``network`` has options of the network, ``options`` those of the task."""
    for module in () if family in ("classifier", "upernet") else ("pycocotools", "scipy"):
        pytest.importorskip(module, reason="detection and matching need the extra dense")
    method = "mask2former" if family.startswith("mask2former") else family
    kinds: dict[str, type[Task]] = {
        "classifier": ClassificationTask,
        "upernet": SemanticTask,
        "mask2former": SemanticTask,
        "mask2former_panoptic": PanopticTask,
    }
    architecture = "focalnet_tiny_srf" if family == "classifier" else f"{method}_focalnet_tiny_srf"
    return kinds.get(family, DetectionTask)(
        architecture=architecture, options={**options_of(method), **(network or {})}, **options
    )


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    """A trainer for one batch without validation; options override this."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    short = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    chosen: dict[str, Any] = {**quiet, **short, "accelerator": "cpu", "use_distributed_sampler": False, **options}
    return pl.Trainer(default_root_dir=folder, **chosen)


def step(task: Task, data: Any, folder: Path, **options: Any) -> pl.Trainer:
    """Trains on one batch."""
    with explained():
        training = trainer(folder, **options)
        training.fit(task, data)
    return training
