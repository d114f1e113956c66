"""The commands of docs/data/objects.md do what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from focalnet.cli.main import main
from focalnet.data import DetectionData
from tests.data.coco import content, write_images, write_json
from tests.data.formats import test_sets as formats
from tests.data.voc import write_split, write_voc

pytest.importorskip("pycocotools", reason="detection needs the extra dense")
PAGE = (Path(__file__).parents[1] / "docs/data/objects.md").read_text()
COMMANDS = [line for line in re.findall(r"^focalnet .*$", PAGE, re.MULTILINE) if "FOLDER" not in line]


def write_sets(root: Path) -> None:
    """The folders that the page names."""
    formats.yolo(root / "yolo")
    for name, split in (("a", "train"), ("b", "val")):
        write_voc(root / "voc", name, ("dog", (1, 1, 40, 30), 0))
        write_split(root / "voc", split, name)
    formats.cvat(root / "cvat")
    formats.label_studio(root / "label_studio")
    formats.labelme(root / "labelme")
    formats.via(root / "via")
    formats.open_images(root / "open_images")
    write_json(root / "coco/result.json", content())
    write_images(root / "coco/images", content())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(command, tmp_path, monkeypatch, caplog):
    write_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(command)
    if name == "fit":
        assert arguments[:2] == ["detection/finetune", "--data.root"]
        root, *rest = arguments[2:]
        holdout = {"holdout": float(rest[1])} if rest else {}
        # Boxes only: the sets of the tests mix objects with and without outlines.
        data = DetectionData(root, masks=False, batch_size=1, num_workers=0, **holdout)
        data.setup("fit")
        assert data.num_classes in (1, 2)
        assert ("held out" in caplog.text) == (root not in ("yolo", "voc") and not rest)
    else:
        assert main([name, *arguments]) == 0


def test_the_page_has_commands():
    assert len(COMMANDS) > 20
