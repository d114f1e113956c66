"""The transformer decoder with masked attention: each query attends within its mask predicted by the last layer.

Shapes: B batch, Q queries, C channels, S cells of a level, N classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalnet.models.mask2former.pixel_decoder import PixelDecoder
from focalnet.nn.feature_info import FeatureInfo
from focalnet.nn.feed_forward import FeedForward
from focalnet.nn.positions import sine_positions
from focalnet.ops.derivatives import attention_of_any_order

if TYPE_CHECKING:
    from focalnet.models.mask2former.config import Mask2FormerConfig


class Attention(nn.Module):
    """Multi-head attention without a residual sum. ``attn`` holds the weights under PyTorch's names.

    PyTorch's own forward needs a mask per head; here these would be the largest tensors by far.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """From ``(B, Q, C)`` and twice ``(B, S, C)`` to ``(B, Q, C)``; attends where ``mask`` ``(B, Q, S)`` is true."""
        weights = self.attn.in_proj_weight.chunk(3)
        biases = self.attn.in_proj_bias.chunk(3)
        q, k, v = (
            torch.unflatten(F.linear(x, weight, bias), -1, (self.attn.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        )
        with attention_of_any_order():
            attended = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None])
        out: Tensor = self.attn.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class DecoderLayer(nn.Module):
    """Masked cross-attention to a level, self-attention between queries, an MLP; a norm after each."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        channels = config.channels
        self.cross_attn = Attention(channels, config.heads)
        self.self_attn = Attention(channels, config.heads)
        self.ffn = FeedForward(channels, config.decoder_hidden, 0.0)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x_BQC: Tensor, positions_QC: Tensor, values: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        x: Tensor = self.norms[0](x_BQC + self.cross_attn(x_BQC + positions_QC, keys, values, mask))
        positioned = x + positions_QC
        x = self.norms[1](x + self.self_attn(positioned, positioned, x))
        x = self.norms[2](self.ffn(x))
        return x


class Decoder(nn.Module):
    """Holds the layers and the norm before every prediction, under OpenMMLab's names."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.post_norm = nn.LayerNorm(config.channels)


class Mask2FormerHead(nn.Module):
    """Pixel decoder, queries, transformer decoder, and the prediction of classes and masks."""

    def __init__(self, config: Mask2FormerConfig, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        channels = config.channels
        self.pixel_decoder = PixelDecoder(config, feature_info)
        self.transformer_decoder = Decoder(config)
        self.query_feat = nn.Embedding(config.num_queries, channels)
        self.query_embed = nn.Embedding(config.num_queries, channels)
        self.level_embed = nn.Embedding(self.pixel_decoder.levels, channels)
        self.cls_embed = nn.Linear(channels, config.num_classes + 1)
        self.mask_embed = nn.Sequential(
            *(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()),
            nn.Linear(channels, channels),
        )

    def forward(self, features: Sequence[Tensor], *, every_layer: bool) -> list[tuple[Tensor, Tensor]]:
        """Predicts class logits ``(B, Q, N + 1)`` and mask logits ``(B, Q, h, w)`` from the backbone's feature maps.

        Returns the prediction of the last layer; with ``every_layer`` also those before the first and after each.
        """
        levels, mask_features = self.pixel_decoder(features)
        values = [x.flatten(2).transpose(1, 2) + i for x, i in zip(levels, self.level_embed.weight, strict=True)]
        keys = [
            v + sine_positions(x.shape[2], x.shape[3], v.shape[2], device=v.device).to(v.dtype)
            for v, x in zip(values, levels, strict=True)
        ]
        # Resizing and products over channels commute: resize the features once per level, not the masks of each layer.
        coarse = [F.interpolate(mask_features, x.shape[2:], mode="bilinear").flatten(2) for x in levels]
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        predictions = []
        for i, layer in enumerate(self.transformer_decoder.layers):
            normalized = self.transformer_decoder.post_norm(queries)
            if every_layer:
                predictions.append(self._predict(normalized, mask_features))
            level = i % len(levels)
            mask = self._attention_mask(normalized, coarse[level])
            queries = layer(queries, self.query_embed.weight, values[level], keys[level], mask)
        predictions.append(self._predict(self.transformer_decoder.post_norm(queries), mask_features))
        return predictions

    def _predict(self, queries_BQC: Tensor, features_BChw: Tensor) -> tuple[Tensor, Tensor]:
        masks = self.mask_embed(queries_BQC) @ features_BChw.flatten(2)
        return self.cls_embed(queries_BQC).float(), masks.float().unflatten(2, features_BChw.shape[2:])

    @torch.no_grad()
    def _attention_mask(self, queries_BQC: Tensor, features_BCS: Tensor) -> Tensor:
        """Attention mask ``(B, Q, S)``: true inside each query's predicted mask, or everywhere if that is empty."""
        mask: Tensor = self.mask_embed(queries_BQC) @ features_BCS >= 0
        return mask | ~mask.any(-1, keepdim=True)
