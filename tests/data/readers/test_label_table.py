"""Tables of labels: what is read, and what is refused in one line that names file and line."""

import pytest

from focalnet.data.readers.label_table import Columns, read_label_table
from focalnet.errors import DataError


def write(folder, text, name="train.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def labels_of(table):
    return {name: sorted(labels) for name, labels in zip(table.images, table.labels, strict=True)}


@pytest.mark.parametrize(
    "text",
    [
        "image,labels\na.jpg,cat|dog\nb.jpg,\nc.jpg,dog\n",
        "image;labels\na.jpg;dog,cat\nb.jpg;\nc.jpg;dog\n",
        "\ufeffimage,labels\r\na.jpg,cat|dog|\r\n\r\nb.jpg,\r\nc.jpg, dog\r\n",
        'labels\tfile\n"cat;dog"\ta.jpg\n\tb.jpg\ndog\tc.jpg\n',
        ",image,labels\n0,a.jpg,cat|dog\n1,b.jpg,\n2,c.jpg,dog\n",
        "id,cat,dog\na.jpg,1,1\nb.jpg,0,0\nc.jpg,0.0,True\n",
    ],
)
def test_every_way_to_write_labels_gives_the_same(tmp_path, text):
    table = read_label_table(write(tmp_path, text))
    assert labels_of(table) == {"a.jpg": ["cat", "dog"], "b.jpg": [], "c.jpg": ["dog"]}
    assert table.classes == ("cat", "dog")


def test_utf_16_is_read_and_accents_are_normalized(tmp_path):
    table = read_label_table(write(tmp_path, "image,labels\na.jpg,cafe\u0301\n", encoding="utf-16"))
    assert table.classes == ("caf\u00e9",)


def test_classes_are_sorted_naturally_and_columns_keep_their_order(tmp_path):
    assert read_label_table(write(tmp_path, "image,labels\na.png,10|9|a|A\n")).classes == ("9", "10", "A", "a")
    assert read_label_table(write(tmp_path, "image,z,a\na.png,1,0\n")).classes == ("z", "a")


def test_options_choose_columns_and_delimiter(tmp_path):
    path = write(tmp_path, "Id,Finding Labels,Age\n7,No Finding,30\n8,Mass Effusion,40\n")
    table = read_label_table(path, Columns(image="Id", label="Finding Labels", delimiter=" "))
    assert labels_of(table) == {"7": ["Finding", "No"], "8": ["Effusion", "Mass"]}
    table = read_label_table(path, Columns(image="Id", label="Finding Labels", delimiter=""))
    assert table.classes == ("Mass Effusion", "No Finding")
    path = write(tmp_path, "image,a,b,fold\nx.png,1,0,3\n")
    assert read_label_table(path, Columns(classes=("b", "a"))).classes == ("b", "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,labels\na.jpg,cat\na.jpg,dog\n", '"a.jpg" is in lines 2 and 3; each image needs one row'),
        ("image,labels\na.jpg,cat|nan\n", 'line 2: has the label "nan"; leave the cell empty'),
        ("image,cat,dog\na.jpg,1,0\nb.jpg,1,\nc.jpg,0,1\n", 'line 3 has "" in column "dog", where others have 0 or 1'),
        ("image,cat,dog\na.jpg,1,0\nb.jpg,1,NaN\nc.jpg,0,1\n", 'line 3 has "nan" in column "dog"'),
        ("image,cat\na.jpg,1\n", "which columns hold the labels? Of cat"),
        ("image,labels,fold\na.jpg,cat,2\n", "which columns hold the labels? Of labels, fold"),
        ("a,b\nx,cat\n", "which of its columns names the images? data.image_column says it; it has a, b"),
        ("image,file,labels\nx,y,cat\n", "which of its columns names the images?"),
        ("image,labels\na.jpg,big cat\n", 'is "big cat" in column "labels" one label or several?'),
        ("image,labels\na.jpg,a;b|c\n", 'its column "labels" has | and ; in its cells'),
        ("image,labels\na.jpg,\"['cat', 'dog']\"\n", "holds lists in brackets"),
        ("image,labels\na.jpg,cat,dog\n", "line 2: has 3 columns, the first line names 2"),
        ("image,labels\n", "has no rows below its first line"),
        ("images\na.jpg\n", "its first line must name two columns or more"),
        ("", "its first line must name two columns or more"),
        ("image,labels\n,cat\n", 'line 2: names no image in column "image"'),
        ("image,cat,cat\na.jpg,1,0\n", 'names the column "cat" twice'),
        ("image,labels,\na.jpg,cat,x\n", "its column 3 has no name in the first line"),
        ('image,labels\n"a.jpg,cat\n', "line 2: is not CSV"),
        ("image;x,labels\na.jpg;y,cat\n", "its columns may be separated by several characters"),
    ],
)
def test_a_table_that_is_not_clear_is_refused(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_label_table(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_may_be_called_nan_where_it_is_listed(tmp_path):
    path = write(tmp_path, "image,labels\na.jpg,nan|cat\n")
    assert read_label_table(path, classes=["nan", "cat"]).classes == ("cat", "nan")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (Columns(image="no"), 'no column "no" (data.image_column)'),
        (Columns(label="no"), 'no column "no" (data.label_column)'),
        (Columns(classes=("no",)), 'no column "no" (data.class_columns)'),
        (Columns(classes=("labels",)), 'line 2: has "cat" in column "labels", where 0 or 1 is needed'),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, columns, said):
    path = write(tmp_path, "image,labels\na.jpg,cat\n")
    with pytest.raises(DataError) as error:
        read_label_table(path, columns)
    assert said in str(error.value)


def test_what_is_not_text_is_refused(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"\xff\x00\x01")
    with pytest.raises(DataError, match="cannot be read as a table of labels"):
        read_label_table(tmp_path / "train.csv")
