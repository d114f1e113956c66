"""Charts of how good predictions are."""

from __future__ import annotations

import numpy as np

from focalnet.visualize import draw_confusion, draw_precision_recall
from focalnet.visualize.canvas import render


def test_charts_have_a_line_for_each_class_with_targets():
    precision = np.full((10, 101, 3), 80.0)
    precision[:, :, 1] = np.nan
    figure = draw_precision_recall(precision, ["ant", "$bee", "cat"])
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]
    assert render(figure).width > 500
    many = draw_precision_recall(np.full((10, 101, 80), 50.0), [str(i) for i in range(80)])
    assert [len(axes.lines) for axes in many.axes] == [1, 1]
    single = draw_precision_recall(np.full((10, 101, 1), 50.0), ["ant"])
    assert [len(axes.lines) for axes in single.axes] == [1, 1]  # the mean would cover it
    nothing = draw_precision_recall(np.full((10, 101, 1), np.nan), ["ant"])
    assert [len(axes.lines) for axes in nothing.axes] == [0, 0]


def test_a_confusion_matrix_shows_its_counts():
    figure = draw_confusion(np.array([[3, 0], [1, 2]]), ["ant", "nothing there"], ["ant", "missed"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "2", "3"]
