"""DINO against the released FocalNet-DINO, part by part and whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from focalnet.errors import ConfigError
from focalnet.kernels import backend
from focalnet.kernels.fuse import fuse
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.dino import DINO, DINOConfig
from focalnet.models.dino.denoising import DenoisingGenerator, DenoisingQueries, Objects
from focalnet.models.dino.encoder import Levels
from focalnet.models.dino.layouts import from_release, to_release
from focalnet.models.dino.loss import giou, losses, matches
from focalnet.models.dino.network import DINOOutputs, TrainingOutputs
from focalnet.models.dino.proposals import best, proposals
from focalnet.nn.deformable import DeformableAttention
from focalnet.nn.positions import box_sines, masked_sine_positions
from focalnet.ops import boxes
from tests.parity.golden import Case, assert_forward, assert_gradient, cases, weights

TERMS = {"loss_ce": ("loss_cls", 1.0), "loss_bbox": ("loss_bbox", 5.0), "loss_giou": ("loss_iou", 2.0)}


def targets_of(tensors: dict[str, Tensor]) -> list[Objects]:
    count = sum(key.startswith("target.") and key.endswith(".labels") for key in tensors)
    return [Objects(tensors[f"target.{i}.labels"], tensors[f"target.{i}.boxes"]) for i in range(count)]


def shapes_of(tensors: dict[str, Tensor]) -> list[tuple[int, int]]:
    return [(height, width) for height, width in tensors["spatial_shapes"].tolist()]


def levels_of(tensors: dict[str, Tensor]) -> Levels:
    shapes = shapes_of(tensors)
    parts = tensors["padding_mask"].bool().split([h * w for h, w in shapes], 1)
    return Levels.of_paddings([part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)])


def stored_sample(tensors: dict[str, Tensor], prefix: str, label_noise: float, classes: int) -> Callable[..., Tensor]:
    """The stored random numbers, in the order in which denoising asks for them."""
    nothing = {"rand_like.0": torch.zeros(0), "rand_like.1": torch.zeros(0, 4)}
    nothing |= {"randint_like.0": torch.zeros(0), "randint_like.1": torch.zeros(0, 4)}
    flips, distances, labels, signs = (tensors.get(f"{prefix}random.{name}", empty) for name, empty in nothing.items())
    others = torch.zeros(len(flips))
    others[flips < label_noise / 2] = (labels + 0.5) / classes
    numbers = iter([flips, others, (signs + 0.5) / 2, distances])

    def sample(*shape: int, device: torch.device) -> Tensor:
        random = next(numbers)
        assert random.shape == shape
        return random.to(device)

    return sample


def build(case: Case) -> tuple[DINO, Case]:
    """The network of a case, and the case that has its weights."""
    facts = case.facts
    holder = Case(case.path.with_name(f"{facts.get('weights_in', case.path.stem)}.json"))
    detector, backbone = facts["config"]["detector"], facts["config"]["backbone"]
    shape = FocalNetConfig.from_official(backbone, source="dino")
    model = DINOConfig.from_release(detector, shape).build()
    model.load_state_dict(from_release(weights(holder.tensors)))
    return model, holder


def inputs(tensors: dict[str, Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """The images, padded to the largest, and their sizes."""
    images = [tensors[f"image.{i}"] for i in range(sum(key.startswith("image.") for key in tensors))]
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    batch = torch.zeros(len(images), images[0].shape[0], *(max(side) for side in zip(*sizes, strict=True)))
    for padded, image, (height, width) in zip(batch, images, sizes, strict=True):
        padded[:, :height, :width] = image
    return batch, sizes


@pytest.mark.parametrize("by", ["plain", "fused", "fused, eager"])
@cases("dino/msdeformattn_*.json")
def test_deformable_attention(case: Case, by: str) -> None:
    config, tensors = case.facts["config"], case.tensors
    layer = DeformableAttention(config["d_model"], config["n_heads"], config["n_levels"], config["n_points"])
    layer.load_state_dict(weights(tensors))
    if by != "plain":
        fuse(layer)
    given = {key: tensors[key].detach().requires_grad_() for key in ("query", "reference_points", "input_flatten")}
    with backend.use("eager" if by == "fused, eager" else "auto"):
        out = layer(
            given["query"],
            given["input_flatten"],
            shapes_of(tensors),
            given["reference_points"],
            tensors["padding_mask"].bool(),
        )
        assert_forward(out, tensors["output"])
        (out * tensors["grad_seed_vector"]).sum().backward()
    for key, tensor in given.items():
        assert_gradient(tensor.grad, tensors[f"grad.{key}"])
    for key, parameter in layer.named_parameters():
        assert_gradient(parameter.grad, tensors[f"grad.param.{key}"])


@cases("dino/position_embeddings*.json")
def test_position_embeddings(case: Case) -> None:
    tensors = case.tensors
    padding = tensors["mask"].bool()
    for key, expected in tensors.items():
        if not key.startswith("pos."):
            continue
        features, *temperature = key.removeprefix("pos.npf").split("_")
        rows, columns = (float(part.lstrip("THW")) for part in (temperature * 2)[:2])
        positions = masked_sine_positions(padding, 2 * int(features), temperatures=(rows, columns))
        full = positions.transpose(1, 2).unflatten(2, padding.shape[1:])
        assert_forward(full if full.shape == expected.shape else full[1:2, :, ::3, ::3], expected)
    given = tensors["query_sine.input4"]
    for numbers in (2, 4):
        expected = tensors[f"query_sine.output{numbers}"]
        assert_forward(box_sines(given[..., :numbers], expected.shape[-1] // numbers), expected)


@cases("dino/encoder_proposals*.json")
def test_encoder_proposals(case: Case) -> None:
    tensors = case.tensors
    levels = levels_of(tensors)
    assert_forward(levels.ratios, tensors["valid_ratios"])
    inside = ~tensors["padding_mask"].bool()
    assert_forward(levels.centers()[inside], tensors["encoder_reference_points"][inside])
    logits, memory = proposals(tensors["memory"], levels)
    expected = tensors["output_proposals"]
    assert torch.equal(logits.isinf(), expected.isinf())
    assert_forward(logits[logits.isfinite()], expected[expected.isfinite()])
    assert torch.equal(memory, tensors["output_memory"])


def denoise(case: Case, config: DINOConfig, prefix: str = "") -> DenoisingQueries:
    tensors = case.tensors
    generator = DenoisingGenerator(config)
    generator.load_state_dict({"label_embedding.weight": tensors[f"{prefix}label_enc.weight"]})
    sample = stored_sample(tensors, prefix, config.label_noise, config.num_classes)
    found: DenoisingQueries = generator(targets_of(tensors), sample)
    return found


@cases("dino/cdn_*.json")
def test_denoising_queries(case: Case) -> None:
    facts, tensors = case.facts, case.tensors
    given = facts["config"]
    rows, channels = tensors["label_enc.weight"].shape
    config = DINOConfig(
        backbone=FocalNetConfig(embed_dim=4),
        num_classes=given["num_classes"],
        spare_labels=rows - given["num_classes"],
        channels=channels,
        heads=1,
        norm_groups=1,
        denoising_queries=given["dn_number"],
        label_noise=given["label_noise_ratio"],
        box_noise=given["box_noise_scale"],
    )
    queries = denoise(case, config)
    meta = facts["dn_meta"]
    assert (queries.content.shape[1], queries.groups) == (meta["pad_size"], meta["num_dn_group"])
    if queries.content.numel():
        assert_forward(queries.content, tensors["input_query_label"])
        assert_forward(queries.boxes, tensors["input_query_bbox"])
    assert torch.equal(queries.hidden(given["num_queries"]), tensors["attn_mask"].bool())


@cases("dino/criterion_*.json")
def test_matches_and_losses(case: Case) -> None:
    facts, tensors = case.facts, case.tensors
    targets = targets_of(tensors)
    logits, places = tensors["pred_logits"].requires_grad_(), tensors["pred_boxes"].requires_grad_()
    outputs = DINOOutputs(logits, places)
    assert_matches(outputs, targets, tensors, "match")
    nothing = DINOOutputs(logits[:, :0], places[:, :0])
    terms = losses(TrainingOutputs([outputs], outputs, [nothing]), targets, 1)
    for name, (ours, weight) in TERMS.items():
        assert_forward(terms[ours], torch.tensor(facts["losses"][name] * weight))
        assert terms[f"dn_{ours}"] == facts["losses"][f"{name}_dn"] == 0
        assert torch.equal(terms[f"enc_{ours}"], terms[ours])
    torch.stack([terms[ours] for ours, _ in TERMS.values()]).sum().backward()
    assert_gradient(logits.grad, tensors["grad.pred_logits"])
    assert_gradient(places.grad, tensors["grad.pred_boxes"])
    if "giou_matrix" in tensors:
        wanted = torch.cat([target.boxes for target in targets])
        assert_forward(giou(places.detach().flatten(0, 1)[:, None], wanted), tensors["giou_matrix"])


def assert_matches(outputs: DINOOutputs, targets: list[Objects], tensors: dict[str, Tensor], name: str) -> None:
    for i, assigned in enumerate(matches(outputs, targets)):
        query = tensors[f"{name}.{i}.pred_index"]
        assert torch.equal(assigned.nonzero().flatten(), query.sort().values)
        assert torch.equal(assigned[query] - 1, tensors[f"{name}.{i}.target_index"])


def assert_outputs(outputs: DINOOutputs, tensors: dict[str, Tensor], name: str) -> None:
    assert_forward(outputs.logits, tensors[f"{name}pred_logits"])
    assert_forward(outputs.boxes, tensors[f"{name}pred_boxes"])


@cases("dino/detector_*_eval*.json")
@torch.no_grad()
def test_detector_step_by_step(case: Case) -> None:
    model, _ = build(case)
    model.eval()
    tensors = case.tensors
    images, sizes = inputs(tensors)
    assert torch.equal(images, tensors["padded_input"])
    features = model.neck(list(model.backbone(images).values()))
    memory, levels = model.encode(images, sizes)
    for i, (feature, padding) in enumerate(zip(features, levels.paddings, strict=True)):
        assert_forward(feature, tensors[f"src.{i}"])
        assert torch.equal(padding, tensors[f"mask.{i}"].bool())
        encoded = masked_sine_positions(
            padding, model.config.channels, temperatures=tuple(model.config.position_temperatures)
        )
        assert_forward(encoded.transpose(1, 2).unflatten(2, padding.shape[1:]), tensors[f"pos_embed.{i}"])
    assert_forward(memory, tensors["memory"])
    _, kept = proposals(memory, levels)
    scores = model.bbox_head.classes(model.memory_trans_norm(model.memory_trans_fc(kept)), -1)
    assert_forward(scores.amax(-1), tensors["topk_scores_all_tokens"])
    chosen = best(scores, model.config.num_queries)
    assert torch.equal(chosen, tensors["topk_proposals"])
    content, logits, encoder = model.select(memory, levels)
    assert_forward(encoder.boxes, tensors["ref_enc"][-1])
    assert_outputs(encoder, tensors, "interm.")
    hidden, references = model.decoder(content, logits.sigmoid(), memory, levels, model.bbox_head)
    for i, value in enumerate(hidden):
        assert_forward(value, tensors[f"decoder.hs.{i}"])
    for i, value in enumerate(references):
        assert_forward(value, tensors[f"decoder.references.{i}"])
    outputs = model.training_outputs(images, sizes)
    assert_outputs(outputs.layers[-1], tensors, "")
    for i, layer in enumerate(outputs.layers[:-1]):
        assert_outputs(layer, tensors, f"aux.{i}.")
    originals = [(int(height), int(width)) for height, width in tensors["postprocess.target_sizes"].tolist()]
    for i, found in enumerate(model.predict(images, sizes, originals)):
        expected = {key: tensors[f"postprocess.{i}.{key}"] for key in ("scores", "labels", "boxes")}
        assert_forward(found.scores, expected["scores"])
        assert torch.equal(found.labels, expected["labels"])
        assert_forward(found.boxes, boxes.clip(expected["boxes"], originals[i]))  # the release lets them stick out


@pytest.mark.usefixtures("each_backend")
@cases("dino/detector_*_train*.json")
def test_detector_in_training(case: Case) -> None:
    model, _ = build(case)
    model.train()
    facts, tensors = case.facts, case.tensors
    images, sizes = inputs(tensors)
    targets = targets_of(tensors)
    sample = stored_sample(tensors, "dn.", model.config.label_noise, model.config.num_classes)
    denoising = model.dn_query_generator(targets, sample)
    meta = facts["dn_meta"] or {"pad_size": 0, "num_dn_group": 1}
    assert (denoising.content.shape[1], denoising.groups) == (meta["pad_size"], meta["num_dn_group"])
    if denoising.content.numel():
        assert_forward(denoising.content, tensors["dn.input_query_label"])
        assert_forward(denoising.boxes, tensors["dn.input_query_bbox"])
        assert torch.equal(denoising.hidden(model.config.num_queries), tensors["dn.attn_mask"].bool())
    outputs = model.training_outputs(images, sizes, denoising)
    names = [*(f"aux.{i}." for i in range(len(outputs.layers) - 1)), ""]
    for name, layer, restored in zip(names, outputs.layers, outputs.denoising, strict=True):
        assert_outputs(layer, tensors, name)
        assert_matches(layer, targets, tensors, f"match.{name or 'final.'}".rstrip("."))
        if restored.logits.numel():
            assert_outputs(restored, tensors, f"dn.{name}")
    assert_outputs(outputs.encoder, tensors, "interm.")
    assert_matches(outputs.encoder, targets, tensors, "match.interm")
    terms = losses(outputs, targets, denoising.groups)
    assert_terms(terms, facts, len(outputs.layers))
    torch.stack(list(terms.values())).sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    theirs = to_release({key: grad for key, grad in gradients.items() if grad is not None}, model.config)
    assert len(gradients) == len([grad for grad in gradients.values() if grad is not None])
    for key, expected in tensors.items():
        if key.startswith("grad."):
            assert_gradient(theirs[key.removeprefix("grad.")], expected)


def assert_terms(terms: dict[str, Tensor], facts: dict[str, Any], layers: int) -> None:
    expected: dict[str, float] = {}
    for name, (ours, weight) in TERMS.items():
        for i in range(layers):
            suffix, prefix = ("", "") if i == layers - 1 else (f"_{i}", f"d{i}.")
            expected[f"{prefix}{ours}"] = facts["losses"][f"{name}{suffix}"] * weight
            expected[f"{prefix}dn_{ours}"] = facts["losses"][f"{name}_dn{suffix}"] * weight
        expected[f"enc_{ours}"] = facts["losses"][f"{name}_interm"] * weight
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert_forward(terms[name].detach(), torch.tensor(value))
    total = torch.stack(list(terms.values())).sum().detach()
    assert_forward(total, torch.tensor(facts["total_weighted_loss"]))


@cases("dino/detector_*_eval*.json")
def test_names_of_the_release_both_ways(case: Case) -> None:
    model, holder = build(case)
    theirs = weights(holder.tensors)
    back = to_release(model.state_dict(), model.config)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.items())
    assert sum(t.numel() for t in model.parameters()) == case.facts["num_params"]


def test_a_release_with_options_of_others_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_patterns=3 is not supported, only 0"):
        DINOConfig.from_release({"num_patterns": 3}, FocalNetConfig())
