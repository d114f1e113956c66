"""Text, JSON, YAML and numbers that others wrote: read within bounds, or refused with a reason.

A small file can ask for any amount of memory or time: a device in place of a file, aliases of aliases, brackets without
end, a number of a million digits. Whatever is read here is checked first; ``ValueError`` says what is wrong with it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 20  # of a YAML file
MOST_VALUES = 100_000  # of a YAML document with all its aliases written out
DEEPEST = 100  # levels of a YAML document
_NO_NULL = "a null character, as in UTF-16 without its mark; save it as UTF-8"
_MOST_DIGITS = 18  # of a number that fits 64 bits


class _Loader(yaml.SafeLoader):
    """Reads plain words as YAML 1.2 does: ``no`` and ``on`` are text, as are ``1:30``, ``007``, ``1_0`` and dates.

    In YAML 1.1, which PyYAML reads, they are false, true, 90, 7, 10 and days; nobody means that in a list of names.
    """


_WORDS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    "merge": ("<<", "<"),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _WORDS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def read_text(path: Path, most_bytes: int | None = None) -> str:
    """The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Args:
        path: of a regular file.
        most_bytes: a larger file is refused; default: any size.

    Raises:
        OSError: the file cannot be read, or is not a regular file: reading a pipe blocks, and a device has no end.
        ValueError: it is neither UTF-8 nor UTF-16 with a byte order mark (``UnicodeDecodeError``), or too large.
    """
    if path.exists() and not path.is_file():
        raise OSError(None, "is not a regular file", str(path))
    with path.open("rb") as file:
        content = file.read(-1 if most_bytes is None else most_bytes + 1)
    if most_bytes is not None and len(content) > most_bytes:
        raise ValueError(f"has more than {most_bytes} bytes")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and b"\0" in content:  # valid UTF-8, but no text
        raise UnicodeDecodeError("utf-8", content, content.index(b"\0"), content.index(b"\0") + 1, _NO_NULL)
    text = content.decode("utf-16" if wide else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """What a YAML text says: plain values, never objects.

    Raises:
        ValueError: it is not YAML, holds itself or a key twice, is nested too deeply, or has too many values with
            aliases expanded.
    """
    try:
        loader = _Loader(text)
        document = loader.get_single_node()
        if document is None:
            return None
        _count(document, {}, [])
        return loader.construct_document(document)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except Exception as error:  # YAML's own, and whatever a wrong tag makes of a value
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from error


def _count(node: yaml.Node, known: dict[int, int], above: Sequence[int]) -> int:
    """Values below a node and itself, with each alias counted as what it stands for."""
    if id(node) in above:
        raise ValueError("an alias in it stands for what it is in")
    if len(above) > DEEPEST:
        raise ValueError("is nested too deeply")
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            _check_keys(node)
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, known, (*above, id(node))) for part in parts)
        if known[id(node)] > MOST_VALUES:
            raise ValueError(f"has more than {MOST_VALUES} values with all its aliases written out")
    return known[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    """Raises ValueError where a mapping has a key twice, of which YAML would silently take the last."""
    known: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (key.tag, key.value) in known:
            raise ValueError(f'has "{key.value}" twice in one place (line {key.start_mark.line + 1}): keep one')
        known.add((key.tag, key.value))


def whole_number(text: str) -> int | None:
    """The number that decimal digits write; None for anything else, or one that does not fit 64 bits."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None
