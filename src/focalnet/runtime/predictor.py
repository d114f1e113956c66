"""An exported network as a function from images to results."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from focalnet.data import images as decoding
from focalnet.errors import ConfigError
from focalnet.results import Detections, Result
from focalnet.results.classification import THRESHOLD
from focalnet.runtime.header import Header
from focalnet.runtime.preprocess import pad, preprocess
from focalnet.runtime.results import results
from focalnet.runtime.sessions import open_session

MIN_SCORE = 0.3  # of objects, unless the caller says otherwise


class Predictor:
    """Predicts what images show with an ``.onnx`` or ``.xml`` file of ``focalnet export``, without PyTorch.

    ``Predictor("detector.onnx")("street.jpg")`` returns the result that ``focalnet.Predictor`` returns, with NumPy
    arrays in the place of tensors. Its ``to_dict()``, ``summary()`` and fields need nothing else; drawing needs
    matplotlib.

    Args:
        path: the file.
        batch_size: images that go through the network at once.
        top_k: of a classifier: classes in each result, best first.
        min_score: objects below are left out, and classes of a multi-label classifier; default: 0.3 and 0.5.
        threads: that compute; default: as many as the runtime chooses.

    Raises:
        CheckpointError: the file cannot be read, or ``focalnet export`` did not write it.
        ConfigError: an option has an invalid value.
        MissingDependency: onnxruntime or openvino, whichever the file needs, is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        batch_size: int = 1,
        top_k: int = 5,
        min_score: float | None = None,
        threads: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("top_k", top_k), ("threads", threads)):
            if value is not None and not (isinstance(value, Integral) and 1 <= value < 2**31):
                raise ConfigError(f"{name}={value!r} must be a whole number, from 1 to {2**31 - 1}")
        if min_score is not None and (not isinstance(min_score, Real) or not 0 <= min_score <= 1):
            raise ConfigError(f"min_score={min_score!r} must be between 0 and 1")
        self.session = open_session(Path(path), threads=threads)
        self.header: Header = self.session.header
        self.class_names = self.header.class_names
        self.batch_size, self.top_k, self.min_score = batch_size, top_k, min_score

    def __call__(self, images: Any) -> Any:
        """Returns the result of one image, or the list of those of several, in order.

        Args:
            images: a path, the bytes of a file or a PIL image; or a list of them.

        Raises:
            ImageError: an image that cannot be read.
        """
        if isinstance(images, (str, os.PathLike, bytes, Image.Image)):
            return next(self.stream([images]))
        return list(self.stream(images))

    def stream(self, images: Iterable[Any]) -> Iterator[Result]:
        """Yields the results one after another, holding no more than one batch of images."""
        pending = iter(images)
        while sources := list(islice(pending, self.batch_size)):
            read = [decoding.read(source) for source in sources]
            for source, image, result in zip(sources, read, self._predict(read), strict=True):
                path = str(source) if isinstance(source, (str, os.PathLike)) else None
                yield dataclasses.replace(result, path=path, image=image)  # type: ignore[type-var]

    def _predict(self, images: list[Image.Image]) -> list[Result]:
        inputs = [preprocess(image, self.header.preprocessing) for image in images]
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in inputs]
        original_sizes = [(image.height, image.width) for image in images]
        outputs = self.session({
            "images": pad(inputs, self.header.size_divisor),
            "sizes": np.array(sizes, np.int64),
            "original_sizes": np.array(original_sizes, np.int64),
        })  # fmt: skip
        threshold = THRESHOLD if self.min_score is None else self.min_score
        predicted = results(self.header, outputs, original_sizes, self.top_k, threshold)
        least = MIN_SCORE if self.min_score is None else self.min_score
        return [one.above(least) if isinstance(one, Detections) else one for one in predicted]
