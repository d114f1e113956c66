"""Prediction of batches of columns, as Ray Data's ``map_batches`` gives them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from focalnet.errors import InputError
from focalnet.inference.manifest.shards import FIELDS, values_of
from focalnet.inference.manifest.sources import Unreadable

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
        min_score: float = 0.3,
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

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Predicts the images of a batch.

        Args:
            batch: columns of ``N`` values each.

        Returns:
            The columns of the batch, without the images if they are bytes or arrays, and those of the shards of
            ``predict_manifest``: ``error``, which is None or says why there is no result, and by the model's results
            ``top``, or ``height``, ``width`` and ``objects``, ``classes`` or ``segments``.

        Raises:
            InputError: the column is missing or holds something else, or another one has the name of a result.
        """
        if self.column not in batch:
            raise InputError(f'no column "{self.column}" in the batch, which has {", ".join(batch) or "none"}')
        images = batch[self.column]
        if images.dtype.kind == "S":
            raise InputError(
                f'column "{self.column}" has the type {images.dtype}, which loses zero bytes: give objects'
            )
        predictor = self._loaded()
        output = predictor.model.config.output
        if taken := {"error", *FIELDS[output]} & set(batch):
            raise InputError(f'the batch has a column "{min(taken)}", which is one of the results: rename it')
        results = [values_of(one, output) for one in predictor.attempt(map(self._image, images))]
        kept = {name: values for name, values in batch.items() if name != self.column or _are_paths(values)}
        return kept | {name: _column([row[name] for row in results]) for name in ("error", *FIELDS[output])}

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


def _are_paths(values: npt.NDArray[Any]) -> bool:
    return values.ndim == 1 and not any(isinstance(value, (bytes, np.ndarray)) for value in values)


def _column(values: Sequence[Any]) -> npt.NDArray[Any]:
    """``(N,)`` of objects, whatever they hold: None, numbers, text or lists."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
