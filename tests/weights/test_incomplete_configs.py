"""Configurations of mmdet and mmseg with a part missing: each error names it, whichever it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from focalnet.errors import ConfigError
from focalnet.models.atss import ATSSConfig
from focalnet.models.base import ModelConfig
from focalnet.models.dino import DINOConfig
from focalnet.models.mask2former import Mask2FormerConfig
from focalnet.models.rcnn import CascadeRCNNConfig, MaskRCNNConfig
from focalnet.models.sparse_rcnn import SparseRCNNConfig
from focalnet.models.upernet import UPerNetConfig
from tests.parity.golden import Case, cases

CONFIGS: dict[str, type[ModelConfig]] = {
    "ATSS": ATSSConfig,
    "CascadeRCNN": CascadeRCNNConfig,
    "DINO": DINOConfig,
    "EncoderDecoder": UPerNetConfig,
    "Mask2Former": Mask2FormerConfig,
    "MaskRCNN": MaskRCNNConfig,
    "SparseRCNN": SparseRCNNConfig,
}


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if not isinstance(key, int):
            yield (*above, key)
        yield from paths(inner, (*above, key))


@pytest.mark.parametrize("gone", ["missing", None])
@cases("openmmlab/*.json")
def test_a_missing_part_is_named(case: Case, gone: str | None) -> None:
    whole = case.facts.get("config", {})
    if not isinstance(whole, dict) or whole.get("type") not in CONFIGS:
        pytest.skip("not a configuration of a model")
    errors = []
    for *above, key in paths(whole):
        broken = copy.deepcopy(whole)
        part = broken
        for step in above:
            part = part[step]
        if gone is None:
            if not isinstance(part[key], dict):
                continue  # as `train_cfg=None` in a configuration for testing; other values have a type
            part[key] = None
        else:
            del part[key]
        try:
            CONFIGS[whole["type"]].from_official(broken)
        except ConfigError as error:
            errors.append(str(error))
    assert len(errors) > 5
    assert all(": " in error and "\n" not in error for error in errors)


@pytest.mark.parametrize("extractor", ["bbox_roi_extractor", "mask_roi_extractor"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finest_scale": 112}, "finest_scale=112 is not supported with a finest stride of 4, only 56"),
        ({"featmap_strides": [8, 16, 32, 64]}, r"featmap_strides \[8, 16, 32, 64\] are not the pyramid's, from 4"),
        ({"type": "GenericRoIExtractor"}, 'type "GenericRoIExtractor" is not supported'),
        ({"roi_layer": {"type": "RoIPool", "output_size": 7}}, 'type "RoIPool" is not supported'),
        ({"roi_layer": {"output_size": 9}}, "output_size=9 is not supported"),
        ({"roi_layer": {"sampling_ratio": 3}}, "sampling_ratio=3 is not supported"),
        ({"roi_layer": {"aligned": False}}, "aligned=False is not supported, only True"),
    ],
)
@cases("openmmlab/*rcnn*.json")
def test_other_ways_to_pool_regions_are_refused(case: Case, changes: dict[str, Any], says: str, extractor: str) -> None:
    broken = copy.deepcopy(case.facts["config"])
    if extractor not in broken["roi_head"]:
        pytest.skip(f"{case.path.stem}: a detector without masks has no {extractor}")
    part = broken["roi_head"][extractor]
    for option, value in changes.items():
        part[option] = {**part[option], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=says):
        CONFIGS[broken["type"]].from_official(broken)


@cases("openmmlab/mask_rcnn_*.json")
def test_masks_of_another_threshold_are_refused(case: Case) -> None:
    broken = copy.deepcopy(case.facts["config"])
    broken["test_cfg"]["rcnn"]["mask_thr_binary"] = 0.3
    with pytest.raises(ConfigError, match=r"mask_thr_binary=0.3 is not supported, only 0.5"):
        CONFIGS[broken["type"]].from_official(broken)
