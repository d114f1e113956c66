"""Our Mask2Former against transformers' with the same weights over the same backbone: an independent reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from focalnet.integrations.transformers import FocalNetDenseConfig
from focalnet.models import Mask2Former
from focalnet.models.mask2former.loss import losses as loss_terms
from tests.models.small import images, mask2former, segments

# transformers fixes 32 groups in norms, 3 levels and 4 points.
OURS = mask2former(channels=32, norm_groups=32, encoder_layers=2, train_points=50)
HEADS = (2, 16)  # of 16 and 2 channels each
TRUNK = {"embed_dim": 8, "depths": (1, 1, 1, 1), "focal_windows": (3, 3, 3, 3), "stem_padding": 3}


def theirs(heads: int) -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=FocalNetDenseConfig(options=TRUNK),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=OURS.encoder_layers,
        decoder_layers=OURS.decoder_layers + 1,
        encoder_feedforward_dim=OURS.encoder_hidden,
        dim_feedforward=OURS.decoder_hidden,
        num_attention_heads=heads,
        num_queries=OURS.num_queries,
        train_num_points=OURS.train_points,
        num_labels=OURS.num_classes,
    )
    return Mask2FormerForUniversalSegmentation(config).eval()


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict from theirs."""
    pixels, queries = "panoptic_head.pixel_decoder", "panoptic_head.transformer_decoder"
    their_pixels, their_queries = "model.pixel_level_module.decoder", "model.transformer_module.decoder"
    names = [
        ("model.pixel_level_module.encoder.focalnet", "backbone"),
        (f"{their_pixels}.level_embed", f"{pixels}.level_encoding.weight"),
        (f"{their_pixels}.mask_projection", f"{pixels}.mask_feature"),
        (f"{their_pixels}.adapter_1.0", f"{pixels}.lateral_convs.0.conv"),
        (f"{their_pixels}.adapter_1.1", f"{pixels}.lateral_convs.0.gn"),
        (f"{their_pixels}.layer_1.0", f"{pixels}.output_convs.0.conv"),
        (f"{their_pixels}.layer_1.1", f"{pixels}.output_convs.0.gn"),
        *((f"{their_pixels}.input_projections.{i}.0", f"{pixels}.input_convs.{i}.conv") for i in range(3)),
        *((f"{their_pixels}.input_projections.{i}.1", f"{pixels}.input_convs.{i}.gn") for i in range(3)),
        (their_pixels, pixels),
        ("model.transformer_module.queries_embedder", "panoptic_head.query_embed"),
        ("model.transformer_module.queries_features", "panoptic_head.query_feat"),
        ("model.transformer_module.level_embed", "panoptic_head.level_embed"),
        *(
            (
                f"{their_queries}.mask_predictor.mask_embedder.{i}.0",
                f"panoptic_head.mask_embed.{2 * i}",
            )
            for i in range(3)
        ),
        (f"{their_queries}.layernorm", f"{queries}.post_norm"),
        (their_queries, queries),
        ("class_predictor", "panoptic_head.cls_embed"),
    ]
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if key == "criterion.empty_weight":
            continue
        old, new = next(pair for pair in names if key.startswith(f"{pair[0]}.") or key == pair[0])
        name = new + key.removeprefix(old)
        if new != "backbone":
            name = name.replace("fc1", "ffn.layers.0.0").replace("fc2", "ffn.layers.1")
        norms = ["self_attn", "final"] if name.startswith(pixels) else ["cross_attn", "self_attn", "final"]
        for i, norm in enumerate(norms):
            name = name.replace(f".{norm}_layer_norm.", f".norms.{i}.")
        if name.startswith(queries):
            name = name.replace("_attn.", "_attn.attn.")
        found[name] = value
    for layer in range(OURS.decoder_layers):
        attention = f"{queries}.layers.{layer}.self_attn.attn"
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{attention}.{part}_proj.{kind}") for part in "qkv"]
            found[f"{attention}.in_proj_{kind}"] = torch.cat(parts)
    return found


@pytest.fixture(scope="module", params=HEADS)
def pair(request: pytest.FixtureRequest) -> tuple[Mask2Former, Mask2FormerForUniversalSegmentation]:
    torch.manual_seed(0)
    reference = theirs(request.param)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():  # masks and attention of some contrast
            if "focalnet" not in name and parameter.ndim > 1:
                torch.nn.init.xavier_normal_(parameter, gain=1.5)
    model = replace(OURS, heads=request.param).build().eval()
    model.load_state_dict(renamed(reference.state_dict()))
    return model, reference


# transformers lists the backbones it has tried with Mask2Former, and warns of any other.
@pytest.mark.filterwarnings("ignore:.*not a supported model.*")
@torch.no_grad()
def test_every_layer_agrees(pair: tuple[Mask2Former, Mask2FormerForUniversalSegmentation]) -> None:
    model, reference = pair
    batch = images()
    expected = reference(batch, output_auxiliary_logits=True)
    layers = [*expected.auxiliary_logits, expected]
    found = model.training_outputs(batch)
    assert len(found) == len(layers)
    for ours, other in zip(found, layers, strict=True):
        logits, masks = (other[f"{kind}_queries_logits"] for kind in ("class", "masks"))
        torch.testing.assert_close(ours.logits, logits, rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(ours.masks, masks, rtol=1e-4, atol=2e-4)


def test_loss_and_gradients_agree_on_the_same_points(
    pair: tuple[Mask2Former, Mask2FormerForUniversalSegmentation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take the last layer first: points are a function of how many are asked for, whenever that is."""
    (model, reference), batch = pair, images()

    def draw(*size: Any, device: Any = None) -> torch.Tensor:
        shape = torch.empty(*size).shape  # sizes may come as a list
        return torch.empty(shape).uniform_(generator=torch.Generator().manual_seed(sum(shape)))

    targets = [segments(3), segments(1)]
    losses = loss_terms(OURS, model.training_outputs(batch), targets, draw)
    ours = torch.stack(list(losses.values())).sum()
    monkeypatch.setattr(torch, "rand", draw)
    masks, labels = [t.masks.float() for t in targets], [t.labels for t in targets]
    expected = reference(batch, mask_labels=masks, class_labels=labels).loss
    torch.testing.assert_close(ours, expected.squeeze(), rtol=1e-4, atol=0)
    ours.backward()
    expected.sum().backward()
    theirs_ = renamed({name: p.grad for name, p in reference.named_parameters()})
    for name, parameter in model.named_parameters():
        norm = float(theirs_[name].norm())
        assert float((parameter.grad - theirs_[name]).norm()) <= 1e-3 * norm + 1e-3, name
