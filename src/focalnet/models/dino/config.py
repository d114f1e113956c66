"""The settings of DINO: ours, mmdet's, and those of the FocalNet-DINO release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models import openmmlab
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import DetectorConfig

if TYPE_CHECKING:
    from focalnet.models.dino.network import DINO

_DYNAMIC_FROM = 50  # denoising objects; the release takes smaller numbers as the number of groups itself


@dataclass(frozen=True, kw_only=True)
class DINOConfig(DetectorConfig):
    """The settings of DINO; the defaults are those of FocalNet-DINO.

    Loss weights are the paper's: class 1 (2 in the matching), L1 5, GIoU 2.

    Args:
        backbone: its shape. Without ``out_indices`` the ``scales - 1`` coarsest feature maps are used, as published.
        size_divisor: images are padded to a multiple of it when batched. Padding is masked.
        score_threshold: predictions below are not reported.
        max_per_image: the best pairs of query and class are reported, at most so many.
        scales: feature maps that attention looks at; those beyond the backbone's are made by convolutions of stride 2.
        num_queries: objects that can be found in an image.
        channels: of queries and feature maps; a multiple of 4, of ``heads`` and of ``norm_groups``.
        heads: of every attention.
        norm_groups: of the group norms after the projections.
        projection_bias: whether the projections have a bias, as in the release; mmdet's have none.
        points: that deformable attention looks at, for each head and level.
        encoder_layers: of the feature maps.
        decoder_layers: of the queries.
        feedforward_channels: hidden width of the MLPs of both.
        dropout: in attention and MLPs, in training.
        position_temperatures: of the position embedding, for rows and columns.
        position_offset: added to the number of a row or column, which count from 1; -0.5 in detrex.
        shared_class_head: one class head for all decoder layers; encoder proposals have their own.
        shared_box_head: likewise for boxes.
        learned_queries: queries start from learned content (mixed query selection), not from the encoder's features.
        spare_labels: rows of the label embedding beyond the classes.
        denoising_queries: denoised objects, positive and negative, of the image that has most.
        denoising_always_divided: their number is divided by the number of objects, as in mmdet; the release takes
            less than 50 as the number of groups instead.
        label_noise: twice the share of denoised objects that get a random label.
        box_noise: how far denoised boxes are moved, in units of half their size; negative ones up to twice as far.
    """

    size_divisor: int = 1
    score_threshold: float = 0.0
    max_per_image: int = 300
    scales: int = 4
    num_queries: int = 900
    channels: int = 256
    heads: int = 8
    norm_groups: int = 32
    projection_bias: bool = True
    points: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward_channels: int = 2048
    dropout: float = 0.0
    position_temperatures: tuple[float, ...] = (20.0, 20.0)
    position_offset: float = 0.0
    shared_class_head: bool = True
    shared_box_head: bool = True
    learned_queries: bool = True
    spare_labels: int = 0
    denoising_queries: int = 100
    denoising_always_divided: bool = False
    label_noise: float = 0.5
    box_noise: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("scales", "num_queries", "heads", "norm_groups", "points", "encoder_layers", "decoder_layers")
        for name in (*counts, "feedforward_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("spare_labels", "denoising_queries", "label_noise", "box_noise"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if len(self.position_temperatures) != 2:
            raise ConfigError("position_temperatures must be two numbers, for rows and columns")
        if self.channels < 1 or any(self.channels % divisor for divisor in (4, self.heads, self.norm_groups)):
            raise ConfigError(
                f"channels={self.channels} must be a multiple of 4, for sines and cosines of rows and columns, of "
                f"heads={self.heads} and of norm_groups={self.norm_groups}"
            )
        stages = len(self.backbone.depths)
        if self.backbone.out_indices is None and self.scales <= stages:
            coarsest = range(stages + 1 - max(self.scales, 2), stages)
            object.__setattr__(self, "backbone", replace(self.backbone, out_indices=tuple(coarsest)))
        maps = len(self.backbone.out_indices or self.backbone.depths)
        if maps > self.scales:
            raise ConfigError(f"scales={self.scales} are fewer than the backbone's {maps} feature maps: out_indices")

    @property
    def most_denoised(self) -> int:
        """Objects of an image that are denoised: more would be more queries than a single group is meant to have."""
        return max(self.denoising_queries, _DYNAMIC_FROM)

    def denoising_groups(self, objects: int) -> int:
        """How many times the objects of a batch are denoised.

        Args:
            objects: of the image that has most.
        """
        wanted = self.denoising_queries
        if objects == 0:
            return 1
        if wanted < _DYNAMIC_FROM and not self.denoising_always_divided:
            return max(2 * wanted, 1)
        return max(wanted // objects, 1)

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        model = openmmlab.whole(model, "DINO")
        if not (model.get("with_box_refine", True) and model.get("as_two_stage", True)):
            raise ConfigError("model: with_box_refine and as_two_stage must be true")
        neck = openmmlab.expect(model["neck"], "neck", "ChannelMapper")
        head = openmmlab.expect(model["bbox_head"], "bbox_head", "DINOHead")
        encoder, decoder = model["encoder"], model["decoder"]
        if neck.get("kernel_size", 3) != 1 or neck.get("act_cfg") is not None or neck["norm_cfg"]["type"] != "GN":
            raise ConfigError("neck: only convolutions of kernel_size 1 with norm GN and no activation are supported")
        weights = {name: head[f"loss_{name}"]["loss_weight"] for name in ("cls", "bbox", "iou")}
        if weights != {"cls": 1.0, "bbox": 5.0, "iou": 2.0}:
            raise ConfigError(f"bbox_head: loss weights {weights} are not supported, only those of the paper: 1, 5, 2")
        positions = model["positional_encoding"]
        if not positions.get("normalize"):
            raise ConfigError("positional_encoding: only normalize=True is supported")
        attentions = [encoder["layer_cfg"]["self_attn_cfg"], decoder["layer_cfg"]["cross_attn_cfg"]]
        noise = model["dn_cfg"]
        groups = noise["group_cfg"]
        if not groups.get("dynamic", True):
            raise ConfigError("dn_cfg: only group_cfg.dynamic=True is supported")
        return cls(
            backbone=openmmlab.backbone(model),
            num_classes=head["num_classes"],
            max_per_image=model["test_cfg"]["max_per_img"],
            scales=neck["num_outs"],
            num_queries=model["num_queries"],
            channels=neck["out_channels"],
            heads=openmmlab.same([attention.get("num_heads", 8) for attention in attentions], "num_heads"),
            norm_groups=neck["norm_cfg"]["num_groups"],
            projection_bias=neck.get("bias", "auto") is True,
            points=openmmlab.same([attention.get("num_points", 4) for attention in attentions], "num_points"),
            encoder_layers=encoder["num_layers"],
            decoder_layers=decoder["num_layers"],
            feedforward_channels=encoder["layer_cfg"]["ffn_cfg"]["feedforward_channels"],
            dropout=encoder["layer_cfg"]["self_attn_cfg"].get("dropout", 0.1),
            position_temperatures=(positions.get("temperature", 10000),) * 2,
            position_offset=positions.get("offset", 0.0),
            shared_class_head=head.get("share_pred_layer", False),
            shared_box_head=head.get("share_pred_layer", False),
            denoising_queries=groups["num_dn_queries"],
            denoising_always_divided=True,
            label_noise=noise["label_noise_scale"],
            box_noise=noise["box_noise_scale"],
        )

    @classmethod
    def from_release(cls, arguments: Mapping[str, Any], backbone: FocalNetConfig) -> Self:
        """From the arguments of FocalNet-DINO (and IDEA-Research/DINO), which name the backbone only.

        Args:
            arguments: of ``config/DINO/*.py``, or the ``args`` of a checkpoint.
            backbone: its shape.

        Raises:
            ConfigError: an option that this network does not have.
        """
        for name, value in _RELEASED.items():
            if arguments.get(name, value) != value:
                raise ConfigError(f"{name}={arguments[name]} is not supported, only {value}")
        classes = arguments["num_classes"]
        return cls(
            backbone=backbone,
            num_classes=classes,
            max_per_image=arguments["num_select"],
            scales=arguments["num_feature_levels"],
            num_queries=arguments["num_queries"],
            channels=arguments["hidden_dim"],
            heads=arguments["nheads"],
            points=openmmlab.same([arguments["enc_n_points"], arguments["dec_n_points"]], "n_points"),
            encoder_layers=arguments["enc_layers"],
            decoder_layers=arguments["dec_layers"],
            feedforward_channels=arguments["dim_feedforward"],
            dropout=arguments["dropout"],
            position_temperatures=(arguments["pe_temperatureH"], arguments["pe_temperatureW"]),
            shared_class_head=arguments["dec_pred_class_embed_share"],
            shared_box_head=arguments["dec_pred_bbox_embed_share"],
            learned_queries=arguments["embed_init_tgt"],
            spare_labels=arguments["dn_labelbook_size"] + 1 - classes,
            denoising_queries=arguments["dn_number"] if arguments["use_dn"] else 0,
            label_noise=arguments["dn_label_noise_ratio"],
            box_noise=arguments["dn_box_noise_scale"],
        )

    @classmethod
    def options_of_release(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the arguments beside a checkpoint of FocalNet-DINO say and its tensors cannot; any may be missing.

        Args:
            arguments: the ``args`` of the checkpoint, which are not trusted.

        Raises:
            ConfigError: an option that this network does not have, or a value of another type.
        """
        for name in _RELEASED.keys() & arguments.keys() & _SEEN_IN_FORWARD:
            if arguments[name] != _RELEASED[name]:
                raise ConfigError(f"its args: {name}={arguments[name]!r} is not supported, only {_RELEASED[name]!r}")
        options: dict[str, Any] = {}
        for theirs, ours in _OPTION_OF_ARGUMENT.items():
            if theirs in arguments:
                value, wanted = arguments[theirs], type(getattr(cls, ours))
                if isinstance(value, bool) or not isinstance(value, (int, wanted)):
                    raise ConfigError(f"its args: {theirs}={value!r} is not a number")
                options[ours] = wanted(value)
        temperatures = [arguments.get(f"pe_temperature{side}") for side in "HW"]
        if all(isinstance(value, int | float) and value > 0 for value in temperatures):
            options["position_temperatures"] = tuple(map(float, temperatures))  # type: ignore[arg-type]
        if arguments.get("use_dn") is False:
            options["denoising_queries"] = 0
        return options

    def build(self) -> DINO:
        from focalnet.models.dino.network import DINO  # built from this configuration

        return fuse(DINO(self))


_RELEASED: dict[str, Any] = {
    "modelname": "dino",
    "position_embedding": "sine",
    "pre_norm": False,
    "query_dim": 4,
    "num_patterns": 0,
    "unic_layers": 0,
    "use_deformable_box_attn": False,
    "decoder_layer_noise": False,
    "add_channel_attention": False,
    "add_pos_value": False,
    "two_stage_type": "standard",
    "two_stage_pat_embed": 0,
    "two_stage_add_query_num": 0,
    "two_stage_bbox_embed_share": False,
    "two_stage_class_embed_share": False,
    "two_stage_learn_wh": False,
    "two_stage_keep_all_tokens": False,
    "two_stage_default_hw": 0.05,
    "transformer_activation": "relu",
    "masks": False,
    "set_cost_class": 2.0,
    "set_cost_bbox": 5.0,
    "set_cost_giou": 2.0,
    "cls_loss_coef": 1.0,
    "bbox_loss_coef": 5.0,
    "giou_loss_coef": 2.0,
    "interm_loss_coef": 1.0,
    "no_interm_box_loss": False,
    "focal_alpha": 0.25,
    "decoder_sa_type": "sa",
    "matcher_type": "HungarianMatcher",
    "decoder_module_seq": ["sa", "ca", "ffn"],
    "use_detached_boxes_dec_out": False,
}
"""Options of FocalNet-DINO that have one value here, the one of every published configuration."""

_SEEN_IN_FORWARD = {
    *("position_embedding", "pre_norm", "query_dim", "num_patterns", "unic_layers", "use_deformable_box_attn"),
    *("add_channel_attention", "add_pos_value", "two_stage_type", "two_stage_pat_embed", "two_stage_add_query_num"),
    *("two_stage_learn_wh", "transformer_activation", "decoder_sa_type", "decoder_module_seq"),
}
"""Those of them that change what is predicted."""

_OPTION_OF_ARGUMENT = {
    "nheads": "heads",
    "enc_n_points": "points",
    "num_select": "max_per_image",
    "dropout": "dropout",
    "dn_number": "denoising_queries",
    "dn_label_noise_ratio": "label_noise",
    "dn_box_noise_scale": "box_noise",
}
"""Names of the release for fields of ``DINOConfig`` that leave no trace in tensors."""
