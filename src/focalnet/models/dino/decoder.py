"""The decoder: queries look at each other and at the memory around their box, which every layer refines.

B batch, Q queries, C channels, L levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from focalnet.models.dino.encoder import Levels
from focalnet.models.dino.heads import Heads, inverse_sigmoid
from focalnet.nn.deformable import DeformableAttention
from focalnet.nn.feed_forward import FeedForward
from focalnet.nn.positions import box_sines
from focalnet.ops.derivatives import attention_of_any_order

if TYPE_CHECKING:
    from focalnet.models.dino.config import DINOConfig


class Attention(nn.Module):
    """Self-attention between queries. ``attn`` holds the weights, as in OpenMMLab's checkpoints."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(config.channels, config.heads, config.dropout, batch_first=True)

    def forward(self, x_BQC: Tensor, places_BQC: Tensor, hidden: Tensor | None) -> Tensor:
        """Returns ``(B, Q, C)``; ``hidden`` ``(Q, Q)`` is true where a query (row) must not look."""
        placed = x_BQC + places_BQC
        with attention_of_any_order():
            out: Tensor = self.attn(placed, placed, x_BQC, attn_mask=hidden, need_weights=False)[0]
        return out


class DecoderLayer(nn.Module):
    """Attention between queries, deformable attention to the memory, an MLP; a norm after each."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        channels = config.channels
        self.self_attn = Attention(config)
        self.cross_attn = DeformableAttention(channels, config.heads, config.scales, config.points)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = FeedForward(channels, config.feedforward_channels, config.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        x_BQC: Tensor,
        places_BQC: Tensor,
        references: Tensor,
        memory_BSC: Tensor,
        levels: Levels,
        hidden: Tensor | None,
    ) -> Tensor:
        """Returns ``(B, Q, C)``; ``references`` ``(B, Q, L, 4)`` are the boxes in units of each level."""
        x: Tensor = self.norms[0](x_BQC + self.dropout(self.self_attn(x_BQC, places_BQC, hidden)))
        seen = self.cross_attn(x + places_BQC, memory_BSC, levels.shapes, references, levels.padding_BS)
        x = self.norms[1](x + self.dropout(seen))
        x = self.norms[2](self.ffn(x))
        return x


class BoxEmbedding(nn.Module):
    """From the sines of a box to what is added to its query: two linear layers with ReLU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2 * channels, channels), nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers[1](self.layers[0](x).relu())
        return out


class Decoder(nn.Module):
    """The layers, and the norm before every prediction."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.ref_point_head = BoxEmbedding(config.channels)
        self.norm = nn.LayerNorm(config.channels)

    def forward(
        self,
        x_BQC: Tensor,
        references: Tensor,
        memory_BSC: Tensor,
        levels: Levels,
        heads: Heads,
        hidden: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Normed queries ``(B, Q, C)`` after each layer; references ``(B, Q, 4)`` before the first and after each.

        A layer starts from references without a history, but references after a layer have one, so that the loss of the
        next layer's boxes reaches them, too (look forward twice).

        Args:
            x_BQC: the queries.
            references: ``(B, Q, 4)``, their boxes: center and size in units of the image.
            memory_BSC: the encoder's.
            levels: its levels.
            heads: whose box heads refine references.
            hidden: ``(Q, Q)``, true where a query (row) must not look at another.
        """
        outputs, every = [], [references]
        ratios = levels.ratios.repeat(1, 1, 2)[:, None]
        for i, layer in enumerate(self.layers):
            boxes = references[:, :, None] * ratios
            sines = box_sines(boxes[:, :, 0], x_BQC.shape[2] // 2)
            places = self.ref_point_head(sines.to(x_BQC))
            x_BQC = layer(x_BQC, places, boxes, memory_BSC, levels, hidden)
            refined = (heads.boxes(x_BQC, i) + inverse_sigmoid(references)).sigmoid()
            references = refined.detach()
            every.append(refined)
            outputs.append(self.norm(x_BQC))
        return outputs, every
