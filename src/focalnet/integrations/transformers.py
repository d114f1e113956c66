"""Our FocalNet as a backbone for transformers' UperNet, MaskFormer, Mask2Former and DETR family.

Importing this module registers it. A ``FocalNetDenseConfig`` can then be the ``backbone_config`` of any model that
creates its backbone by ``AutoBackbone``. transformers' own FocalNet backbone returns feature maps after downsampling
(strides 8, 16, 32, 32) and without a norm; ours has another name, so both can be used.
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
    """Configuration of the backbone: architecture and returned feature maps.

    Args:
        architecture: one of ``focalnet.list_models()``.
        options: fields of ``FocalNetConfig`` that differ from the architecture's. ``pad_to_stride`` is on by
            default, since dense-prediction heads expect feature maps of ``ceil(size / stride)``.
        out_features: names among ``"stage1"`` (stride 4) to ``"stage4"`` (stride 32); all by default.
        out_indices: the same as stage numbers from 1.

    Raises:
        UnknownName: there is no architecture of this name.
        ConfigError: an option is unknown or invalid, or ``out_features`` contains the stem.
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
            raise ConfigError(
                f"the stem of a FocalNet has no feature map to return; out_features can be {self.stage_names[1:]}"
            )
        super().__post_init__(**kwargs)

    def shape(self) -> FocalNetConfig:
        """The configuration of the FocalNet, with all its feature maps."""
        if self.architecture not in VARIANTS:
            near = did_you_mean(self.architecture, VARIANTS)
            raise UnknownName(f'no model "{self.architecture}"{near}; "focalnet models" lists all')
        settings = {"pad_to_stride": True, **VARIANTS[self.architecture].shape, **(self.options or {})}
        return FocalNetConfig.from_dict(settings)


class FocalNetDenseBackbone(BackboneMixin, PreTrainedModel):
    """``focalnet.FocalNet`` with transformers' backbone interface; the network itself is ``.focalnet``.

    To load trained weights, with the same ``out_indices`` on both sides:
    ``backbone.focalnet.load_state_dict(focalnet.load(name, features_only=True).state_dict())``.
    """

    config_class = FocalNetDenseConfig
    base_model_prefix = "focalnet"
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: FocalNetDenseConfig) -> None:
        super().__init__(config)
        indices = tuple(index - 1 for index in config.out_indices)
        self.focalnet = dataclasses.replace(config.shape(), out_indices=indices).build()
        self.num_features = [self.focalnet.config.embed_dim, *self.focalnet.config.channels]  # the stem's first
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: the network initializes itself."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BackboneOutput | tuple[tuple[torch.Tensor, ...], ...]:
        features = tuple(self.focalnet(pixel_values).values())
        hidden_states = features if output_hidden_states else None
        if return_dict is False:
            return (features,) if hidden_states is None else (features, hidden_states)
        return BackboneOutput(feature_maps=features, hidden_states=hidden_states, attentions=None)


AutoConfig.register(FocalNetDenseConfig.model_type, FocalNetDenseConfig, exist_ok=True)
AutoBackbone.register(FocalNetDenseConfig, FocalNetDenseBackbone, exist_ok=True)
