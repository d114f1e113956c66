"""FocalNet, the backbone of every task (Yang et al., NeurIPS 2022, arXiv 2203.11926).

``FocalNetBase`` holds the stem and the stages. ``FocalNet`` returns their feature maps, each with its own norm, for
dense-prediction heads; the classifier (``models/classifier``) pools the last feature map. Parameters have the names
of the official classification release, so its state dicts load unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

import focalnet
from focalnet.card import ModelCard
from focalnet.errors import ConfigError, ExportError, InputError
from focalnet.kernels.fuse import fuse
from focalnet.models import official_arguments
from focalnet.models.plain import check_types, from_plain
from focalnet.nn import FocalModulation, FocalNetBlock, PatchEmbed
from focalnet.nn.feature_info import FeatureInfo


@dataclass(frozen=True, kw_only=True)
class FocalNetConfig:
    """Architecture of a FocalNet. ``.build()`` builds the backbone; ``dataclasses.asdict`` gives what files store.

    Args:
        in_chans: channels of the input image.
        embed_dim: channels of the first stage; each later stage doubles them.
        depths: blocks per stage; a single stage makes an isotropic (ViT-like) network.
        focal_levels: focal levels L per stage; surplus values are ignored, as in the official code.
        focal_windows: kernel size of the first focal level per stage, odd; level l has ``window + 2 l``. Surplus
            values are ignored.
        patch_size: stride of the stem.
        mlp_ratio: hidden width of the MLPs, as a multiple of the stage's channels.
        overlapped: overlapping patch embedding: kernel size ``2 * patch_size - 1`` in the stem, 3 between stages.
        stem_padding: zero padding of an overlapped stem: 2 in the published models, 3 in mmdet's.
        patch_norm: layer norm after the stem.
        post_norm: layer norms after modulation and MLP instead of before.
        post_norm_in_modulation: layer norm on the modulated query.
        layer_scale: initial value of the learned per-channel scale of each residual branch; None for none.
        normalize_modulator: divide the aggregated context by L + 1.
        drop_rate: dropout after stem, modulation and MLP.
        drop_path_rate: stochastic depth rate of the last block; it rises linearly from 0 at the first.
        pad_to_stride: zero-pad right and bottom to a multiple of each stride (dense prediction) instead of dropping the
            remainder.
        out_indices: stages whose feature maps are returned; None for all.
        out_norms: apply a layer norm to each returned feature map, as for the dense prediction tasks of the paper.

    Raises:
        ConfigError: a value is invalid.
    """

    in_chans: int = 3
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    focal_levels: tuple[int, ...] = (2, 2, 2, 2)
    focal_windows: tuple[int, ...] = (3, 3, 3, 3)
    patch_size: int = 4
    mlp_ratio: float = 4.0
    overlapped: bool = False
    stem_padding: int = 2
    patch_norm: bool = True
    post_norm: bool = False
    post_norm_in_modulation: bool = False
    layer_scale: float | None = None
    normalize_modulator: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    pad_to_stride: bool = False
    out_indices: tuple[int, ...] | None = None
    out_norms: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        stages = len(self.depths)
        for name in ("depths", "focal_levels", "focal_windows", "out_indices"):
            value = getattr(self, name)
            if value is not None:  # lists come from YAML and JSON
                object.__setattr__(self, name, tuple(value))
        for name in ("focal_levels", "focal_windows"):
            if len(getattr(self, name)) < stages:
                raise ConfigError(f"{name}={getattr(self, name)} must have one value for each of the {stages} stages")
            object.__setattr__(self, name, getattr(self, name)[:stages])
        for name, least in (("in_chans", 1), ("embed_dim", 1), ("patch_size", 1), ("stem_padding", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")
        if stages == 0 or min(self.depths) < 1:
            raise ConfigError(f"depths={self.depths} must name at least one stage, each with at least one block")
        for name in ("drop_rate", "drop_path_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name}={getattr(self, name)} must be in [0, 1]")
        for index in self.out_indices or ():
            if not 0 <= index < stages:
                raise ConfigError(f"out_indices={self.out_indices} must be within 0..{stages - 1}")
        if set(self.out_indices or ()) == set(range(stages)):  # equal architectures compare equal
            object.__setattr__(self, "out_indices", None)

    @classmethod
    def from_official(cls, mapping: Mapping[str, Any], *, source: official_arguments.Source = "classification") -> Self:
        """Builds the config from the official constructor's arguments, or from an official YAML's content.

        Args:
            mapping: constructor arguments (``{"embed_dim": 96, "use_postln": True, ...}``), or a parsed
                classification YAML (``{"MODEL": {"FOCAL": {...}}}``). Arguments that do not concern
                the backbone here (``img_size``, ``use_checkpoint``, ``num_classes``, ...) are ignored.
            source: which official file the arguments are for. The files differ in defaults and in the padding of the
                stem and of the input; mmdet's ignores the post-norm options.

        Raises:
            ConfigError: the official code has no such argument.
        """
        return cls.from_dict(official_arguments.translate(mapping, source))

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``; an unknown key or a value of another type is a ``ConfigError``."""
        return from_plain(cls, mapping)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each stage's feature map, in pixels of the image."""
        return tuple(self.patch_size * 2**i for i in range(len(self.depths)))

    def build(self) -> FocalNet:
        """Builds the backbone with random weights and fused operations; ``FocalNet(config)`` builds it unfused."""
        return fuse(FocalNet(self))


class Stage(nn.Module):
    """The blocks at one resolution, and the downsampling after them (None in the last stage)."""

    def __init__(self, blocks: Iterable[FocalNetBlock], downsample: PatchEmbed | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.grad_checkpointing = False

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        """Runs the blocks. The backbone runs the downsampling, since heads use the feature map before it."""
        x = x_BHWC
        for block in self.blocks:
            recompute = self.grad_checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


class Shareable:
    """What every network has to be saved in a folder and on the Hugging Face Hub."""

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the network with a README to the Hugging Face Hub; see ``focalnet.push_to_hub``."""
        return focalnet.push_to_hub(cast(Any, self), repo_id, **options)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes what ``push_to_hub`` uploads to a folder, which ``focalnet.load`` reads."""
        return focalnet.save_pretrained(cast(Any, self), folder)

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by ``torch.jit.script``, which fails on type annotations otherwise."""
        raise ExportError(
            "torch.jit.script cannot compile the source of this network: use torch.jit.trace(model, images), "
            "torch.export.export or focalnet.export"
        )


class FocalNetBase(Shareable, nn.Module):
    """Stem and stages: the base class of ``FocalNet`` and ``Classifier``.

    Implements timm's protocol: ``set_grad_checkpointing``, ``group_matcher`` (for layer-wise learning rates),
    ``no_weight_decay`` and ``forward_intermediates``.
    """

    def __init__(self, shape: FocalNetConfig) -> None:
        super().__init__()
        self.shape = shape
        self.card: ModelCard | None = None  # set by the code that loads or trains the weights
        self.frozen_stages: int | None = None
        self.patch_embed = _patch_embed(shape, stage=None)
        self.pos_drop = nn.Dropout(shape.drop_rate)
        self.layers = nn.ModuleList(_stages(shape))
        self.feature_info = tuple(
            FeatureInfo(f"s{stride}", channels, stride)
            for channels, stride in zip(shape.channels, shape.strides, strict=True)
        )

    @property
    def stages(self) -> list[Stage]:
        """The stages. The attribute ``layers`` has the name used in official state dicts."""
        return cast("list[Stage]", list(self.layers))

    def forward_stages(self, images_BCHW: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields the feature map ``(B, H, W, C)`` of each stage, before any norm.

        Raises:
            InputError: the images have a wrong number of channels or are too small, or the weights are on meta.
        """
        self._check(images_BCHW)
        x = self.pos_drop(self.patch_embed(images_BCHW))
        for stage in self.stages:
            x = stage(x)
            yield x
            if stage.downsample is not None:
                x = stage.downsample(x.permute(0, 3, 1, 2))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The feature maps of stages (timm's protocol).

        Args:
            x: images ``(B, C, H, W)``.
            indices: stages, from 0 or from the end; a number for the last so many; None for all.
            norm: apply the norm of a stage, where it has one: the last of a classifier, the returned of a backbone.
            stop_early: do not run stages after the last of ``indices``.
            output_fmt: ``"NCHW"`` or ``"NHWC"``, of everything that is returned.
            intermediates_only: return the list alone.

        Returns:
            The last feature map that was computed, with its norm, and the list of those of ``indices``.

        Raises:
            ConfigError: there is no such stage or format.
        """
        stages = len(self.layers)
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f'output_fmt="{output_fmt}" must be NCHW or NHWC')
        if isinstance(indices, int):
            wanted = list(range(stages - indices, stages))
        else:
            wanted = [i + stages if i < 0 else i for i in (range(stages) if indices is None else indices)]
        if not wanted or not all(0 <= i < stages for i in wanted):
            raise ConfigError(f"indices={indices} must be among the {stages} stages of this FocalNet")

        def finished(feature_map: torch.Tensor) -> torch.Tensor:
            return feature_map if output_fmt == "NHWC" else feature_map.permute(0, 3, 1, 2)

        intermediates = []
        for i, last in enumerate(self.forward_stages(x)):
            if i in wanted:
                intermediates.append(finished(self._norm_of(i)(last) if norm else last))
            if stop_early and i == max(wanted):
                break
        return intermediates if intermediates_only else (finished(self._norm_of(i)(last)), intermediates)

    def _norm_of(self, stage: int) -> nn.Module:
        """The norm of a stage's feature map; an identity if it has none."""
        norm = self._modules.get(f"norm{stage}")
        if norm is None and stage == len(self.layers) - 1:
            norm = self._modules.get("norm")
        return nn.Identity() if norm is None else norm

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of every convolution and matrix product for one image of this size in pixels.

        Norms, biases, activations and elementwise products are not counted, as is common practice.

        Raises:
            ConfigError: layers were replaced, so that they are not those of the configuration.
            InputError: the size is not a positive number of whole pixels.
        """
        for side in (height, width):
            if not isinstance(side, Integral) or side < 1:
                raise InputError(f"an image of {height} x {width} pixels has no cost: give whole numbers, 1 or more")
        embeds = [self.patch_embed, *(stage.downsample for stage in self.stages if stage.downsample is not None)]
        config, channels_in, total, weights = self.shape, self.shape.in_chans, 0, 0
        for i, embed in enumerate(embeds if all(isinstance(embed, PatchEmbed) for embed in embeds) else ()):
            height, width = embed.map_size(height, width)
            dim, levels, window = config.channels[i], config.focal_levels[i], config.focal_windows[i]
            modulation = dim * (2 * dim + levels + 1) + 2 * dim**2  # f, h and proj
            modulation += dim * sum((window + 2 * level) ** 2 for level in range(levels))
            block = modulation + 2 * dim * int(dim * config.mlp_ratio)
            each = channels_in * dim * embed.kernel**2 + config.depths[i] * block
            total, weights, channels_in = total + height * width * each, weights + each, dim
        layers = [*self.patch_embed.parameters(), *(p for stage in self.stages for p in stage.parameters())]
        if weights != sum(p.numel() for p in layers if p.ndim > 1):  # each is used once at every position
            raise ConfigError("layers of this model were replaced, so its cost does not follow from its configuration")
        return total

    def freeze(self, stages: int) -> Self:
        """Freezes the stem and the first ``stages`` stages: no gradients, no drop path, also after ``.train()``.

        Args:
            stages: 0 freezes the stem alone. The norms of the returned feature maps stay trainable, as in the official
                detectors.
        """
        if not 0 <= stages <= len(self.layers):
            raise ConfigError(f"cannot freeze {stages} stages: this network has {len(self.layers)}")
        self.frozen_stages = stages
        for module in self._frozen():
            module.requires_grad_(requires_grad=False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Saves memory at the cost of time: recomputes each block's activations in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning-rate decay (timm's protocol).

        Downsampling is grouped with the stage that its name contains, and norms with the last block.
        """
        stage = r"^layers\.(\d+)"
        fine = [(stage + r"\.downsample", (0,)), (stage + r"\.blocks\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": [*([(stage, None)] if coarse else fine), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, other than norms and biases: none."""
        return set()

    def _frozen(self) -> Iterator[nn.Module]:
        if self.frozen_stages is not None:
            yield from (self.patch_embed, self.pos_drop, *self.stages[: self.frozen_stages])

    def _check(self, images: torch.Tensor) -> None:
        if isinstance(images, torch.fx.Proxy):  # it has neither shape nor device
            return
        embeds = [self.patch_embed, *(stage.downsample for stage in self.stages)]
        on_meta = any(getattr(embed, "on_meta", False) for embed in embeds)  # None and modules of users have no such
        if on_meta and not images.is_meta:  # PyTorch would return zeros
            raise InputError(
                "this FocalNet's weights are on the meta device and have no values: call "
                "load_state_dict(..., assign=True), or to_empty(device=...) and load_state_dict(...)"
            )
        if images.ndim != 4 or images.shape[1] != self.shape.in_chans:
            raise InputError(
                f"this FocalNet takes images (batch, {self.shape.in_chans}, height, width), got "
                f"{tuple(images.shape)}; other channels need create_model(..., in_chans=...)"
            )
        least = 1 if self.shape.pad_to_stride or self.shape.overlapped else self.shape.strides[-1]
        if min(images.shape[2:]) < least:
            raise InputError(f"images of {tuple(images.shape[2:])} pixels are smaller than this FocalNet's {least}")


class FocalNet(FocalNetBase):
    """The backbone for dense prediction: returns a dict of feature maps, finest first.

    ``feature_info`` gives their names, channels and strides, from which necks and heads are built.
    """

    def __init__(self, config: FocalNetConfig) -> None:
        super().__init__(config)
        indices = range(len(config.depths)) if config.out_indices is None else config.out_indices
        self.out_indices = tuple(sorted(set(indices)))
        self.feature_info = tuple(self.feature_info[i] for i in self.out_indices)
        for i in self.out_indices if config.out_norms else ():
            self.add_module(f"norm{i}", nn.LayerNorm(config.channels[i]))
        init_weights(self)
        for module in self._unused():  # DDP waits for the gradient of every parameter that requires one
            module.requires_grad_(requires_grad=False)

    @property
    def config(self) -> FocalNetConfig:
        """The configuration this backbone was built from."""
        return self.shape

    def forward(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns ``{"s4": (B, C, H/4, W/4), ...}``: channels first in shape, channels last in memory."""
        features: dict[str, torch.Tensor] = {}
        for i, x in enumerate(self.forward_stages(images_BCHW)):
            if i in self.out_indices:
                normed = getattr(self, f"norm{i}")(x) if self.shape.out_norms else x
                features[self.feature_info[len(features)].name] = normed.permute(0, 3, 1, 2)
            if len(features) == len(self.feature_info):
                break
        return features

    def _unused(self) -> Iterator[nn.Module]:
        """What follows the last returned feature map: part of the state dict, but not run."""
        last = max(self.out_indices, default=0)
        if (downsample := self.stages[last].downsample) is not None:
            yield downsample
        yield from self.stages[last + 1 :]


def init_weights(module: nn.Module) -> None:
    """The official initialization: truncated normal with std 0.02 and zero bias for linear layers, else PyTorch's."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)


def _patch_embed(config: FocalNetConfig, stage: int | None) -> PatchEmbed:
    """The stem (``stage`` None), or the downsampling after ``stage``."""
    if stage is None:
        in_chans, dim, stride, norm = config.in_chans, config.embed_dim, config.patch_size, config.patch_norm
        padding = config.stem_padding
    else:
        in_chans, dim, stride, norm, padding = config.channels[stage], config.channels[stage + 1], 2, True, 1
    return PatchEmbed(
        in_chans,
        dim,
        stride=stride,
        kernel=2 * stride - 1 if config.overlapped else stride,
        padding=padding if config.overlapped else 0,
        norm=norm,
        pad_to_stride=config.pad_to_stride,
    )


def _stages(config: FocalNetConfig) -> Iterator[Stage]:
    blocks = sum(config.depths)
    drop_paths = iter(config.drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks))
    for i, (dim, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
        last = i == len(config.depths) - 1
        yield Stage(
            [_block(config, i, dim, next(drop_paths)) for _ in range(depth)],
            None if last else _patch_embed(config, stage=i),
        )


def _block(config: FocalNetConfig, stage: int, dim: int, drop_path: float) -> FocalNetBlock:
    modulation = FocalModulation(
        dim,
        config.focal_levels[stage],
        config.focal_windows[stage],
        post_norm=config.post_norm_in_modulation,
        normalize=config.normalize_modulator,
        drop=config.drop_rate,
    )
    return FocalNetBlock(
        dim,
        modulation,
        mlp_ratio=config.mlp_ratio,
        drop=config.drop_rate,
        drop_path=drop_path,
        layer_scale=config.layer_scale,
        post_norm=config.post_norm,
    )
