"""Batches for semantic segmentation: which files are found, how images are augmented, what is refused.

Long because every layout of folders and every way a mask can be wrong has its own test, on the same small set.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from focalnet.cli.main import main
from focalnet.data import SemanticAugmentation, SemanticData
from focalnet.data.augment import distort, with_labels
from focalnet.data.formats.label_maps import LabelRule
from focalnet.errors import ConfigError, DataError, ImageError
from focalnet.samples import IGNORED
from tests.data.conftest import write_tar
from tests.data.semantic import HEIGHT, NAMES, WIDTH, blocks, write_pair, write_semantic

SMALL = SemanticAugmentation(crop=(32, 40))


def data(root: Path, stage: str = "fit", **options) -> SemanticData:
    defaults = {"image_size": 48, "max_size": 96, "batch_size": 2, "num_workers": 0, "augmentation": SMALL}
    module = SemanticData(root, **{**defaults, **options})
    module.setup(stage)
    return module


def truth(module: SemanticData, index: int = 0) -> np.ndarray:
    return module.samples["val"][index].target.labels.numpy()


# --- batches


def test_a_batch_of_training(tmp_path):
    module = data(write_semantic(tmp_path))
    assert (module.class_names, module.num_classes) == (NAMES, 3)
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (2, 3, 32, 40)
    assert batch.images.dtype == torch.float32
    assert batch.sizes == [(32, 40)] * 2
    for labels in (target.labels for target in batch.targets):
        assert (labels.shape, labels.dtype) == ((32, 40), torch.int64)
        assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORED}


def test_evaluation_resizes_the_picture_and_not_its_labels(tmp_path):
    batch = next(iter(data(write_semantic(tmp_path), image_size=60).val_dataloader()))
    assert batch.images.shape == (1, 3, 60, 80)
    assert batch.original_sizes == [(HEIGHT, WIDTH)]
    assert np.array_equal(batch.targets[0].labels.numpy(), blocks(100)[1])


def test_pictures_of_other_sizes_are_padded_in_evaluation_alone_if_asked_for(tmp_path):
    root = write_semantic(tmp_path)
    for folder in ("images", "masks"):
        path = root / folder / "val/00.png"
        Image.open(path).crop((0, 0, 48, 48)).save(path)
    shapes = [batch.images.shape for batch in data(root).val_dataloader()]
    assert shapes[:2] == [(1, 3, 48, 48), (1, 3, 48, 64)]
    batch = next(iter(data(root, val_batch_size=2).val_dataloader()))
    assert batch.sizes == [(48, 48), (48, 64)]
    assert not batch.images[0, :, :, 48:].any()
    assert batch.targets[0].labels.shape == (48, 48)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_seed_and_epoch(tmp_path, workers):
    root = write_semantic(tmp_path)
    loaders = [data(root, num_workers=n).train_dataloader() for n in (0, workers)]
    seen = []
    for loader in loaders:
        torch.rand(3)
        loader.batch_sampler.set_epoch(4)
        seen.append([(batch.images, [target.labels for target in batch.targets]) for batch in loader])
    assert len(seen[0]) == 3
    for (images, labels), (others, other_labels) in zip(*seen, strict=True):
        assert torch.equal(images, others)
        assert all(map(torch.equal, labels, other_labels))
    loaders[0].batch_sampler.set_epoch(5)
    assert not torch.equal(next(iter(loaders[0])).images, seen[0][0][0])


# --- augmentation


@given(
    seed=st.integers(0, 2**31),
    flip=st.sampled_from([0.0, 1.0]),
    vertical=st.sampled_from([0.0, 1.0]),
    share=st.sampled_from([0.5, 1.0]),
)
@settings(max_examples=40)
def test_labels_stay_on_their_pixels(seed, flip, vertical, share):
    pixels, labels = blocks(seed)
    augmentation = SemanticAugmentation(
        crop=(40, 40), flip=flip, flip_vertical=vertical, max_class_share=share, photometric=False
    )
    torch.manual_seed(seed)
    varied = augmentation(with_labels(Image.fromarray(pixels), torch.from_numpy(labels)), 48, 96)
    assert max(varied.size) <= 40
    assert min(varied.size) >= 24
    seen = varied.image.argmax(0).numpy()
    known = varied.labels.numpy() != IGNORED
    # Between blocks, bilinear pictures and nearest labels may differ; nowhere else.
    near_edge = torch.nn.functional.max_pool2d(edges(varied.labels)[None], 7, 1, 3)[0] > 0
    inner = known & ~near_edge.numpy()
    assert (seen == varied.labels.numpy())[inner].all()


def edges(labels: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(labels.shape)
    found[[0, -1]] = found[:, [0, -1]] = 1  # of the crop: a block may end right behind it
    found[1:] += labels[1:] != labels[:-1]
    found[:, 1:] += labels[:, 1:] != labels[:, :-1]
    return found


def test_a_crop_is_not_of_one_class_where_another_can_be_had():
    labels = torch.zeros(40, 200, dtype=torch.uint8)
    labels[:, 180:] = 1
    picture = Image.new("RGB", (200, 40))
    shares = {}
    for share in (0.75, 1.0):
        augmentation = SemanticAugmentation(scale=(1.0, 1.0), crop=(40, 40), max_class_share=share, photometric=False)
        torch.manual_seed(0)
        crops = [augmentation(with_labels(picture, labels), 40, 200).labels for _ in range(60)]
        shares[share] = sum(bool((crop == 1).float().mean() > 0.25) for crop in crops) / 60
    assert shares[0.75] > 3 * shares[1.0]


def test_large_scale_jitter_is_a_square_of_random_size(tmp_path):
    jitter = SemanticAugmentation(scale=(0.1, 2.0), crop=(64, 64), max_class_share=1.0)
    module = data(write_semantic(tmp_path), image_size=64, max_size=64, augmentation=jitter)
    samples = [module.samples["train"][(epoch, 0)] for epoch in range(20)]
    assert all(sample.image.shape == (3, 64, 64) for sample in samples)
    used = [int(sample.image.abs().sum((0, 1)).ne(0).sum()) for sample in samples]  # columns of picture
    assert min(used) < 40
    assert max(used) == 64
    for sample in samples:
        beyond = sample.image.abs().sum(0) == 0
        assert (sample.target.labels[beyond] == IGNORED).all()


def test_photometric_distortion_changes_colours_as_mmseg_does():
    grey = tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))
    colour = tv_tensors.Image(torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).clone())
    seen = set()
    for seed in range(200):
        torch.manual_seed(seed)
        varied = distort(grey)
        assert varied.dtype == torch.uint8
        assert (varied == varied[0]).all()  # neither saturation nor hue is anything to a grey
        seen.add(int(varied[0, 0, 0]))
    assert min(seen) < 60
    assert max(seen) > 160
    assert 100 in seen
    assert len(seen) > 40
    torch.manual_seed(3)
    assert distort(colour).shape == colour.shape


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_saturation_is_that_of_hsv(factor):
    from colorsys import hsv_to_rgb, rgb_to_hsv

    from focalnet.data.augment import _saturate

    colours = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(colours)
    for row in range(5):
        for column in range(5):
            hue, saturation, value = rgb_to_hsv(*colours[:, row, column].tolist())
            expected[:, row, column] = torch.tensor(hsv_to_rgb(hue, min(saturation * factor, 1), value))
    torch.testing.assert_close(_saturate(colours, factor), expected)


# --- what numbers mean


@given(
    numbers=st.lists(st.integers(0, 40), min_size=4, max_size=4),
    ignore=st.integers(0, 40),
    zero=st.booleans(),
    label_map=st.dictionaries(st.integers(0, 40), st.integers(0, 40), max_size=5),
)
def test_the_rule_is_what_it_says(numbers, ignore, zero, label_map):
    rule = LabelRule(ignore_index=ignore, reduce_zero_label=zero, label_map=label_map)
    labels = rule(np.array(numbers).reshape(2, 2), 100).ravel().tolist()
    for number, label in zip(numbers, labels, strict=True):
        number = label_map.get(number, number)
        ignored = number == ignore or (zero and number == 0)
        assert label == (IGNORED if ignored else number - zero)


@pytest.mark.parametrize(
    ("rule", "number", "expected"),
    [
        (LabelRule(), 3, "number 3 at row 0, column 1: classes are 0 to 2, ignored is 255"),
        (LabelRule(reduce_zero_label=True), 4, "number 4 .*: classes are 1 to 3, ignored is 255 and 0"),
        (LabelRule(ignore_index=11), 255, "number 255 .* ignored is 11"),
        (LabelRule(reduce_zero_label=True), 256, "number 256"),
        (LabelRule(), -1, "numbers from -1 to 0"),
        (LabelRule(), 70_000, "70000"),
    ],
)
def test_numbers_of_no_class_are_refused(rule, number, expected):
    with pytest.raises(ImageError, match=expected):
        rule(np.array([[0, number]]), 3)


MODES = {
    "L": lambda labels: Image.fromarray(labels),
    "I;16": lambda labels: Image.fromarray(labels.astype(np.uint16)),
    "1": lambda labels: Image.fromarray(labels == 1),
}


def palette(labels):
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette(list(np.random.default_rng(0).integers(0, 255, 768)))  # colours that mean nothing
    return image


@pytest.mark.parametrize("mode", [*MODES, "P"])
def test_label_maps_of_every_kind(tmp_path, mode):
    root = write_semantic(tmp_path)
    labels = blocks(100)[1]
    image = palette(labels) if mode == "P" else MODES[mode](labels)
    image.save(root / "masks/val/00.png")
    with Image.open(root / "masks/val/00.png") as stored:
        assert stored.mode == mode
    expected = (labels == 1).astype(int) if mode == "1" else labels
    assert np.array_equal(truth(data(root)), expected)


# --- 255 as an object, and a single class


def write_masks(root: Path, mode: str = "L", **parts: list[list[int]]) -> Path:
    """Pictures with masks of vertical stripes, by part: the numbers of each mask's stripes from left to right."""
    for part, masks in parts.items():
        for i, numbers in enumerate(masks):
            labels = np.repeat(np.array(numbers, np.uint8), WIDTH // len(numbers))[None].repeat(HEIGHT, 0)
            image = palette(labels) if mode == "P" else Image.fromarray(labels)
            for path, one in (("images", Image.new("RGB", labels.shape[::-1])), ("masks", image)):
                (root / path / part).mkdir(parents=True, exist_ok=True)
                one.save(root / f"{path}/{part}/{i:02}.png")
    return root


def pixels(module: SemanticData, part: str = "train") -> dict[int, int]:
    """Number of pixels by label."""
    samples = module.samples[part]
    labels = [samples.pairs.labels(i, samples.rule, len(samples.class_names)) for i in range(len(samples))]
    return dict(zip(*(found.tolist() for found in np.unique(labels, return_counts=True)), strict=True))


HALF = HEIGHT * WIDTH // 2


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize(
    "parts",
    [
        {"train": [[0, 255], [0, 255]], "val": [[255, 0]]},
        {"train": [[0, 0], [255, 255]], "val": [[0, 0]]},  # a part, or a mask, may hold one of the two
        {"train": [[0, 255], [255, 0]], "val": [[255, 255]], "test": [[0, 255]]},
    ],
)
def test_masks_of_0_and_255_are_background_and_object_aloud(tmp_path, caplog, capsys, parts, mode):
    root = write_masks(tmp_path, mode, **parts)
    module = data(root)
    assert module.class_names == ("class 0", "class 1")
    assert pixels(module) == {0: 2 * HALF, 1: 2 * HALF}
    assert sum("255 is read as class 1" in one and "data.ignore_index 255" in one for one in caplog.messages) == 1
    validated = data(root, "validate")
    assert pixels(validated, "val") == pixels(module, "val")
    assert main(["check-data", str(root)]) == 0
    assert "50.0 % class 0, 50.0 % class 1" in capsys.readouterr().err


def test_two_named_classes_say_what_255_is_and_more_do_not(tmp_path):
    root = write_masks(tmp_path, train=[[0, 255]] * 2, val=[[0, 255]])
    (root / "classes.txt").write_text("road\nhole")
    assert pixels(data(root)) == {0: 2 * HALF, 1: 2 * HALF}
    for names, way_out in ((["a", "b", "c"], r"data\.label_map \{255: 1\}"), (["a"], "one class")):
        with pytest.raises(DataError, match=rf"images/train: .*{way_out}"):
            data(root, class_names=names)
    assert pixels(data(root, class_names=["a", "b", "c"], label_map={255: 2})) == {0: 2 * HALF, 2: 2 * HALF}


@pytest.mark.parametrize(
    "parts",
    [
        {"train": [[0, 1, 255, 0]] * 2, "val": [[0, 1, 255, 0]]},
        {"train": [[0, 255, 1, 0], [0, 0]], "val": [[0, 255]]},
        {"train": [[0, 1]] * 2, "val": [[0, 255]]},
    ],
)
def test_a_border_of_255_stays_ignored(tmp_path, parts):
    module = data(write_masks(tmp_path, **parts))
    assert module.class_names == ("class 0", "class 1")
    assert [set(pixels(module, part)) for part in ("train", "val")] == [
        {IGNORED if number == 255 else number for mask in parts[part] for number in mask} for part in ("train", "val")
    ]


def test_255_that_never_meets_another_class_is_told(tmp_path, caplog, capsys):
    root = write_masks(tmp_path, train=[[0, 1], [0, 255]], val=[[0, 1]])
    data(root)
    assert "no mask with 255 has another class than 0" in caplog.text
    assert main(["check-data", str(root)]) == 0
    assert "data.label_map {255: 1}" in capsys.readouterr().err
    caplog.clear()
    data(root, ignore_index=255, label_map={})
    data(write_masks(tmp_path / "border", train=[[0, 1], [0, 1, 255, 255]], val=[[0, 1]]))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("numbers", "options", "expected"),
    [
        ([0, 255], {"ignore_index": 255}, r'"class 0".*50\.0 % .*ignored, which is 255: data\.label_map \{255: 1\}'),
        ([0, 255], {"label_map": {}}, r"data\.label_map \{255: 1\}"),
        ([1, 255], {}, r'"class 1".*data\.label_map \{255: 0\}'),
        ([0, 1], {"ignore_index": 1}, r"ignored, which is 1: data\.label_map \{1: 1\}"),
        ([0, 1], {"reduce_zero_label": True}, r"255 and 0.*data\.reduce_zero_label false"),
        ([0, 0], {}, "one class"),
        ([0, 0], {"class_names": ["a", "b"]}, 'one class, "a"'),
        ([255, 255], {}, "no pixel of its masks has a class"),
        ([0, 0], {"class_names": ["a"], "check": False}, 'one class only, "a"'),
    ],
)
def test_a_single_class_is_not_trained_on(tmp_path, capsys, numbers, options, expected):
    root = write_masks(tmp_path, train=[numbers] * 2, val=[numbers])
    with pytest.raises(DataError, match=f"images/train: .*{expected}"):
        data(root, **options)
    if options.keys() <= {"ignore_index", "reduce_zero_label"}:
        more = {"ignore_index": ["--ignore-index", str(options.get("ignore_index"))]}.get(next(iter(options), ""), [])
        more += ["--reduce-zero-label"] if options.get("reduce_zero_label") else []
        assert main(["check-data", str(root), *more]) == 2
        assert sum("images/train: " in line for line in capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(("ignored", "number"), [(255, 255), (1, 1), (None, 255)])
def test_the_way_out_works(tmp_path, capsys, ignored, number):
    root = write_masks(tmp_path, train=[[0, number]] * 2, val=[[0, number]])
    assert pixels(data(root, ignore_index=255, label_map={number: 1})) == {0: 2 * HALF, 1: 2 * HALF}
    options = [] if ignored is None else ["--ignore-index", "255"]
    assert main(["check-data", str(root), *options, "--label-map", f"{{{number}: 1}}"]) == 0
    assert "50.0 % class 1" in capsys.readouterr().err
    assert main(["check-data", str(root), "--label-map", "255"]) == 2
    assert '"{255: 1}"' in capsys.readouterr().err


def test_unchecked_masks_that_may_be_objects_are_refused(tmp_path):
    root = write_masks(tmp_path, train=[[0, 255]] * 2, val=[[0, 255]])
    names = {"class_names": ["a", "b"], "check": False}
    with pytest.raises(DataError, match=r"data\.label_map \{255: 1\}.*data\.ignore_index 255.*data\.check true"):
        data(root, **names)
    assert pixels(data(root, **names, label_map={255: 1})) == {0: 2 * HALF, 1: 2 * HALF}
    assert pixels(data(root, **names, ignore_index=255)) == {0: 2 * HALF, IGNORED: 2 * HALF}


def test_masks_that_cannot_be_read_are_not_said_to_be_of_one_class(tmp_path, capsys):
    root = write_masks(tmp_path, train=[[0, 1]] * 2, val=[[0, 1]])
    for path in (root / "masks/train").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    for options in ({}, {"on_error": "skip"}, {"class_names": ["a", "b"]}):
        with pytest.raises(DataError, match=r"masks/train/00\.png: .*damaged"):
            data(root, **options)
    assert main(["check-data", str(root)]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("number", [2, 128, 254, 255])
def test_masks_of_0_and_one_other_number_are_background_and_object_aloud(tmp_path, caplog, number):
    module = data(write_masks(tmp_path, train=[[0, number]] * 2, val=[[0, number]]))
    assert pixels(module) == {0: 2 * HALF, 1: 2 * HALF}
    assert f"so {number} is read as class 1, as by data.label_map {{{number}: 1}}" in caplog.text
    caplog.clear()
    assert data(tmp_path, label_map={number: 1}, ignore_index=number).num_classes == 2
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0, 50, 100, 150], r"4 numbers up to 150: 0, 50, 100, 150; data\.label_map \{50: 1, 100: 2, 150: 3\}"),
        ([0, 128, 255, 128], r"2 numbers up to 128 \(255 is ignored\): 0, 128, 255; data\.label_map \{128: 1\}"),
        ([64, 192], r"data\.label_map \{64: 0, 192: 1\}"),
        ([0, 1, 254, 255], "create them again"),
    ],
)
def test_numbers_with_gaps_are_refused(tmp_path, capsys, numbers, expected):
    root = write_masks(tmp_path, train=[numbers] * 2, val=[numbers])
    with pytest.raises(DataError, match=f"images/train: its masks hold .*{expected}"):
        data(root)
    assert main(["check-data", str(root)]) == 2
    assert "its masks hold" in capsys.readouterr().out
    assert data(root, class_names=[str(i) for i in range(254)], label_map={254: 2}).num_classes == 254


def test_more_numbers_than_classes_are_refused_unless_listed(tmp_path):
    root = write_masks(tmp_path, train=[list(range(64)), list(range(64, 128))], val=[[0, 1]])
    with pytest.raises(DataError, match=r"128 numbers up to 127, more than 100 classes.*classes\.txt"):
        data(root)
    assert data(root, class_names=[str(i) for i in range(128)]).num_classes == 128


def test_a_class_without_pixels_is_told(tmp_path, caplog):
    assert data(write_masks(tmp_path, train=[[0, 1, 3, 4]] * 2, val=[[0, 1]])).num_classes == 5
    assert "no pixel of its masks is 2" in caplog.text
    caplog.clear()
    data(write_masks(tmp_path / "one", train=[[1, 2]] * 2, val=[[1, 2]]))
    assert "data.reduce_zero_label true counts them from 1" in caplog.text


def test_masks_that_are_mostly_ignored_are_refused_unless_asked_for(tmp_path):
    root = write_masks(tmp_path, train=[[1, 2, 255, 255, 255, 255, 255, 255]] * 2, val=[[1, 2]])
    with pytest.raises(DataError, match=r"75\.0% of its pixels are 255.*data\.ignore_index 255.*label_map \{255: 0\}"):
        data(root)
    assert pixels(data(root, ignore_index=255)) == {1: HALF // 2, 2: HALF // 2, IGNORED: 3 * HALF}
    assert set(pixels(data(root, label_map={255: 0}))) == {0, 1, 2}


def test_a_split_to_evaluate_on_needs_labels(tmp_path):
    root = write_masks(tmp_path, train=[[0, 1]] * 2, val=[[255, 255]])
    with pytest.raises(DataError, match="images/val: no pixel of its masks has a class"):
        data(root)


# --- where they are found


def moved(root: Path, layout: str) -> Path:
    """The data set in another person's folders."""
    write_semantic(root)
    if layout == "parts first":
        for part in ("train", "val"):
            for folder in ("images", "masks"):
                (root / part).mkdir(exist_ok=True)
                (root / folder / part).rename(root / part / folder)
    elif layout == "ade20k":
        (root / "masks").rename(root / "annotations")
        for folder in ("images", "annotations"):
            (root / folder / "train").rename(root / folder / "training")
            (root / folder / "val").rename(root / folder / "validation")
    elif layout == "tar":
        names = [p for folder in ("images", "masks") for p in sorted((root / folder).rglob("*.png"))]
        write_tar(root / "all.tar", {p.relative_to(root).as_posix(): p.read_bytes() for p in names})
        shutil.rmtree(root / "images")
        shutil.rmtree(root / "masks")
    elif layout == "subfolders":
        for folder in ("images", "masks"):
            (root / folder / "val/city").mkdir()
            (root / folder / "val/00.png").rename(root / folder / "val/city/00.png")
    return root


@pytest.mark.parametrize("layout", ["as is", "parts first", "ade20k", "tar", "subfolders"])
def test_usual_layouts_are_found(tmp_path, layout):
    module = data(moved(tmp_path, layout))
    assert [len(module.samples[part]) for part in ("train", "val")] == [6, 6]
    found = {truth(module, i).tobytes() for i in range(6)}
    assert found == {blocks(100 + i)[1].astype(np.int64).tobytes() for i in range(6)}


def test_own_folders_parts_and_suffixes(tmp_path):
    for i in range(3):
        write_pair(tmp_path / f"photos/a/{i}.jpg", tmp_path / f"truth/a/{i}_mask.png", i)
        write_pair(tmp_path / f"photos/b/{i}.png", tmp_path / f"truth/b/{i}_mask.png", i)
    own = {"images": "photos", "masks": "truth", "mask_suffix": "_mask", "train_split": "a", "val_split": "b"}
    module = data(tmp_path, **own)
    assert len(module.samples["val"]) == 3
    assert module.class_names == ("class 0", "class 1", "class 2")  # as many as the training masks have
    assert data(tmp_path, class_names=["x", "y", "z"], **own).class_names == ("x", "y", "z")


def test_without_parts_some_are_held_out(tmp_path, caplog):
    for i in range(10):
        write_pair(tmp_path / f"images/{i}.png", tmp_path / f"masks/{i}.png", i)
    module = data(tmp_path)
    assert [len(module.samples[part]) for part in ("train", "val")] == [8, 2]
    assert caplog.text.count("20 % of its images are held out") == 1
    assert len(module.find("test")) == 2  # never images of training
    module = data(tmp_path, holdout=0.3)
    names = [{module.samples[part].path(i) for i in range(len(module.samples[part]))} for part in ("train", "val")]
    assert [len(part) for part in names] == [7, 3]
    assert not names[0] & names[1]
    other = data(tmp_path, holdout=0.3, seed=5)
    assert {other.samples["val"].path(i) for i in range(3)} == names[1]


def test_cityscapes(tmp_path):
    _, labels = blocks(0)
    ids = np.array([7, 8, 26, 3])[np.where(labels == 255, 3, labels)].astype(np.uint8)  # road, sidewalk, car, ego
    for part in ("train", "val"):
        for i in range(2):
            stem = f"gtFine/{part}/aachen/aachen_{i}"
            write_pair(
                tmp_path / f"leftImg8bit/{part}/aachen/aachen_{i}_leftImg8bit.png", tmp_path / f"{stem}_x.png", 0
            )
            (tmp_path / f"{stem}_x.png").unlink()
            Image.fromarray(ids).save(tmp_path / f"{stem}_gtFine_labelIds.png")
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{stem}_gtFine_color.png")
    module = data(tmp_path)
    assert module.num_classes == 19
    assert module.class_names[13] == "car"
    by_ids = truth(module)
    assert np.array_equal(by_ids, np.array([0, 1, 13, 255])[np.where(labels == 255, 3, labels)])
    for path in list(tmp_path.rglob("*_gtFine_labelIds.png")):
        Image.fromarray(by_ids.astype(np.uint8)).save(str(path).replace("labelIds", "labelTrainIds"))
    assert np.array_equal(truth(data(tmp_path)), by_ids)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.json", json.dumps({"classes": ["a", "b", "c"], "ignore_index": 2, "palette": [[0, 0, 0]]})),
        ("classes.json", json.dumps(["a", "b", "c"])),
        ("classes.txt", "a\nb\nc\n"),
        ("objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t1\t1\ta\n2\t0\t1\t1\t1\tb, b;B\n"),
    ],
)
def test_lists_of_classes(tmp_path, name, content):
    root = write_semantic(tmp_path)
    (root / "classes.txt").unlink()
    (root / name).write_text(content)
    module = data(root, label_map={255: 2} if "ignore" in content else {})
    assert module.class_names == (("a", "b, b") if "150" in name else ("a", "b", "c"))
    labels = blocks(100)[1]
    if "150" in name:  # ADE20K counts from 1
        expected = np.where((labels == 0) | (labels == 255), 255, labels.astype(int) - 1)
        assert np.array_equal(truth(module), expected)
    elif "ignore" in content:
        assert np.array_equal(truth(module), np.where(labels == 2, IGNORED, labels))


def test_camvid_and_ade20k_are_read(shared):
    camvid = SemanticData(shared / "data/camvid", check=False, image_size=90, max_size=120, num_workers=0)
    camvid.setup("test")
    assert (len(camvid.samples["test"]), camvid.num_classes, camvid.class_names[0]) == (233, 11, "Sky")
    sample = camvid.samples["test"][0]
    assert sample.image.shape == (3, 90, 120)
    assert sample.target.labels.shape == (360, 480)
    assert set(sample.target.labels.unique().tolist()) <= {*range(11), IGNORED}
    ade20k = SemanticData(shared / "data/ade20k_sample", num_workers=0)
    ade20k.setup("validate")
    assert (len(ade20k.samples["val"]), ade20k.num_classes, ade20k.class_names[2]) == (3, 150, "sky")
    stored = np.asarray(Image.open(shared / "data/ade20k_sample/annotations/validation/ADE_val_00000001.png")).astype(
        int
    )
    assert np.array_equal(truth(ade20k), np.where(stored == 0, 255, stored - 1))


# --- what is refused, before training starts


def spoiled(root: Path) -> Path:
    """Six things are wrong with it."""
    write_semantic(root)
    _, labels = blocks(0)
    (root / "images/train/00.png").unlink()
    (root / "masks/train/01.png").unlink()
    Image.fromarray(labels[:, :60]).save(root / "masks/train/02.png")
    Image.fromarray(np.where(labels == 2, 7, labels).astype(np.uint8)).save(root / "masks/train/03.png")
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(root / "masks/val/00.png")
    (root / "masks/val/01.png").write_bytes((root / "masks/val/01.png").read_bytes()[:60])
    return root


def test_check_data_names_every_problem_and_ends_in_exit_code_2(tmp_path, capsys):
    assert main(["check-data", str(write_semantic(tmp_path / "good")), "--decode"]) == 0
    assert "6 images; " in capsys.readouterr().err
    assert main(["check-data", str(spoiled(tmp_path / "bad"))]) == 2
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 6
    for file, expected in (
        ("train/00.png", "has no image"),
        ("train/01.png", "has no mask"),
        ("train/02.png", "60 x 48 pixels, its image"),
        ("train/03.png", "the number 7 at row"),
        ("val/00.png", "mode RGB"),
        ("val/01.png", "truncated or damaged"),
    ):
        assert sum(file in line and expected in line for line in lines) == 1, (file, lines)
    assert printed.err.splitlines()[-1].endswith("6 problems, listed above")
    (tmp_path / "good/images/val/02.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["check-data", str(tmp_path / "good")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["check-data", str(tmp_path / "empty")]) == 2
    assert "images/train and masks/train" in capsys.readouterr().err


def test_problems_stop_training_before_it_starts_unless_skipped(tmp_path, caplog):
    root = spoiled(tmp_path)
    with pytest.raises(DataError, match=r"has no mask.*has no image.*and 1 more.*check-data"):
        data(root)
    module = data(root, on_error="skip")
    assert "left out what is wrong" in caplog.text
    assert [len(module.samples[part]) for part in ("train", "val")] == [2, 4]
    unchecked = data(root, on_error="skip", check=False)
    assert [len(unchecked.samples[part]) for part in ("train", "val")] == [4, 6]
    assert sum(len(batch.paths) for batch in unchecked.train_dataloader()) == 4  # others take their place
    with pytest.raises(ImageError, match=r"val/00\.png: is an image in colors.*on_error"):
        list(data(root, "validate", check=False).val_dataloader())


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"images": "photos"}, ConfigError, "go together"),
        ({"images": "photos", "masks": "truth"}, DataError, "no images with masks for train"),
        ({"val_split": "dev"}, DataError, "no images with masks for dev"),
        ({"batch_size": 7}, DataError, "do not fill one batch"),
        ({"ignore_index": 70000}, ConfigError, "between 0 and 65535"),
        ({"class_names": "names.txt"}, DataError, "names.txt"),
        ({"class_names": [str(i) for i in range(255)]}, DataError, "at most 254"),
        ({"class_names": ["a"]}, DataError, "classes are 0 to 0"),
        ({"max_size": 10}, ConfigError, "max_size"),
        ({"holdout": 1.0}, ConfigError, "holdout"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, error, expected):
    with pytest.raises(error, match=expected):
        data(write_semantic(tmp_path), **options)


@pytest.mark.parametrize("options", [{"scale": (2.0, 1.0)}, {"crop": (0, 5)}, {"flip": 2.0}, {"max_class_share": -1.0}])
def test_impossible_augmentations_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SemanticAugmentation(**options)


def test_unchecked_masks_need_a_list_of_classes(tmp_path):
    root = write_semantic(tmp_path)
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"data.class_names"):
        data(root, check=False)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"classes": [1]}', '{"names": ["a"]}', '{"classes": ["a"], "ignore_index": "x"}']
)
def test_files_that_list_no_classes_are_refused(tmp_path, content):
    root = write_semantic(tmp_path)
    (root / "classes.json").write_text(content)
    with pytest.raises(DataError, match=r"classes\.json: cannot be read as a list of classes"):
        data(root)
