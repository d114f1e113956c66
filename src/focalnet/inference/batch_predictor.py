"""Prediction of batches of columns, as Ray Data's ``map_batches`` gives them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from focalnet.errors import InputError, require
from focalnet.inference.manifest.shards import FIELDS, result_fields, values_of
from focalnet.inference.manifest.sources import Unreadable, as_bytes, holds

if TYPE_CHECKING:
    from focalnet.inference.predictor import Predictor
    from focalnet.inference.tta import Views
    from focalnet.models import Model


class BatchPredictor:
    """A function from a batch of columns to one with results, which can be pickled: for actors of Ray Data.

    ``dataset.map_batches(BatchPredictor, fn_constructor_args=("focalnet_nano.cifar10",), batch_size=64, ...)``. The
    model is loaded by the first batch, in the process that gets it.

    Args:
        model: a model, or a name or file that ``Predictor`` takes.
        column: of the images: paths (text), encoded images (``bytes``), or arrays ``(H, W, 3)`` as ``Predictor`` takes.
        device: as for ``Predictor``; an actor of Ray with ``num_gpus=1`` sees its own GPU only.
        batch_size: images that go through the network at once, whatever the size of a batch; default: that of
            ``Predictor``.
        top_k: as for ``Predictor``.
        min_score: as for ``Predictor``.
        views: as for ``Predictor``.
    """

    def __init__(
        self,
        model: Model[Any, Any] | str | os.PathLike[str],
        column: str = "path",
        *,
        device: str | None = None,
        batch_size: int | None = None,
        top_k: int = 5,
        min_score: float | None = None,
        views: Views | None = None,
    ) -> None:
        self.model, self.column = model, column
        self._options: dict[str, Any] = {
            "device": device,
            "batch_size": batch_size,
            "top_k": top_k,
            "min_score": min_score,
        }
        if views is not None:
            self._options["views"] = views
        self._predictor: Predictor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_predictor": None}

    def __call__(self, batch: Any) -> Any:
        """Predicts the images of a batch.

        Args:
            batch: a mapping of columns to arrays of ``N`` values (``batch_format="numpy"``), or a ``pyarrow.Table``
                (``batch_format="pyarrow"``), of which the image column is text or bytes. Tables keep the types of
                columns that are null in a whole batch: give these where results are written to files.

        Returns:
            The same kind of batch: its columns, without the images if they are bytes or arrays, and those of the
            shards of ``predict_manifest``: ``error``, which is null or says why there is no result, and by the model's
            results ``top``, ``labels``, or ``height``, ``width`` and ``objects``, ``classes`` or ``segments``.

        Raises:
            InputError: the column is missing or holds something else, or another one has the name of a result.
        """
        names = list(batch) if isinstance(batch, Mapping) else batch.column_names
        if self.column not in names:
            raise InputError(f'no column "{self.column}" in the batch, which has {", ".join(names) or "none"}')
        predictor = self._loaded()
        output = predictor.model.config.output
        if taken := {"error", *FIELDS[output]} & set(names):
            raise InputError(f'the batch has a column "{min(taken)}", which is one of the results: rename it')
        return self._of_arrays(batch, output) if isinstance(batch, Mapping) else self._of_table(batch, output)

    def _of_arrays(self, batch: Mapping[str, npt.NDArray[Any]], output: str) -> dict[str, npt.NDArray[Any]]:
        images = batch[self.column]
        if images.dtype.kind == "S":
            raise InputError(
                f'column "{self.column}" has the type {images.dtype}, which loses zero bytes: give objects'
            )
        are_paths = images.ndim == 1 and not any(isinstance(value, (bytes, np.ndarray)) for value in images)
        columns = {name: values for name, values in batch.items() if name != self.column or are_paths}
        results = self._results(images, output)
        return columns | {name: _objects([row[name] for row in results]) for name in ("error", *FIELDS[output])}

    def _of_table(self, batch: Any, output: str) -> Any:
        images = batch.column(self.column)
        arrow = require("pyarrow", "train")
        kind = "paths" if arrow.types.is_null(images.type) else holds(images.type)
        if kind not in ("paths", "images"):
            raise InputError(f'column "{self.column}" has the type {images.type}: give text (paths) or bytes (images)')
        values = as_bytes(images).to_pylist()
        if kind == "paths":
            values = [None if value is None else os.fsdecode(value) for value in values]
        else:
            batch = batch.drop_columns([self.column])
        results = self._results(values, output)
        for field in result_fields(output):
            values = arrow.array([row[field.name] for row in results], field.type)
            batch = batch.append_column(field, values)
        return batch

    def _results(self, images: Iterable[Any], output: str) -> list[dict[str, Any]]:
        return [values_of(one, output) for one in self._loaded().attempt(map(self._image, images))]

    def _loaded(self) -> Predictor:
        if self._predictor is None:
            from focalnet.inference.predictor import Predictor

            model = os.fspath(self.model) if isinstance(self.model, os.PathLike) else self.model
            self._predictor = Predictor(model, **self._options)
        return self._predictor

    def _image(self, value: Any) -> Any:
        """What a predictor takes for a value of the column."""
        if value is None or (isinstance(value, float) and value != value):  # pandas' null
            return Unreadable(f'column "{self.column}" is null')
        if isinstance(value, (str, os.PathLike)):
            return os.fspath(value)
        if isinstance(value, (bytes, np.ndarray)):
            return value
        raise InputError(f'column "{self.column}" has a {type(value).__name__}: give paths, bytes or arrays')


def _objects(values: Sequence[Any]) -> npt.NDArray[Any]:
    """``(N,)`` of objects, whatever they are: None, numbers, text or lists."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
