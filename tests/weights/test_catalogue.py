"""Every entry of the catalogue says something true and complete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm

from focalnet import registry, weights
from focalnet.errors import CheckpointError, DownloadError, UnknownName
from focalnet.models.variants import VARIANTS
from focalnet.weights import catalogue
from focalnet.weights.catalogue import Entry
from tests.parity.golden import GOLDEN

DETECTORS = {name: v for f in registry.families() if "detection" == f.tasks[0] for name, v in f.variants.items()}
SEGMENTERS = {name: v for f in registry.families() if "semantic" in f.tasks for name, v in f.variants.items()}
CLASSIFICATION = [entry for entry in catalogue.entries().values() if entry.task == "classification"]
DETECTION = [entry for entry in catalogue.entries().values() if entry.network in DETECTORS]
SEGMENTATION = [entry for entry in catalogue.entries().values() if entry.network in SEGMENTERS]
DENSE = [entry for entry in catalogue.entries().values() if not entry.loadable]


def by_name(entries: list[Entry]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", entries, ids=[entry.name for entry in entries])


@by_name([*CLASSIFICATION, *DETECTION, *SEGMENTATION, *DENSE])
def test_an_entry_is_complete(entry: Entry) -> None:
    assert entry.architecture in VARIANTS
    assert entry.licence in ("MIT", "Apache-2.0")
    assert entry.published
    assert entry.sources or entry.embedded
    assert "." in entry.name
    for source in entry.sources:
        assert re.fullmatch(r"[\w.-]+\.(pth|bin|safetensors)", source.file)
        assert source.address.startswith("https://")
        assert source.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert (source.dead is not None) == ("projects4jw" in source.address)
    assert all(0 < value < 100 for value in entry.metrics.values())


@by_name([entry for entry in CLASSIFICATION if not entry.embedded])
def test_labels_and_size_are_the_architecture_s(entry: Entry) -> None:
    variant = VARIANTS[entry.architecture]
    assert len(weights.class_names(entry.labels)) == variant.num_classes
    assert entry.preprocessing.image_size == variant.image_size
    for setting, value in entry.settings.items():
        assert variant.shape.get(setting, False) == value


@by_name(DETECTION)
def test_a_detector_says_what_it_is_built_on_and_what_it_finds(entry: Entry) -> None:
    assert DETECTORS[str(entry.network)].backbone == entry.architecture
    assert entry.loadable
    assert len(weights.class_names(entry.labels)) == {"coco": 80, "objects365": 365}[entry.labels]
    assert len(entry.card("file").category_ids) == len(weights.class_names(entry.labels))
    assert (entry.preprocessing.image_size, entry.preprocessing.max_size) == (800, 1333)
    if entry.labels == "coco":
        assert entry.metrics["coco_box_ap"] > 40
    else:
        assert entry.metrics == {}
        assert "called by their numbers" in str(entry.note)
    released = str(entry.network).startswith("dino_")  # the others are gone; docs/weights.md says so
    assert entry.available == released


@by_name(SEGMENTATION)
def test_a_segmenter_says_what_it_is_built_on_and_what_it_tells_apart(entry: Entry) -> None:
    variant = SEGMENTERS[str(entry.network)]
    assert variant.backbone == entry.architecture
    assert entry.loadable
    assert len(weights.class_names(entry.labels)) == registry.configure(str(entry.network)).num_classes == 150
    assert (entry.preprocessing.image_size, entry.preprocessing.max_size) == (512, 2048)
    assert 46 < entry.metrics["ade20k_miou"] < entry.metrics["ade20k_miou_ms"]
    released = str(entry.network).startswith("dino_")  # the others are gone; docs/weights.md says so
    assert entry.available == released


def test_all_six_published_segmenters_are_listed() -> None:
    assert len(SEGMENTATION) == 6


def test_files_have_different_names_in_the_cache() -> None:
    files = [source.file for entry in catalogue.entries().values() for source in entry.sources if source.url]
    names = {entry.name for entry in catalogue.entries().values()}
    by_file: dict[str, set[str]] = {}
    for entry in catalogue.entries().values():
        for source in entry.sources:
            if source.url:
                by_file.setdefault(source.file, set()).add(entry.name)
    assert len(files) > len(names) / 2
    assert all(len(owners) == 1 for owners in by_file.values())


def test_every_timm_checkpoint_is_listed_with_timm_s_facts() -> None:
    names = timm.list_models("focalnet_*", pretrained=True)
    assert len(names) == 12
    for name in names:
        entry, theirs = catalogue.find(name), timm.get_pretrained_cfg(name)
        assert any(source.hub == f"timm/{name}" for source in entry.sources)
        assert entry.preprocessing.image_size == theirs.input_size[-1]
        assert entry.preprocessing.mean == theirs.mean
        assert entry.preprocessing.std == theirs.std
        assert entry.licence.lower() == theirs.license
        headless = theirs.num_classes == 0
        assert headless == (entry.note is not None and "num_classes=0" in entry.note)


def test_the_published_figures_are_those_of_the_readme() -> None:
    tables = json.loads((GOLDEN / "published_results.json").read_text())["tables"]
    figures = {"Top-1": "imagenet1k_top1", "box mAP": "coco_box_ap", "mask mAP": "coco_mask_ap"}
    figures |= {"mIoU": "ade20k_miou", "mIoU (MS)": "ade20k_miou_ms"}
    by_file = {s.file: e for e in catalogue.entries().values() for s in e.sources if s.dead}
    rows = [row for table in tables for row in table["rows"]]
    assert {row["checkpoint_file"] for row in rows} == by_file.keys()
    for row in rows:
        published = {figures[column]: value for column, value in row.items() if column in figures}
        assert by_file[row["checkpoint_file"]].metrics == published


def test_every_published_dino_is_listed_with_its_figure() -> None:
    name = "dino_focalnet_large_"
    assert {e.name.removeprefix(name): e.metrics.get("coco_box_ap") for e in DETECTION if e.name.startswith(name)} == {
        "fl4.ms_o365": None,
        "fl4.ms_o365_coco": 63.5,
        "fl3.detrex_coco_4scale": 57.5,
        "fl3.detrex_coco_4scale_36ep": 58.3,
        "fl4.detrex_coco_4scale": 58.0,
        "fl4.detrex_coco_5scale": 58.5,
    }
    assert [entry.name for entry in DENSE] == [
        "relation_detr_focalnet_large_fl4.o365",
        "relation_detr_focalnet_large_fl4.o365_coco",
    ]


@by_name(DENSE)
def test_a_dense_entry_says_which_task_will_load_it(entry: Entry) -> None:
    with pytest.raises(CheckpointError, match=rf"{re.escape(entry.name)}.*{re.escape(entry.task)}.*will load it"):
        weights.fetch(entry.name)


def test_unsettled_settings_are_those_of_the_fl4_models() -> None:
    unsettled = {entry.name: set(entry.unsettled) for entry in CLASSIFICATION if entry.unsettled}
    assert unsettled == {
        "focalnet_large_fl4.ms_in22k": {"normalize_modulator"},
        "focalnet_xlarge_fl4.ms_in22k": {"normalize_modulator"},
    }
    for name in unsettled:
        assert "normalize_modulator" in catalogue.find(name).settings


def test_only_what_has_no_live_host_is_unavailable() -> None:
    gone = [entry.name for entry in CLASSIFICATION if not entry.available]
    assert gone == ["focalnet_tiny_iso.ms_in1k", "focalnet_small_iso.ms_in1k"]


def test_an_unknown_name_names_its_neighbours() -> None:
    with pytest.raises(UnknownName, match=r'did you mean "focalnet_tiny_lrf\.ms_in1k".*"focalnet models" lists all'):
        catalogue.find("focalnet_tiny_lrv.ms_in1k")


def test_listing_by_pattern() -> None:
    assert weights.list_weights("*.ms_in22k") == [
        f"focalnet_{s}_{f}.ms_in22k" for s in ("large", "xlarge", "huge") for f in ("fl3", "fl4")
    ]


def test_a_missing_embedded_file_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = Entry(
        name="ours.x", task="classification", architecture="focalnet_nano", labels="cifar10", embedded=tmp_path / "x"
    )
    monkeypatch.setattr(catalogue, "entries", lambda: {"ours.x": entry})
    assert weights.cached(entry) is None
    with pytest.raises(DownloadError, match=r"ours\.x: this installation lacks .*install focalnet again"):
        weights.fetch("ours.x")
