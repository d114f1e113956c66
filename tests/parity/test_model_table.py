"""Parameters and multiply-accumulates of every published architecture, against the official code's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from focalnet import create_model
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.variants import VARIANTS
from focalnet.zoo import cost
from tests.parity.golden import GOLDEN

TABLE_FILE = GOLDEN / "model_table.json"
TABLE: dict[str, Any] = json.loads(TABLE_FILE.read_text())["models"] if TABLE_FILE.is_file() else {}
pytestmark = pytest.mark.skipif(not TABLE, reason=f"no {TABLE_FILE}")
HEADS = [(name, int(key.rsplit("_", 1)[1])) for name, row in TABLE.items() for key in row if "num_classes_" in key]


@pytest.mark.parametrize(("name", "classes"), HEADS)
def test_cost(name: str, classes: int) -> None:
    row = TABLE[name][f"num_classes_{classes}"]
    for size in (224, 384):
        counted = cost(name, num_classes=classes, image_size=size)
        assert counted.params == row["params"]
        assert counted.macs == pytest.approx(row[str(size)]["hook_macs_conv_linear"], rel=1e-3)


@pytest.mark.parametrize("name", TABLE)
def test_shape_equals_the_official_config(name: str) -> None:
    config = TABLE[name]["config"]
    official = {k: v for k, v in config.items() if k not in ("stage_dims", "kernel_sizes_per_stage", "drop_path_rate")}
    ours = FocalNetConfig.from_dict(VARIANTS[name].shape)
    assert FocalNetConfig.from_official({**official, "drop_path_rate": 0.0}) == ours
    assert list(ours.channels) == config["stage_dims"]


@pytest.mark.parametrize("name", TABLE)
def test_drop_path_rises_linearly(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, drop_path_rate=TABLE[name]["config"]["drop_path_rate"])
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx(TABLE[name]["drop_path_rate_per_block"])
    assert len(list(model.parameters())) == TABLE[name]["num_parameter_tensors"]
