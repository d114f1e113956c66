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
