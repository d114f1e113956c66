"""Our FocalNet as a backbone for transformers' UperNet, MaskFormer, Mask2Former and DETR family.

Importing this module registers it; after ``import focalnet``, the first ``FocalNetDenseConfig`` does. It can be the
``backbone_config`` of any model that creates its backbone by ``AutoBackbone``; so can the mapping
``{"model_type": "focalnet_dense", "architecture": "focalnet_tiny_srf"}``. transformers' own FocalNet backbone returns
feature maps after downsampling (strides 8, 16, 32, 32) and without a norm; ours has another name, so that both can be
used.
"""

# mypy: disable-error-code="no-untyped-call"
# transformers is only partly typed.

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from focalnet.errors import ConfigError
from focalnet.integrations.transformers_config import FocalNetDenseConfig as FocalNetDenseConfig
from focalnet.models.backbone import init_weights
from focalnet.nn import FocalNetBlock

# From the modules that define them: this module may be imported while the package transformers is.
from transformers.backbone_utils import BackboneMixin  # isort: skip
from transformers.modeling_outputs import BackboneOutput  # isort: skip
from transformers.modeling_utils import PreTrainedModel  # isort: skip
from transformers.models.auto.modeling_auto import AutoBackbone  # isort: skip


class FocalNetDenseBackbone(BackboneMixin, PreTrainedModel):
    """``focalnet.FocalNet`` with transformers' backbone interface; the network itself is ``.focalnet``.

    To load trained weights, with the same ``out_indices`` on both sides:
    ``backbone.focalnet.load_state_dict(focalnet.load(name, features_only=True).state_dict())``.
    """

    config_class = FocalNetDenseConfig
    base_model_prefix = "focalnet"
    main_input_name = "pixel_values"
    has_attentions = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["FusedFocalNetBlock"]  # noqa: RUF012  # on several devices a block stays on one

    def __init__(self, config: FocalNetDenseConfig) -> None:
        super().__init__(config)
        shape = config.shape()
        self.focalnet = dataclasses.replace(shape, out_indices=_stages(config)).build()
        self.num_features = [shape.embed_dim, *shape.channels]  # the stem's first
        self.post_init()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations of blocks are recomputed in the backward pass; transformers sets it in whole models."""
        return all(stage.grad_checkpointing for stage in self.focalnet.stages)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.focalnet.set_grad_checkpointing(enable)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial values; in ``from_pretrained``, transformers keeps what it has read, so that this fills the rest."""
        if isinstance(module, FocalNetBlock):
            for gamma in (module.gamma_1, module.gamma_2):
                if gamma is not None:
                    nn.init.constant_(gamma, self.config.shape().layer_scale)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
            module.reset_parameters()
            init_weights(module)

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BackboneOutput | tuple[tuple[torch.Tensor, ...], ...]:
        maps = dict(zip(self.focalnet.out_indices, self.focalnet(pixel_values).values(), strict=True))
        wanted = _stages(self.config)  # which may have been changed since
        if not set(wanted) <= set(maps):
            built = [self.stage_names[i + 1] for i in maps]
            raise ConfigError(
                f"out_features={self.out_features} must be among {built}, which this backbone was built for"
            )
        features = tuple(maps[i] for i in wanted)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = features if output_hidden_states else None
        if not (self.config.return_dict if return_dict is None else return_dict):
            return (features,) if hidden_states is None else (features, hidden_states)
        return BackboneOutput(feature_maps=features, hidden_states=hidden_states, attentions=None)


def _stages(config: Any) -> tuple[int, ...]:
    """Stages counted from 0, of what a configuration returns; before the first stage comes the stem."""
    return tuple(config.stage_names.index(name) - 1 for name in config.out_features)


AutoBackbone.register(FocalNetDenseConfig, FocalNetDenseBackbone, exist_ok=True)
