"""Names as tools write them mean the file that is there, or none."""

from __future__ import annotations

import unicodedata

import pytest

from focalnet.data.readers.file_names import last_parts, match_names


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/0.jpg", "a/0.jpg"),
        ("a\\0.jpg", "a/0.jpg"),
        ("./a//0.jpg", "a/0.jpg"),
        ("a/b/../0.jpg", "a/0.jpg"),
        ("../images/0.jpg", "0.jpg"),
        (unicodedata.normalize("NFD", "café.jpg"), "café.jpg"),
        ("café.jpg", unicodedata.normalize("NFD", "café.jpg")),
        ("a%20b.jpg", "a b.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("100%.jpg", "100%.jpg"),
        ("IMG_0.JPG", "img_0.jpg"),
        ("C:\\Users\\me\\images\\0.jpg", "0.jpg"),
        ("/home/me/set/images/0.jpg", "images/0.jpg"),
        ("/home/me/set/photos/0.jpg", "images/0.jpg"),
        ("/data/local-files/?d=set/images/0.jpg", "images/0.jpg"),
        ("http://host:8080/data/upload/1/a%20b.jpg?token=3#x", "a b.jpg"),
        ("s3://bucket/train/0.jpg", "train/0.jpg"),
        ("file:///C:/set/0.jpg", "0.jpg"),
        ("0.jpg", "sub/0.jpg"),
        ("0.jpg ", "0.jpg"),
    ],
)
def test_a_name_in_another_spelling_means_its_file(name, file):
    matches = match_names([name], [file, "other.jpg"])
    assert matches.files == {name: file}
    assert (matches.remark() is None) == (name == file)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("0.jpg", ["1.jpg"]),
        ("cam1/0.jpg", ["cam2/0.jpg"]),  # another folder is another image
        ("", ["0.jpg"]),
        ("..", ["0.jpg"]),
        ("a/", ["0.jpg"]),
    ],
)
def test_what_is_not_there_means_nothing(name, files):
    matches = match_names([name], files)
    assert (matches.files, matches.ambiguous) == ({}, {})


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["0.jpg"], ["cam1/0.jpg", "cam2/0.jpg"]),
        (["A.JPG"], ["a.jpg", "A.jpg"]),
        (["x/0.jpg", "y/0.jpg"], ["0.jpg"]),  # two names, one file
        (["/x/0.jpg", "/y/z/0.jpg"], ["0.jpg"]),
    ],
)
def test_what_may_mean_several_is_not_guessed(names, files):
    matches = match_names(names, files)
    assert matches.files == {}
    assert set(matches.ambiguous) == set(names)
    assert all("may" in matches.why_ambiguous(name) for name in names)


def test_a_file_that_is_meant_exactly_is_not_given_to_another_name():
    matches = match_names(["A.jpg", "a.jpg"], ["a.jpg"])
    assert (matches.files, matches.ambiguous) == ({"a.jpg": "a.jpg"}, {})


def test_the_nearest_spelling_wins():
    matches = match_names(["Sub\\A.jpg", "0.jpg"], ["Sub/A.jpg", "sub/a.jpg", "0.JPG", "x/0.jpg"])
    assert matches.files == {"Sub\\A.jpg": "Sub/A.jpg", "0.jpg": "0.JPG"}


def test_the_remark_counts():
    remark = match_names(["a\\0.jpg", "b\\1.jpg", "c.jpg"], ["a/0.jpg", "b/1.jpg", "c.jpg"]).remark()
    assert remark == '2 of 3 file names are spelled differently from the files, e.g. "a\\0.jpg" is "a/0.jpg"'


def test_the_end_of_an_address():
    assert last_parts("http://images.cocodataset.org/train2017/000000391895.jpg", 2) == "train2017/000000391895.jpg"
