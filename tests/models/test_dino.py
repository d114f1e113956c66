"""DINO beyond what every detector is tested for: scales, denoising, images without objects, padding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import focalnet
from focalnet import registry, weights
from focalnet.cli.main import main
from focalnet.errors import ConfigError
from focalnet.models.dino import DINO, DINOConfig
from focalnet.models.dino.denoising import DenoisingGenerator, Objects, sampled
from focalnet.models.dino.encoder import Levels
from focalnet.models.dino.layouts import from_release, to_release
from focalnet.models.dino.loss import losses, matching_cost, objects_of
from focalnet.samples import Batch, ImageInfo, ObjectTarget
from tests.data.coco import write_coco
from tests.models import small


def network(**options: Any) -> DINO:
    torch.manual_seed(0)
    model = small.config("dino", **options).build()
    assert isinstance(model, DINO)
    return model


def batch(*counts: int) -> Batch[ObjectTarget]:
    infos = [ImageInfo(f"{i}.png", size) for i, size in enumerate(small.ORIGINALS)]
    return Batch(small.images(), small.SIZES, [small.target(count) for count in counts], infos)


@pytest.mark.parametrize(
    ("name", "scales", "maps", "strides"),
    [
        ("dino_focalnet_tiny_srf", 4, (1, 2, 3), [8, 16, 32, 64]),
        ("dino_focalnet_tiny_srf", 5, None, [4, 8, 16, 32, 64]),
        ("dino_focalnet_nano", 4, None, [2, 4, 8, 16]),
        ("dino_focalnet_nano", 3, (1, 2), [4, 8, 16]),
    ],
)
def test_scales(name: str, scales: int, maps: tuple[int, ...] | None, strides: list[int]) -> None:
    narrow = {"embed_dim": 4, "channels": 16, "heads": 2, "norm_groups": 4, "num_queries": 8}
    config: Any = registry.configure(name, scales=scales, **narrow, encoder_layers=1, decoder_layers=1)
    assert config.backbone.out_indices == maps
    assert DINOConfig.from_dict(config.to_dict()) == config
    model = config.build().eval()
    with torch.no_grad():
        _, levels = model.encode(torch.zeros(1, 3, 64, 128), [(64, 128)])
    assert list(levels.shapes) == [(64 // stride, 128 // stride) for stride in strides]


def test_options_that_cannot_work() -> None:
    for options, says in [
        ({"scales": 2, "out_indices": (1, 2, 3)}, "scales=2 are fewer than the backbone's 3 feature maps"),
        ({"scales": 4, "out_indices": (0, 1, 2, 3)}, r"out_indices=\(0, 1, 2, 3\) does not fit .*uses \(1, 2, 3\)"),
        ({"heads": 3}, "channels=16 must be a multiple of 4"),
        ({"box_noise": -1.0}, "box_noise=-1.0 must not be negative"),
        ({"decoder_layers": 0}, "decoder_layers=0 must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=says):
            small.config("dino", **options)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0)])
def test_losses_reach_every_parameter(counts: tuple[int, int], shared: bool) -> None:
    model = network(shared_class_head=shared, shared_box_head=shared, scales=5).train()
    terms = model.loss(batch(*counts))
    assert len(terms) == 3 * (2 * 2 + 1)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("options", [{}, {"scales": 5}, {"learned_queries": False}, {"spare_labels": 3}])
@pytest.mark.parametrize(("classes", "boxes"), [(True, True), (True, False), (False, True), (False, False)])
def test_names_of_the_release_and_back(classes: bool, boxes: bool, options: dict[str, Any]) -> None:
    model = network(shared_class_head=classes, shared_box_head=boxes, **options)
    for parameter in model.bbox_head.parameters():
        torch.nn.init.normal_(parameter)
    ours = model.state_dict()
    theirs = to_release(ours, model.config)
    layers = model.config.decoder_layers
    assert sum("transformer.decoder.bbox_embed." in key for key in theirs) == layers * 6
    assert torch.equal(theirs["bbox_embed.0.layers.0.bias"], theirs[f"bbox_embed.{layers - 1}.layers.0.bias"]) == boxes
    assert torch.equal(theirs["class_embed.0.bias"], theirs[f"class_embed.{layers - 1}.bias"]) == classes
    back = from_release(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in ours.items())


def test_content_from_the_encoder() -> None:
    model = network(learned_queries=False).train()
    assert model.query_embedding is None
    torch.stack(list(model.loss(batch(2, 1)).values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("queries", "always", "objects", "groups"),
    [(100, False, 7, 14), (100, False, 300, 1), (50, False, 10, 5), (49, False, 10, 98), (20, True, 4, 5)],
)
def test_denoising_groups(queries: int, always: bool, objects: int, groups: int) -> None:
    config = small.config("dino", denoising_queries=queries, denoising_always_divided=always)
    assert isinstance(config, DINOConfig)
    assert config.denoising_groups(objects) == groups
    target = Objects(torch.zeros(objects, dtype=torch.long), torch.full((objects, 4), 0.5))
    made = DenoisingGenerator(config)([target])
    assert made.content.shape[1] == 2 * groups * objects
    assert made.objects == objects


def crowd(count: int) -> ObjectTarget:
    """So many small objects at random places of the first image."""
    random = torch.Generator().manual_seed(0)
    low = torch.rand(count, 2, generator=random) * 50
    boxes = torch.cat([low, low + 2 + 8 * torch.rand(count, 2, generator=random)], 1)
    labels = torch.randint(3, (count,), generator=random)
    return ObjectTarget(boxes=boxes, labels=labels, masks=None, ignored=torch.zeros(0, 4))


def step(model: DINO, target: ObjectTarget) -> tuple[dict[str, torch.Tensor], int]:
    """The losses of an image, and the bytes that its backward pass needs beside the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        given = Batch(small.images()[:1], small.SIZES[:1], [target], [ImageInfo("crowd.png", small.ORIGINALS[0])])
        terms = model.loss(given)
    return terms, sum(kept.values())


@pytest.mark.parametrize("denoising", [100, 20])
def test_a_crowd_takes_little_more_memory_than_a_few_objects(denoising: int) -> None:
    model = network(num_queries=300, denoising_queries=denoising).train()
    (_, few), (terms, many) = (step(model, crowd(count)) for count in (50, 500))
    assert few > 1e6
    assert many <= 1.3 * few
    assert all(value.isfinite() for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()


def test_objects_of_a_crowd_are_denoised_by_chance() -> None:
    config = small.config("dino", denoising_queries=100)
    assert isinstance(config, DINOConfig)
    target = Objects(torch.arange(300), torch.rand(300, 4))
    torch.manual_seed(0)
    chosen = [sampled([target, Objects(torch.zeros(0), torch.zeros(0, 4))], config.most_denoised) for _ in range(2)]
    for one, none in chosen:
        assert len(one.labels.unique()) == len(one.boxes) == 100
        assert torch.equal(one.boxes, target.boxes[one.labels])
        assert len(none.labels) == 0
    assert not torch.equal(chosen[0][0].labels, chosen[1][0].labels)
    assert sampled([target], 300)[0] is target


def test_a_crowd_is_matched_as_if_compared_at_once() -> None:
    objects = objects_of([crowd(200)], [(64, 96)])[0]
    logits, boxes = torch.randn(30, 3), torch.rand(30, 4)
    whole = matching_cost(logits, boxes, objects)
    for k in (0, 63, 64, 199):
        one = matching_cost(logits, boxes, Objects(objects.labels[k : k + 1], objects.boxes[k : k + 1]))
        torch.testing.assert_close(whole[:, k : k + 1], one)


def test_recomputing_backbone_and_encoder_changes_nothing_but_memory() -> None:
    found = []
    for enable in (False, True):
        model = network(encoder_layers=4, drop_path_rate=0.3, dropout=0.1).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        terms, kept = step(model, crowd(5))
        torch.stack(list(terms.values())).sum().backward()
        found.append((terms, kept, [p.grad for p in model.parameters()]))
    (terms, kept, gradients), (again, less, recomputed) = found
    assert all(torch.equal(terms[name], again[name]) for name in terms)
    for gradient, other in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(gradient, other)
    assert less < 0.7 * kept


def test_without_denoising() -> None:
    model = network(denoising_queries=0).train()
    terms = model.loss(batch(2, 1))
    assert all(value == 0 for name, value in terms.items() if "dn_" in name)


def test_perfect_predictions_have_little_loss() -> None:
    model = network(label_noise=0.0, box_noise=0.0).train()
    given = batch(3, 2)
    targets = objects_of(given.targets, given.sizes)
    queries = model.dn_query_generator(targets)
    outputs = model.training_outputs(given.images, given.sizes, queries)
    logits = torch.full((2, 12, 3), -20.0)
    boxes = torch.full((2, 12, 4), 0.1)
    for i, target in enumerate(targets):
        logits[i, range(len(target.labels)), target.labels] = 20.0
        boxes[i, : len(target.labels)] = target.boxes
    perfect = dataclasses.replace(outputs.layers[-1], logits=logits, boxes=boxes)
    terms = losses(dataclasses.replace(outputs, layers=[outputs.layers[0], perfect]), targets, queries.groups)
    assert terms["loss_cls"] + terms["loss_bbox"] + terms["loss_iou"] < 1e-3
    # Boxes without noise are where they ought to be, and new box heads leave them there.
    assert terms["d0.dn_loss_bbox"] < 1e-3


@torch.no_grad()
def test_cells_of_the_padding_are_not_seen() -> None:
    model = network().eval()
    images, sizes = small.images(), [(40, 50), (64, 75)]
    features = model.neck(list(model.backbone(images).values()))
    shapes = [(x.shape[2], x.shape[3]) for x in features]
    levels = Levels.of(sizes, (64, 96), shapes, images.device)
    found = []
    for noise in (0.0, 100.0):
        x = [x + noise * torch.randn_like(x) * p[:, None] for x, p in zip(features, levels.paddings, strict=True)]
        cells = torch.cat([level.flatten(2) for level in x], 2).transpose(1, 2)
        found.append(model.select(model.encoder(cells, model.positions(levels), levels), levels)[2])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype) -> None:
    model = network().eval()
    expected = model.predict(small.images(), small.SIZES)
    outputs = model.to(dtype)(small.images().to(dtype), small.SIZES)
    assert outputs.logits.dtype == outputs.boxes.dtype == torch.float32
    assert outputs.boxes.isfinite().all()
    assert len(model.postprocess(outputs, small.SIZES, small.SIZES)) == len(expected)


def test_autocast() -> None:
    model = network().train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch(2, 1))
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert total.isfinite()
    assert total.dtype == torch.float32


@torch.no_grad()
def test_results_are_the_best_pairs_within_the_image() -> None:
    model = network(max_per_image=5).eval()
    for found, (height, width) in zip(
        model.predict(small.images(), small.SIZES, small.ORIGINALS), small.ORIGINALS, strict=True
    ):
        assert len(found) == 5
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()
    assert focalnet.create_model("dino_focalnet_nano", num_classes=2).config.num_classes == 2


BACKBONES = ("tiny_srf", "small_lrf", "base_srf", "large_fl3", "large_fl4", "huge_fl4", "nano")


@pytest.mark.parametrize(("scales", "shared"), [(4, False), (5, True)])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_published_networks_build(backbone: str, scales: int, shared: bool) -> None:
    heads = {"shared_class_head": shared, "shared_box_head": shared}
    with torch.device("meta"):
        model = focalnet.create_model(f"dino_focalnet_{backbone}", scales=scales, **heads)
    assert isinstance(model, DINO)
    assert model.level_embed.shape == (scales, 256)
    assert len(model.neck.convs) + len(model.neck.extra_convs) == scales
    assert len(model.bbox_head.cls_branches) == len(model.bbox_head.reg_branches) == (2 if shared else 7)
    assert model.encoder.layers[0].self_attn.attention_weights.out_features == 8 * scales * 4


def test_the_published_network_has_its_parameters() -> None:
    with torch.device("meta"):
        model = focalnet.create_model("dino_focalnet_large_fl4", scales=5, num_classes=91)
    # The published file has 2.74 GB: float32 weights and AdamW's two moments of them.
    assert sum(p.numel() for p in model.parameters()) * 3 * 4 / 1e9 == pytest.approx(2.74, abs=0.01)


def test_names_of_the_catalogue_are_networks() -> None:
    for name in weights.list_weights("dino_*"):
        assert name.partition(".")[0] in registry.names()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.options.scales", "2", "--model.options.out_indices", "[1, 2, 3]"], "scales=2 are fewer than"),
        (["--model.options.heads", "7"], "channels=256 must be a multiple of 4"),
        (["--model.options.num_querys", "7"], 'has an option "num_querys"; did you mean "num_queries"'),
        (["--model.options.num_queries", "many"], "num_queries='many' must be a whole number"),
        (["--model.options.position_temperatures", "3"], "position_temperatures=3 must be a list of values"),
        (["--model.options.learned_queries", "no way"], "learned_queries='no way' must be true or false"),
        (["--model.options.drop_path_rate", "[0.1]"], "drop_path_rate=[0.1] must be a finite number"),
        (["--model.architecture", "dino_focalnet_tiny"], 'no model "dino_focalnet_tiny"'),
        (["--model.optimizer.backbone_scale", "2"], "backbone_scale=2.0 must be in (0, 1]"),
        (["--data.image_size", "0"], "data.image_size must be 1 or more"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco")
    run = ["fit", "detection/finetune_dino", "--output", str(tmp_path / "run"), "--data.root", str(root)]
    run += ["--model.backbone_weights", "null", "--data.batch_size", "2", "--data.num_workers", "0"]
    assert main([*run, "--trainer.accelerator", "cpu", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "rror" in line or says in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert not (tmp_path / "run").exists()
