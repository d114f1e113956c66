"""A run as an object: its folder, with what is in it."""

from __future__ import annotations

import html
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from focalnet import zoo
from focalnet.errors import ConfigError
from focalnet.inference import Predictor
from focalnet.models.base import Model
from focalnet.training.run_folder import RunFolder

PosixOrWindowsPath: type[Path] = type(Path())


class Run(PosixOrWindowsPath):  # type: ignore[misc, valid-type]  # a path's class depends on the system
    """The folder of a run. It is a ``pathlib.Path``, so ``run / "model.safetensors"`` is a file of it.

    Args:
        path: of the folder.
    """

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of ``results.json``: ``top1``, ``box_ap``, ``miou``, ..., ``ended``, ``kept``, ``test``.

        Raises:
            ConfigError: the run has no results yet; ``focalnet finish`` makes them.
        """
        path = RunFolder(Path(self)).results
        if not path.is_file():
            raise ConfigError(f"{path} does not exist: the run has not finished; focalnet finish {self} writes it")
        return dict(json.loads(path.read_bytes()))

    @cached_property
    def model(self) -> Model[Any, Any]:
        """The trained network, from ``model.safetensors``."""
        model: Model[Any, Any] = zoo.load(RunFolder(Path(self)).weights)
        return model

    @property
    def report(self) -> Path:
        """The path of ``report.html``."""
        return RunFolder(Path(self)).report

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.model)

    def predict(self, images: Any) -> Any:
        """Predicts as ``Predictor`` does: a result for one image, a list for several."""
        return self._predictor(images)

    def _repr_html_(self) -> str:
        """What notebooks show: metrics and the path of the report."""
        try:
            found = {name: value for name, value in self.metrics.items() if not isinstance(value, dict | list)}
        except ConfigError as error:
            return f"<p>{html.escape(str(error))}</p>"
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in found.items())
        return f"<table>{rows}</table><p>{html.escape(str(self.report))}</p>"
