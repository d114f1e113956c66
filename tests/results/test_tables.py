"""Tables as files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from focalnet.errors import ConfigError, FocalNetError
from focalnet.results.tables import check_table, write_table

ROWS = [{"path": "a,\n.jpg", "score": 0.5, "name": "é"}, {"path": "b\udcff.jpg", "score": None, "more": True}]


def test_a_table_of_csv(tmp_path: Path) -> None:
    path = write_table(ROWS, tmp_path / "new/a.csv")
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines(keepends=True)))
    assert rows == [
        ["path", "score", "name", "more"],
        ["a,\n.jpg", "0.5", "é", ""],
        ["b\\udcff.jpg", "", "", "True"],
    ]


def test_a_table_of_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_table(ROWS, tmp_path / "a.parquet")
    assert parquet.read_table(path).to_pylist() == [
        {"path": "a,\n.jpg", "score": 0.5, "name": "é", "more": None},
        {"path": "b\\udcff.jpg", "score": None, "name": None, "more": True},
    ]


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.csv or a \.parquet"):
        check_table(Path("a.xlsx"))
    (tmp_path / "file").touch()
    with pytest.raises(FocalNetError, match="cannot write"):
        write_table(ROWS, tmp_path / "file/a.csv")
    assert write_table([], tmp_path / "empty.csv").read_text() == "\n"
