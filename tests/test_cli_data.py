"""``focalnet convert-data`` as typed, and whether ``check-data`` and training take what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from focalnet.cli.main import main
from tests.data.coco import content, write_coco, write_images, write_json
from tests.data.conftest import folder as folder
from tests.data.formats.test_sets import yolo
from tests.data.panoptic import write_panoptic
from tests.data.semantic import write_semantic
from tests.data.voc import write_split, write_voc
from tests.test_cli import refused, run


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three pictures with cats and dogs; two are to train, one is to validate."""
    root = tmp_path / "VOC2012"
    write_voc(root, "a", ("dog", (1, 1, 40, 30), 0), ("cat", (41, 31, 80, 60), 1))
    write_voc(root, "b", ("dog", (11, 11, 30, 30), 0))
    write_voc(root, "c", ("cat", (1, 1, 20, 20), 0))
    write_split(root, "train", "a", "b")
    write_split(root, "val", "c")
    return root


def written(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in (".json", ".part"))


def test_voc_becomes_data_to_train_on(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from focalnet.data import DetectionData

    target = voc / "annotations/instances_train.json"
    found = run("convert-data", str(voc), str(target), "--split", "train")
    assert (found.returncode, found.stdout, found.stderr) == (0, f"wrote {target}\n", "")
    assert main(["convert-data", str(voc), str(voc / "annotations/instances_val.json"), "--split", "val"]) == 0
    assert main(["check-data", str(voc), "--decode"]) == 0
    shown = capsys.readouterr().err
    assert "2 images; 0 cat, 2 dog" in shown  # the difficult cat is a crowd region
    assert "1 images; 1 cat, 0 dog" in shown
    data = DetectionData(voc, masks=False, batch_size=1, num_workers=0)
    data.setup("fit")
    assert data.class_names == ("cat", "dog")
    assert [len(samples) for samples in data.samples.values()] == [2, 1]


def test_listed_classes_are_labels_in_their_order(voc: Path, tmp_path: Path) -> None:
    from focalnet.data.formats.coco import read_coco

    (tmp_path / "classes.txt").write_text("dog\ncat\nbird\n")
    target = tmp_path / "all.json"
    assert main(["convert-data", str(voc), str(target), "--class-names", str(tmp_path / "classes.txt")]) == 0
    coco = read_coco(target)
    assert (coco.class_names, len(coco.images)) == (("dog", "cat", "bird"), 3)


def test_an_existing_file_is_kept_unless_told_otherwise(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = voc / "train.json"
    target.write_text("mine")
    assert "--force" in refused(capsys, "convert-data", str(voc), str(target))
    assert target.read_text() == "mine"
    assert main(["convert-data", str(voc), str(target), "--force"]) == 0
    assert target.read_text().startswith("{")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--split", "test"], ["test.txt"]),
        (["--class-names", "absent.txt"], ["absent.txt"]),
        (["--classes", "dog"], ["--classes", "focalnet convert-data --help"]),
    ],
)
def test_what_is_wrong_with_an_option_is_named(capsys, voc: Path, options: list[str], expected: list[str]) -> None:
    message = refused(capsys, "convert-data", str(voc), str(voc / "all.json"), *options)
    for text in expected:
        assert text in message
    assert written(voc) == []


def test_check_data_says_what_training_would_read(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", str(voc)]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert "val.txt (Pascal VOC): 1 of its images is also in" in shown[2]  # all are of one color
    assert shown[:2] == [
        f"{voc}/ImageSets/Main/train.txt (Pascal VOC): 2 images; 0 cat, 2 dog; 80 x 60 pixels; boxes only",
        f"{voc}/ImageSets/Main/val.txt (Pascal VOC): 1 images; 1 cat, 0 dog; 80 x 60 pixels; boxes only",
    ]
    single = content(30)
    single["categories"] += [{"id": 100 + i, "name": f"class {i}"} for i in range(40)]
    single["annotations"] += [
        {"id": 900 + i, "image_id": 10, "category_id": 3, "bbox": [1, 1, 0, 0]} for i in range(50)
    ]
    del single["annotations"][0]["segmentation"]
    root = tmp_path / "single"
    write_json(root / "result.json", single)
    write_images(root / "images", single)
    assert main(["check-data", str(root)]) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 21
    assert "and 30 more like the last" in printed.out
    assert "training holds out 20 % of its images" in printed.err
    assert "29 images; 29 ant, 29 bee" not in printed.err  # image 10 has objects without a place, and is left out
    assert "29 images; 28 ant, 28 bee" in printed.err
    assert "and 22 more classes; 80 x 60 pixels; outlines of 57 of 108 objects" in printed.err
    assert max(map(len, [*printed.out.splitlines(), *printed.err.splitlines()])) < 500


def test_check_data_knows_class_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(folder), "--decode"]) == 0
    shown = capsys.readouterr().err
    assert "train: 24 images; 8 ant, 8 bee, 8 cat; 12 x 12 pixels" in shown
    assert "val: 9 images; 3 ant, 3 bee, 3 cat" in shown
    (folder / "train/bee/000.jpg").write_bytes(b"")
    assert main(["check-data", str(folder), "--decode"]) == 2
    assert "bee/000.jpg: is empty" in capsys.readouterr().out
    assert main(["check-data", str(folder / "train")]) == 0
    assert "holds out 20 % of each class" in capsys.readouterr().err


def test_check_data_compares_the_classes_of_splits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "val/bee")
    assert main(["check-data", str(folder)]) == 2
    assert "val: its classes differ from those of" in capsys.readouterr().out


@pytest.mark.parametrize("write", [write_coco, write_panoptic])
def test_check_data_names_images_that_splits_share(write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)  # both splits the same
    assert main(["check-data", str(tmp_path)]) == 0
    shown = capsys.readouterr().err
    assert "val.json: 6 of its images are also in" in shown
    assert f"{tmp_path}/val/01.png is {tmp_path}/train/01.png" in shown


def test_check_data_names_shared_images_of_folders_tables_and_label_maps(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "train/bee/001.jpg", folder / "val/ant/copy.jpg")
    tables = write_tables(tmp_path / "tables", train="path,labels 0.png,cat 1.png,dog", val="path,labels 1.png,dog")
    maps = write_semantic(tmp_path / "maps")
    shutil.copy(maps / "images/train/00.png", maps / "images/val/02.png")
    for root, expected in ((folder, "val/ant/copy.jpg is"), (tables, "images/1.png"), (maps, "images/val/02.png is")):
        main(["check-data", str(root)])
        assert expected in capsys.readouterr().err.split("also in")[1]


def test_check_data_reads_every_split_of_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yolo(tmp_path)
    (tmp_path / "images/val").mkdir()
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "images/val/c.jpg")
    (tmp_path / "labels/val").mkdir()
    (tmp_path / "labels/val/c.txt").write_text("5 0.5 0.5 0.5 0.5\n")
    assert main(["check-data", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "data.yaml (YOLO): train: 2 images" in shown.err
    assert "has class 5, and there are 2" in shown.err + shown.out


def test_check_data_names_images_and_masks_that_do_not_match(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("one/train/images/a.jpg", "one/train/masks/b.png", "two/train/img/{}.jpg", "two/train/gt/{}.png"):
        for name in "ab":
            path = tmp_path / place.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(path)
    assert main(["check-data", str(tmp_path / "one")]) == 2
    assert "train/images/a.jpg: has no mask" in capsys.readouterr().out
    assert "--images img --label-maps gt" in refused(capsys, "check-data", str(tmp_path / "two"))
    write_json(tmp_path / "three/train.json", {"images": [], "categories": []})
    assert 'has no list "annotations"' in refused(capsys, "check-data", str(tmp_path / "three"))


def test_what_is_wrong_with_the_data_is_named(capsys, voc: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.json"
    (tmp_path / "classes.txt").write_text("dog\n")
    assert 'class "cat" is not among dog' in refused(
        capsys, "convert-data", str(voc), str(target), "--class-names", str(tmp_path / "classes.txt")
    )
    assert "no XML files" in refused(capsys, "convert-data", str(tmp_path / "nowhere"), str(target))
    assert "cannot write" in refused(capsys, "convert-data", str(voc), str(tmp_path / "classes.txt/all.json"))
    (voc / "Annotations/a.xml").write_text("<annotation>")
    assert "a.xml: cannot be read as XML" in refused(capsys, "convert-data", str(voc), str(target))
    assert written(tmp_path) == []


def write_tables(root: Path, images: int = 8, **tables: str) -> Path:
    """Images ``images/0.png``, ..., and a table of labels for each split."""
    (root / "images").mkdir(parents=True)
    for i in range(images):
        Image.new("RGB", (12, 10)).save(root / f"images/{i}.png")
    for split, text in tables.items():
        (root / f"{split}.csv").write_text(text.replace(" ", "\n"))
    return root


def test_check_data_lists_all_that_is_wrong_with_tables_of_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = (
        "image,labels 0.png,cat|dog 1.png, 2.png,dog 3.png,nan 2.png,cat 2.png,dog x.png,cat ./0.png,cat ,dog 4.png,a,9"
    )
    val = "image,labels 5.png,dogs 6.png,dog 2.png,cat z.png,dog"
    root = write_tables(tmp_path / "photos", train=train, val=val)
    (root / "images/6.png").write_bytes(b"")
    assert main(["check-data", str(root), "--decode"]) == 2
    shown = capsys.readouterr()
    lines = {line.removeprefix(f"{root}/") for line in shown.out.splitlines()}
    rows = "each image needs one row with all of its labels, and these have"
    assert lines == {
        'train.csv: line 5: has the label "nan"; leave the cell empty for an image of no class, or list the class in a '
        "data.class_map",
        f'train.csv: line 6: "2.png" is in lines 4 and 6; {rows} different labels',
        f'train.csv: line 7: "2.png" is in lines 4 and 7; {rows} the same labels',
        f'train.csv: line 8: the image "x.png": not in {root}/images',
        f'train.csv: line 9: "./0.png" is in lines 2 and 9; {rows} different labels',
        'train.csv: line 10: names no image in column "image"',
        "train.csv: line 11: has 3 columns, the first line names 2",
        'val.csv: line 2: the class "dogs" is not among the 2 of the training images or the class map; did you mean '
        '"dog"?; list all classes in a data.class_map',
        f'val.csv: line 5: the image "z.png": not in {root}/images',
        f"val.csv: {root}/images/6.png: is empty (0 bytes)",
    }
    assert "train.csv: 3 images; 1 cat, 2 dog, 1 without a class; 12 x 10 pixels" in shown.err
    assert "also in the table of another split: 1 of 3, 1 of them with different labels" in shown.err
    assert "10 problems, listed above" in shown.err
    assert main(["check-data", str(root / "val.csv")]) == 2  # alone: its own classes are all there are
    assert "1 problem, listed above" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tables", "code", "expected"),
    [
        ({"train": "image,labels 0.png,cat 1.png,dog"}, 0, "every image has exactly one class"),
        ({"train": "image,labels 0.png,cat 1.png,"}, 0, "20 % of its images are held out"),
        ({"labels": "image;cat;dog 0;1;1 1;0;0"}, 0, "labels.csv: 2 images; 1 cat, 1 dog, 1 without a class"),
        (
            {"labels": "image,cat,dog 0,1,1 1,0,0", "val": "image,cat,cow 2,1,0"},
            2,
            'val.csv: has no column for the class "dog"',
        ),
        ({"train": "image,labels 0.png,cat|dog", "val": "image,labels 1.png,dog"}, 0, "no image has the class cat"),
        ({"train": "image,labels 0.png, 1.png,"}, 2, "train.csv: no image has any class"),
        ({"train": "image,labels,fold 0.png,cat,1"}, 2, "which columns hold the labels?"),
        ({"train": "image,labels p.png,cat"}, 2, "train.csv: none of its images (p.png, ...) is there"),
    ],
)
def test_check_data_says_what_is_odd_about_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tables: dict[str, str], code: int, expected: str
) -> None:
    root = write_tables(tmp_path / "photos", **tables)
    assert main(["check-data", str(root)]) == code
    shown = capsys.readouterr()
    assert expected in shown.out + shown.err


def test_check_data_takes_the_columns_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tables(tmp_path / "kaggle")
    (root / "train.csv").write_text("Id,Tags,fold\n0,cat dog,1\n1,,2\n2,dog,1\n")
    assert main(["check-data", str(root)]) == 2
    assert "which of its columns names the images? data.image_column says it" in capsys.readouterr().out
    columns = ["--image-column", "Id", "--label-column", "Tags", "--label-delimiter", " "]
    assert main(["check-data", str(root), *columns]) == 0
    assert "3 images; 1 cat, 2 dog, 1 without a class" in capsys.readouterr().err
    (root / "train.csv").write_text("Id,cat,dog,fold\n0,1,1,1\n1,0,0,2\n")
    assert main(["check-data", str(root), "--image-column", "Id", "--class-columns", "[dog, cat]"]) == 0
    assert "2 images; 1 dog, 1 cat, 1 without a class" in capsys.readouterr().err
    assert 'e.g. "[cat, dog]"' in refused(capsys, "check-data", str(root), "--class-columns", "{cat: dog}")


def test_check_data_reads_class_folders_beside_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.csv").write_text("image,label\ntrain/bee/000.jpg,bee\n")
    assert main(["check-data", str(folder)]) == 0
    assert "train: 24 images; 8 ant, 8 bee, 8 cat" in capsys.readouterr().err
    assert main(["check-data", str(folder / "train.csv")]) == 0
    assert "train.csv: 1 images; 1 bee" in capsys.readouterr().err
