"""Official constructor arguments and YAML files become our config."""

from __future__ import annotations

import pytest
import yaml

from focalnet import ClassifierConfig, FocalNetConfig
from focalnet.errors import ConfigError
from focalnet.models.variants import VARIANTS

# The keys of microsoft/FocalNet configs/focalnet_large_fl4.yaml; its entry point implies the depths.
LARGE_FL4 = """
MODEL:
  TYPE: focalnet_large_fl4
  NUM_CLASSES: 21842
  DROP_PATH_RATE: 0.5
  FOCAL: {EMBED_DIM: 192, FOCAL_LEVELS: [4, 4, 4, 4], FOCAL_WINDOWS: [3, 3, 3, 3], USE_CONV_EMBED: True,
          USE_POSTLN: True, USE_LAYERSCALE: True, NORMALIZE_MODULATOR: True}
"""


def test_yaml() -> None:
    config = ClassifierConfig.from_official(yaml.safe_load(LARGE_FL4))
    assert config.num_classes == 21842
    assert config.backbone == FocalNetConfig(**VARIANTS["focalnet_large_fl4"].shape, drop_path_rate=0.5)


def test_yaml_of_the_isotropic_base_gets_what_its_entry_point_hard_codes() -> None:
    config = FocalNetConfig.from_official({"MODEL": {"NAME": "focalnet_base_iso", "FOCAL": {"EMBED_DIM": 768}}})
    assert (config.post_norm, config.layer_scale, config.depths) == (True, 1e-4, (12,))


def test_defaults_are_the_official_ones() -> None:
    assert FocalNetConfig.from_official({}) == FocalNetConfig(drop_path_rate=0.1)
    dense = FocalNetConfig.from_official({}, source="mmdet")
    assert (dense.focal_windows, dense.drop_path_rate, dense.pad_to_stride) == ((9, 9, 9, 9), 0.2, True)


def test_sources_differ_where_the_official_files_do() -> None:
    arguments = {"use_conv_embed": True, "use_postln": True, "normalize_modulator": True}
    mmdet = FocalNetConfig.from_official(arguments, source="mmdet")
    dino = FocalNetConfig.from_official(arguments, source="dino")
    assert (mmdet.stem_padding, mmdet.post_norm, mmdet.normalize_modulator) == (3, False, False)
    assert (dino.stem_padding, dino.post_norm, dino.normalize_modulator) == (2, True, True)


def test_layer_scale_needs_its_switch() -> None:
    assert FocalNetConfig.from_official({"layerscale_value": 0.5}).layer_scale is None
    assert FocalNetConfig.from_official({"layerscale_value": 0.5, "use_layerscale": True}).layer_scale == 0.5


def test_unknown_argument() -> None:
    with pytest.raises(ConfigError, match='no argument "focal_level"; did you mean "focal_levels"'):
        FocalNetConfig.from_official({"focal_level": [2]})
    with pytest.raises(ConfigError, match="no option"):
        FocalNetConfig.from_dict({"depth": (1,)})
