"""Our FocalNet as a backbone of transformers: for its UperNet, MaskFormer, Mask2Former and DETR family.

Importing this module registers it: a ``FocalNetDenseConfig`` can then stand as ``backbone_config`` wherever a model
takes its backbone from ``AutoBackbone``. transformers' own FocalNet backbone gives each map after the down-sampling
(strides 8, 16, 32, 32) and without a norm; this one has another name, so that both can be used.
"""

# mypy: disable-error-code="no-untyped-call"
# transformers is only partly typed.

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from focalnet.errors import ConfigError, UnknownName, did_you_mean, require
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.variants import VARIANTS

require("transformers", "dense")

from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin  # noqa: E402
from transformers.modeling_outputs import BackboneOutput  # noqa: E402


class FocalNetDenseConfig(BackboneConfigMixin, PreTrainedConfig):
    """Which FocalNet, and which of its maps.

    Args:
        architecture: one of ``focalnet.list_models()``.
        options: fields of ``FocalNetConfig`` that differ from the architecture's. ``pad_to_stride`` is on unless
            given: dense heads expect maps of ``ceil(size / stride)``.
        out_features: some of ``"stage1"`` (stride 4) to ``"stage4"`` (stride 32); default: all.
        out_indices: the same by number, from 1.

    Raises:
        UnknownName: no such architecture.
        ConfigError: an option that does not exist or cannot work, or the stem asked for as a map.
    """

    model_type = "focalnet_dense"

    architecture: str = "focalnet_tiny_srf"
    options: dict[str, Any] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.shape().depths) + 1))]
        if features is None and indices is None:
            features = self.stage_names[1:]
        self.set_output_features_output_indices(out_features=features, out_indices=indices)
        if "stem" in self.out_features:
            raise ConfigError(f"the stem of a FocalNet gives no map; out_features are {self.stage_names[1:]}")
        super().__post_init__(**kwargs)

    def shape(self) -> FocalNetConfig:
        """The network that this describes, with all its maps."""
        if self.architecture not in VARIANTS:
            near = did_you_mean(self.architecture, VARIANTS)
            raise UnknownName(f'no model "{self.architecture}"{near}; "focalnet models" lists all')
        settings = {"pad_to_stride": True, **VARIANTS[self.architecture].shape, **(self.options or {})}
        return FocalNetConfig.from_dict(settings)


class FocalNetDenseBackbone(BackboneMixin, PreTrainedModel):
    """``focalnet.FocalNet`` behind transformers' backbone interface; the network itself is ``.focalnet``.

    Trained weights: ``backbone.focalnet.load_state_dict(focalnet.load(name, features_only=True).state_dict())``, with
    the same ``out_indices`` on both sides.
    """

    config_class = FocalNetDenseConfig
    base_model_prefix = "focalnet"
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: FocalNetDenseConfig) -> None:
        super().__init__(config)
        wanted = tuple(index - 1 for index in config.out_indices)
        self.focalnet = dataclasses.replace(config.shape(), out_indices=wanted).build()
        self.num_features = [self.focalnet.config.embed_dim, *self.focalnet.config.channels]  # the stem's first
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the network has initialised itself."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BackboneOutput | tuple[tuple[torch.Tensor, ...], ...]:
        maps = tuple(self.focalnet(pixel_values).values())
        hidden_states = maps if output_hidden_states else None
        if return_dict is False:
            return (maps,) if hidden_states is None else (maps, hidden_states)
        return BackboneOutput(feature_maps=maps, hidden_states=hidden_states, attentions=None)


AutoConfig.register(FocalNetDenseConfig.model_type, FocalNetDenseConfig, exist_ok=True)
AutoBackbone.register(FocalNetDenseConfig, FocalNetDenseBackbone, exist_ok=True)
