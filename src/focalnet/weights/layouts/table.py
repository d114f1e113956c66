"""A layout: a two-column table of our names and another library's, used in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

from focalnet.models.backbone import FocalNetConfig

Rows = tuple[tuple[str, str], ...]

_FIELD = re.compile(r"\{([sbl])(\+1)?\}")


@dataclass(frozen=True)
class Hints:
    """Information in the ``config.json`` next to the weights that the tensors do not contain.

    Args:
        architecture: one of our names.
        settings: fields of ``FocalNetConfig``.
        class_names: by class index.
        preprocessing: fields of ``Preprocessing``: how images were prepared.
        remarks: what of it cannot be done in the same way here.
        multi_label: whether an image can have several classes.
    """

    architecture: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    multi_label: bool = False


@dataclass(frozen=True)
class Layout:
    """How a library names and shapes the parameters of a FocalNet.

    Args:
        name: the value of ``focalnet convert --to``.
        mark: a key of every checkpoint of this layout, without wrapper prefixes such as ``module.``.
        rows: pairs (our name, their name) of modules or parameters; ``{s}`` is the stage, ``{b}`` the
            block, ``{l}`` the focal level, all from 0; ``{s+1}`` the next stage.
        pre_norm: rows for pre-norm blocks.
        post_norm: rows for post-norm blocks.
        pointwise: suffixes of our linear layers that are 1x1 convolutions in the other library.
    """

    name: str
    mark: str
    rows: Rows
    pre_norm: Rows
    post_norm: Rows
    pointwise: tuple[str, ...] = ()

    def to_native(self, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Returns the tensors under our names, and the keys that no row of the table matches."""
        rows = [(their, our) for our, their in (*self.rows, *self.pre_norm, *self.post_norm)]
        native, unknown = {}, []
        for key, tensor in theirs.items():
            ours = _translate(key, rows)
            if ours is None:
                unknown.append(key)
            elif self._is_pointwise(ours) and tensor.shape[2:] == (1, 1):
                native[ours] = tensor.flatten(1)
            else:
                native[ours] = tensor
        return native, unknown

    def from_native(self, native: Mapping[str, Tensor], config: FocalNetConfig) -> dict[str, Tensor]:
        """The inverse of ``to_native``, for the state dict of a classifier of this ``config``."""
        rows = (*self.rows, *(self.post_norm if config.post_norm else self.pre_norm))
        theirs = {}
        for key, tensor in native.items():
            name = _translate(key, rows)
            assert name is not None, f"the {self.name} table has no row for {key}"
            theirs[name] = tensor[..., None, None] if self._is_pointwise(key) else tensor
        return theirs

    def post_norm_of(self, theirs: Iterable[str]) -> bool | None:
        """Whether the keys are those of post-norm blocks; None if pre-norm blocks have the same keys."""
        if self.pre_norm == self.post_norm:
            return None
        rows = [(their, our) for our, their in self.post_norm]
        return any(_translate(key, rows) for key in theirs)

    def _is_pointwise(self, ours: str) -> bool:
        module, _, parameter = ours.rpartition(".")
        return parameter == "weight" and module.endswith(self.pointwise) if self.pointwise else False


def _translate(key: str, rows: Iterable[tuple[str, str]]) -> str | None:
    for source, target in rows:
        match = _pattern(source).fullmatch(key)
        if match:
            return _fill(source, target, match)
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression that also matches the parameter's name at the end."""
    literals = [re.escape(text) for text in _FIELD.split(template)[::3]]
    numbers = [rf"(?P<{name}>\d+)" for name in _FIELD.split(template)[1::3]] + [""]
    body = "".join(text + number for text, number in zip(literals, numbers, strict=True))
    return re.compile(body + r"(?P<parameter>\.(?:weight|bias))?")


def _fill(source: str, target: str, match: re.Match[str]) -> str:
    shift = {name: bool(plus) for name, plus in _FIELD.findall(source)}

    def number(field: re.Match[str]) -> str:
        name, plus = field.groups()
        return str(int(match[name]) - shift[name] + bool(plus))

    return _FIELD.sub(number, target) + (match["parameter"] or "")
