"""What names images is read row by row: text, Parquet, tar files and folders, with names of every kind."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from focalnet.errors import ConfigError, DataError
from focalnet.inference.manifest import sources
from focalnet.inference.manifest.sources import Manifest, Row, open_manifest

ODD = ["two\nlines.jpg", "字.jpg", " leading and trailing ", "a\tb", "-", "%s{}", "'\"\\.png", "a//b/../c.png"]


TEXT = [arrow.string(), arrow.large_string(), arrow.dictionary(arrow.int32(), arrow.string())]


def rows_of(manifest: Manifest) -> list[Row]:
    shards = [manifest.shard(number) for number in range(manifest.shards)]
    return [row for source, start, stop in shards for row in manifest.sources[source].rows(start, stop)]


def open_one(path: Path, rows_per_shard: int = 3, **options: str) -> Manifest:
    return open_manifest([path], rows_per_shard, listings=path.parent / "out", **options)


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (b"a.jpg\nb.jpg\n", ["a.jpg", "b.jpg"]),
        (b"a.jpg\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a.jpg\r\n b.jpg \r\n", ["a.jpg", " b.jpg "]),
        (b"\xef\xbb\xbfa.jpg\na.jpg\na.jpg\n", ["a.jpg"] * 3),
        (b"a\n\nb\n\n", ["a", "", "b", ""]),
        (b"\xff\xfea.jpg"[::-1] + b"\n", [os.fsdecode(b"gpj.a\xfe\xff")]),
        ("字.jpg\u2028b\n".encode(), ["字.jpg\u2028b"]),
    ],
)
def test_a_text_file_has_a_path_a_line(content, paths, tmp_path):
    (tmp_path / "list.txt").write_bytes(content)
    manifest = open_one(tmp_path / "list.txt")
    rows = rows_of(manifest)
    assert [row.path for row in rows] == paths
    assert [row.number for row in rows] == list(range(len(paths)))
    assert manifest.count == len(paths)
    assert [row.error for row in rows if row.error] == [f"line {i + 1} is empty" for i, p in enumerate(paths) if not p]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.text("ab\r/ 字", max_size=9), min_size=1, max_size=30),
    rows_per_shard=st.integers(1, 9),
    ends=st.booleans(),
    block=st.integers(1, 7),
)
def test_text_is_divided_anywhere(lines, rows_per_shard, ends, block, tmp_path_factory):
    text = "\n".join(lines) + "\n" * (ends or not lines[-1])
    path = tmp_path_factory.mktemp("text") / "list.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BLOCK", block)
        manifest = open_one(path, rows_per_shard)
    assert manifest.shards == -(-len(lines) // rows_per_shard)
    assert [row.path for row in rows_of(manifest)] == [line.removesuffix("\r") for line in lines]


def test_a_line_without_end_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_PATH", 1000)
    (tmp_path / "list.txt").write_bytes(b"a\n" + b"x" * 600_000 + b"\nb\n")
    first, long, last = rows_of(open_one(tmp_path / "list.txt"))
    assert (first.path, last.path) == ("a", "b")
    assert long.error == "line 2 is longer than 1000 bytes"
    assert len(long.path) == 200


@pytest.mark.parametrize(
    "kind", [arrow.string(), arrow.large_string(), arrow.dictionary(arrow.int32(), arrow.string())]
)
@pytest.mark.parametrize("rows_per_shard", [1, 2, 5, 100])
def test_parquet_has_names_of_every_kind(kind, rows_per_shard, tmp_path):
    paths = [*ODD, None, "", *ODD]
    table = arrow.table({"id": list(range(len(paths))), "path": arrow.array(paths).cast(kind), "more": paths})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    rows = rows_of(open_one(tmp_path / "a.parquet", rows_per_shard))
    assert [row.path for row in rows] == paths
    assert [row.number for row in rows] == list(range(len(paths)))
    assert [row.error for row in rows if row.error] == [
        'row 8 of column "path" is null',
        'row 9 of column "path" is empty',
    ]


def test_parquet_holds_images_too(tmp_path):
    both = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None, {"bytes": b"", "path": None}]
    table = arrow.table({"image": both, "content": [b"a", None, b"\0", b"d"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert rows_of(open_one(tmp_path / "a.parquet", column="image")) == [
        Row(0, "1.jpg", b"one"),
        Row(1, "2.jpg"),
        Row(2, None, error='row 2 of column "image" is null'),
        Row(3, None, b""),
    ]
    contents = [row.content for row in rows_of(open_one(tmp_path / "a.parquet", column="content"))]
    assert contents == [b"a", None, b"\0", b"d"]


@pytest.mark.parametrize(
    ("columns", "wanted", "found"),
    [
        ({"path": ["a"], "other": ["b"]}, None, "a"),
        ({"file.name": ["a"], "label": [1]}, None, "a"),
        ({"one": ["a"], "two": ["b"]}, "two", "b"),
        ({"one": ["a"], "two": ["b"]}, None, None),
        ({"one": ["a"], "two": ["b"]}, "three", None),
        ({"label": [1]}, None, None),
        ({"label": [1]}, "label", None),
    ],
)
def test_the_column_is_never_guessed(columns, wanted, found, tmp_path):
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    if found is not None:
        (row,) = rows_of(open_one(tmp_path / "a.parquet", column=wanted))
        assert row.path == found
        return
    with pytest.raises(ConfigError, match="--column must name one column"):
        open_one(tmp_path / "a.parquet", column=wanted)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


FILES = {"a.jpg": b"A" * 700, "a.cls": b"1", "b/字.PNG": b"B", "b/.hidden.png": b"", "c.json": b"{}", "d.jpg": b"D"}


def test_the_images_of_a_tar_file_are_rows(tmp_path):
    path = write_tar(tmp_path / "0.tar", FILES)
    manifest = open_one(path)
    assert (manifest.shards, manifest.count) == (1, None)
    assert rows_of(manifest) == [
        Row(0, f"{path}/a.jpg", b"A" * 700), Row(1, f"{path}/b/字.PNG", b"B"), Row(2, f"{path}/d.jpg", b"D"),
    ]  # fmt: skip


def test_a_damaged_tar_file_has_a_row_that_says_so(tmp_path):
    whole = write_tar(tmp_path / "0.tar", FILES).read_bytes()
    complete = len(rows_of(open_one(tmp_path / "0.tar")))
    for size in range(0, 4096, 256):
        (tmp_path / "0.tar").write_bytes(whole[:size])
        *images, last = rows_of(open_one(tmp_path / "0.tar"))
        assert f"damaged or cut short after {len(images)} images" in last.error
        assert last.number == len(images) <= complete
        assert not any(row.error for row in images)
    (tmp_path / "0.tar").write_bytes(b"no tar file at all" * 99)
    (row,) = rows_of(open_one(tmp_path / "0.tar"))
    assert "is not a tar file" in row.error


def test_a_huge_member_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_FILE", 500)
    first, second, _ = rows_of(open_one(write_tar(tmp_path / "0.tar", FILES)))
    assert first.error.startswith("a.jpg: is larger than")
    assert second.content == b"B"


def test_a_folder_is_listed_with_names_of_every_kind(tmp_path):
    names = [b"two\nlines.png", "字.jpg".encode(), b"\xff.png", b"b.jpg", b"a/z.jpg"]
    passed_over = [b".a/hidden.jpg", b"a/.h.jpg", b"t.txt"]
    folder = tmp_path / "images"
    for name in names + passed_over:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    manifest = open_one(folder, 2)
    expected = [os.fsdecode(os.path.join(os.fsencode(folder), name)) for name in names]
    assert sorted(row.path for row in rows_of(manifest)) == sorted(expected)
    again = open_one(folder, 2)
    assert (again.sha256, rows_of(again)) == (manifest.sha256, rows_of(manifest))
    assert len(list((tmp_path / "out").iterdir())) == 1  # one listing
    (folder / "more.jpg").touch()
    assert open_one(folder, 2).sha256 != manifest.sha256


def test_several_sources_are_one_manifest(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    (tmp_path / "empty.txt").touch()
    parquet.write_table(arrow.table({"path": ["d", "e"]}), tmp_path / "b.parquet")
    write_tar(tmp_path / "c.tar", FILES)
    paths = [tmp_path / name for name in ("a.txt", "empty.txt", "b.parquet", "c.tar")]
    manifest = open_manifest(paths, 2, listings=tmp_path)
    assert [manifest.shard(i) for i in range(manifest.shards)] == [(0, 0, 2), (0, 2, 3), (2, 0, 2), (3, 0, None)]
    assert [row.path for row in rows_of(manifest)][:5] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("suffix", ["txt", "parquet", "tar"])
def test_the_hash_is_of_the_rows(suffix, tmp_path):
    def hash_of(path: str, name: str) -> str:
        file = tmp_path / f"{name}.{suffix}"
        if suffix == "txt":
            file.write_text(path)
        elif suffix == "tar":
            write_tar(file, {path: b"same"})
        else:
            parquet.write_table(arrow.table({"path": [path, "same"]}), file, write_statistics=False)
        return open_one(file).sha256

    assert hash_of("a.jpg", "one") == hash_of("a.jpg", "other")
    assert hash_of("a.jpg", "one") != hash_of("b.jpg", "one")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "has no rows"),
        ("utf16.txt", "a.jpg".encode("utf-16"), "is in UTF-16"),
        ("damaged.parquet", b"PAR1 and nothing else", "cannot be read"),
        ("empty.parquet", b"", "cannot be read"),
        ("list.csv", b"a", "a manifest is a .txt"),
    ],
)
def test_what_is_no_manifest_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=message) as refused:
        open_one(tmp_path / name)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_manifest_that_changes_is_not_read_on(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\n")
    manifest = open_one(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="was changed since the run began"):
        rows_of(manifest)


def test_too_many_shards_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_SHARDS", 2)
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    assert open_one(tmp_path / "a.txt", 2).shards == 2
    with pytest.raises(ConfigError, match="larger --rows-per-shard"):
        open_one(tmp_path / "a.txt", 1)
