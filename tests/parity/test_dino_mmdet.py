"""DINO against mmdet's, one test a stage of the computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from focalnet.models.dino import DINO, DINOConfig
from focalnet.models.dino.denoising import DenoisingQueries
from focalnet.models.dino.loss import losses, matches, objects_of
from focalnet.models.dino.proposals import best, proposals
from tests.parity import openmmlab
from tests.parity.golden import Case, cases

PATTERN = "openmmlab/mmdet_dino*.json"
BOXES = 5e-2  # pixels


def build(case: Case) -> DINO:
    model = DINOConfig.from_official(case.facts["config"]).build().eval()
    model.load_state_dict(openmmlab.state(case.tensors))
    assert sum(t.numel() for t in model.state_dict().values()) == case.facts["num_params"]
    return model


def stored(case: Case, name: str, value: Tensor) -> Tensor:
    """Those tokens ``(B, S, C)`` that the case stores, by its slice ``[:, ::n]``."""
    step = case.facts["stored"].get(name, {}).get("slice", "[:, ::1]").strip("[]").split("::")[1]
    return value[:, :: int(step)]


@cases(PATTERN)
@torch.no_grad()
def test_feature_maps_memory_and_every_layer(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    features = list(model.backbone(images).values())
    openmmlab.assert_feature_maps(case, expected, "backbone", features)
    openmmlab.assert_feature_maps(case, expected, "neck", model.neck(features))
    memory, levels = model.encode(images, sizes)
    assert list(levels.shapes) == [tuple(shape) for shape in expected["enc.spatial_shapes"].tolist()]
    assert torch.equal(levels.padding_BS, expected["enc.mask"].bool())
    close = openmmlab.FEATURE_MAPS
    torch.testing.assert_close(levels.ratios, expected["enc.valid_ratios"], **close)
    torch.testing.assert_close(stored(case, "enc.pos", model.positions(levels)), expected["enc.pos"], **close)
    torch.testing.assert_close(stored(case, "enc.memory", memory), expected["enc.memory"], **close)
    _, kept = proposals(memory, levels)
    scores = model.bbox_head.classes(model.memory_trans_norm(model.memory_trans_fc(kept)), -1)
    assert torch.equal(best(scores, model.config.num_queries), expected["enc.topk_indices"])
    content, logits, _ = model.select(memory, levels)
    torch.testing.assert_close(logits.sigmoid(), expected["dec.reference_points"], **close)
    hidden, references = model.decoder(content, logits.sigmoid(), memory, levels, model.bbox_head)
    torch.testing.assert_close(torch.stack(hidden), expected["dec.hidden_states"], **close)
    for i, reference in enumerate(references):
        torch.testing.assert_close(reference, expected[f"dec.references.{i}"], **close)
    layers = model.training_outputs(images, sizes).layers
    torch.testing.assert_close(torch.stack([layer.logits for layer in layers]), expected["dec.cls"], **close)
    torch.testing.assert_close(torch.stack([layer.boxes for layer in layers]), expected["dec.bbox_cxcywh"], **close)


@pytest.mark.parametrize("name", ["det_input", "det_rescaled"])
@cases(PATTERN)
@torch.no_grad()
def test_detections(case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmmlab, "BOXES", BOXES)
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case) if name == "det_rescaled" else sizes
    for i, detections in enumerate(model.predict(images, sizes, originals)):
        openmmlab.assert_detections(detections, expected, f"{name}.{i}")


def queries_of(case: Case, name: str) -> DenoisingQueries:
    tensors, groups = case.tensors, case.facts[name]["dn_meta"]["num_denoising_groups"]
    return DenoisingQueries(tensors[f"{name}.dn.label_query"], tensors[f"{name}.dn.bbox_query_unact"], groups)


@pytest.mark.parametrize("name", ["train", "train_noisy"])
@cases(PATTERN)
def test_losses_gradients_and_matches(case: Case, name: str) -> None:
    model, facts, expected = build(case), case.facts[name], case.tensors
    images, sizes = openmmlab.images(case)
    targets = objects_of(openmmlab.targets(case), sizes)
    denoising = queries_of(case, name)
    if name == "train":  # without noise nothing is random
        made = model.dn_query_generator(targets)
        meta = facts["dn_meta"]
        assert (made.content.shape[1], made.groups) == tuple(meta[key] for key in sorted(meta, reverse=True))
        hidden = openmmlab.unpack(case, "train.dn.attn_mask", expected)
        assert torch.equal(made.hidden(model.config.num_queries), hidden)
    # The labels of the stored queries are given again, so that the embedding has its gradient.
    denoising = embedded(model, denoising, expected[f"{name}.dn.noisy_labels"], targets)
    outputs = model.training_outputs(images, sizes, denoising)
    terms = losses(outputs, targets, denoising.groups)
    openmmlab.assert_losses(terms, facts, rtol=1e-3, total_rtol=1e-4)
    torch.stack(list(terms.values())).sum().backward()
    openmmlab.assert_gradient_norms(model, facts["grad_norms"])
    for key in ("enc", *range(len(outputs.layers))) if name == "train" else ():
        layer = outputs.encoder if key == "enc" else outputs.layers[int(key)]
        for i, assigned in enumerate(matches(layer, targets)):
            assert torch.equal(assigned, expected[f"train.gt_inds.{key}.{i}"].long())


def embedded(model: DINO, queries: DenoisingQueries, labels: Tensor, targets: list[Any]) -> DenoisingQueries:
    """The same queries, their content embedded anew."""
    counts = [len(target.labels) for target in targets]
    most, copies = max(counts), 2 * queries.groups
    place = torch.cat([torch.arange(count) + i * copies * most for i, count in enumerate(counts)])
    place = (place + most * torch.arange(copies)[:, None]).flatten()
    content = torch.zeros_like(queries.content).flatten(0, 1)
    content = content.index_put((place,), model.dn_query_generator.label_embedding(labels))
    content = content.view_as(queries.content)
    torch.testing.assert_close(content, queries.content, **openmmlab.FEATURE_MAPS)
    return DenoisingQueries(content, queries.boxes, queries.groups)
