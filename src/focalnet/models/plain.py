"""Configurations from plain values: headers of files, YAML and keyword arguments, each checked against its field."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from focalnet.errors import ConfigError, did_you_mean

LARGEST = 2**63 - 1  # of any whole number in a configuration
MOST = 256  # members of any sequence in one, and layers, stages or levels of any network
COUNTS = frozenset(
    "levels convs fcs mask_convs roi_levels stages class_layers box_layers encoder_layers decoder_layers scales".split()
)

T = TypeVar("T")


def from_plain(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Builds a dataclass, and those within it, from what ``dataclasses.asdict`` or a YAML gives.

    Raises:
        ConfigError: a name that the dataclass does not have, or one that is missing; or a value of another type, not
            finite, or larger than anything it could mean.
    """
    hints = _hints(cls)  # type: ignore[arg-type]
    title = cls.__name__.removesuffix("Config")
    for key in mapping:
        if key not in hints:
            raise ConfigError(f'{title} has no option "{key}"{did_you_mean(str(key), hints)}')
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in mapping:
            raise ConfigError(f'{title} lacks "{field.name}"')
    return cls(**{key: _as(hints[key], value, key) for key, value in mapping.items()})


def with_options(config: T, options: Mapping[str, Any]) -> T:
    """A configuration with other values; a mapping changes fields of a nested configuration, and keeps the others.

    Raises:
        ConfigError: a name the configuration does not have, or a value in place of a nested configuration.
    """
    hints = _hints(type(config))  # type: ignore[arg-type]
    return dataclasses.replace(  # type: ignore[type-var]
        config, **{name: _changed(name, hints, getattr(config, name, None), value) for name, value in options.items()}
    )


def check_types(config: Any) -> None:
    """Checks the types of a dataclass's fields: its constructor takes a text or a float for a whole number.

    Raises:
        ConfigError: as for ``from_plain``.
    """
    cls: Any = type(config)
    for name, kind in _hints(cls).items():
        _as(kind, getattr(config, name), name)


def _changed(name: str, hints: Mapping[str, Any], current: Any, value: Any) -> Any:
    if name not in hints:
        raise ConfigError(f'no option "{name}"{did_you_mean(name, hints)}')
    if dataclasses.is_dataclass(current):
        if isinstance(value, Mapping):
            return with_options(current, value)
        if not isinstance(value, type(current)):
            raise ConfigError(f"{name}={value!r} must name options of it, e.g. {name}={_example(current)}")
    nested = isinstance(current, tuple) and any(map(dataclasses.is_dataclass, current))
    if nested and isinstance(value, (list, tuple)) and len(value) == len(current):
        pairs = zip(current, value, strict=True)
        return tuple(with_options(old, new) if isinstance(new, Mapping) else new for old, new in pairs)
    return _as(hints[name], value, name)


def _example(config: Any) -> dict[str, Any]:
    """The first option of a configuration, as a mapping."""
    first = dataclasses.fields(config)[0].name
    return {first: getattr(config, first)}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _as(kind: Any, value: Any, name: str) -> Any:
    """The value as a field of that type holds it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        others = [one for one in arguments if one is not type(None)]
        return _as(others[0], value, name) if len(others) == 1 else value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            return from_plain(kind, value)
        if not isinstance(value, kind):
            title = kind.__name__.removesuffix("Config")
            raise ConfigError(f"{_short(value)} stands where options of {title} are expected")
        return value
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if len(value) > MOST:
            raise ConfigError(f"{name} has {len(value)} values, more than {MOST}")
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise ConfigError(f"{name}={_short(value)} must have {len(kinds)} values")
        return tuple(_as(one, item, name) for one, item in zip(kinds, value, strict=True))
    if origin is Literal:
        fits = any(type(value) is type(one) and value == one for one in arguments)
        expected = " or ".join(map(repr, arguments))
    else:
        fits, expected = _fits(kind, value)
    if not fits:
        raise ConfigError(f"{name}={_short(value)} must be {expected}")
    if kind is int and name in COUNTS and value > MOST:
        raise ConfigError(f"{name}={value} must be at most {MOST}")
    return value


def _fits(kind: Any, value: Any) -> tuple[bool, str]:
    """Whether a value is of a plain type, and what messages call the type."""
    if kind is bool:
        return isinstance(value, bool), "true or false"
    if kind is int:
        whole = isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) <= LARGEST
        return whole, f"a whole number of at most {LARGEST}"
    if kind is float:
        number = isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) <= LARGEST  # NaN is not
        return number, f"a finite number of at most {LARGEST}"
    if kind is str:
        return isinstance(value, str), "a text"
    return get_origin(kind) is not tuple, "a list of values"  # of other types, anything


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
