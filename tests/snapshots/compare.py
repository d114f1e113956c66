"""Reads, writes and compares snapshots."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
REMEDY = "if that is intended: python tests/snapshots/make.py"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted names."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    entries: dict[str, Any] = {}
    for key, inner in value.items():
        entries |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return entries


def keys(value: Any, prefix: str = "") -> list[str]:
    """The names within JSON content, in order: ``predictions[].path``; of a list, those of all its items."""
    found: dict[str, None] = {}
    if isinstance(value, dict):
        for key, inner in value.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            found |= dict.fromkeys([name, *keys(inner, name)])
    elif isinstance(value, list):
        for inner in value:
            found |= dict.fromkeys(keys(inner, f"{prefix}[]"))
    return list(found)


def mark(tensor: Tensor) -> list[float]:
    """A fingerprint of a tensor: its first and last value, and a weighted sum.

    Not a hash: initial weights are the same on every processor but for the last bits.
    """
    values = tensor.detach().cpu().double().flatten()
    if not len(values):
        return []
    ramp = torch.linspace(0.5, 1.5, len(values), dtype=torch.float64)
    return [float(f"{v:.6g}") for v in (values[0].item(), values[-1].item(), (values * ramp).sum().item())]


def plain(value: Any) -> Any:
    """A value after a round trip through JSON."""
    return json.loads(json.dumps(value))


def write(name: str, content: dict[str, dict[str, Any]]) -> Path:
    """Writes ``{section: {entry: value}}``, one entry per line."""
    sections = []
    for section, entries in content.items():
        lines = [f"  {json.dumps(entry)}: {json.dumps(value, ensure_ascii=False)}" for entry, value in entries.items()]
        sections.append(f"{json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n}")
    path = FOLDER / "data" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(sections) + "\n}\n", encoding="utf-8")
    return path


def read(name: str) -> dict[str, dict[str, Any]]:
    """Reads a snapshot."""
    return json.loads((FOLDER / "data" / f"{name}.json").read_text(encoding="utf-8"))


def differences(
    stored: Any, now: Any, where: str = "", *, relative: float = 0.0, absolute: float = 0.0, ordered: bool = True
) -> list[str]:
    """Lists every entry that is missing, new, moved or changed.

    Args:
        stored: JSON content.
        now: what it is today.
        where: the name of both.
        relative: how far fractions may be from each other, as a share.
        absolute: the same, as a number.
        ordered: whether the order of entries matters.
    """
    more = {"relative": relative, "absolute": absolute, "ordered": ordered}
    if isinstance(stored, dict) and isinstance(now, dict):
        at = f"{where}: " if where else ""
        found = [f"{at}{key} is gone (was {_short(stored[key])})" for key in stored if key not in now]
        found += [f"{at}{key} is new ({_short(now[key])})" for key in now if key not in stored]
        for key in stored:
            if key in now:
                found += differences(stored[key], now[key], f"{at}{key}", **more)
        before, after = [key for key in stored if key in now], [key for key in now if key in stored]
        if ordered and before != after:
            first = next(i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)
            found.append(f"{at}entries moved: {before[first]} was at place {first}, where {after[first]} is now")
        return found
    if isinstance(stored, list) and isinstance(now, list):
        names = all(isinstance(value, str) for value in (*stored, *now)) and len({*now}) == len(now)
        if names and len({*stored}) == len(stored):
            return differences(dict.fromkeys(stored, ""), dict.fromkeys(now, ""), where, **more)
        if len(stored) != len(now):
            return [f"{where}: was {_short(stored)}, is {_short(now)}"]
        found = []
        for i, (one, other) in enumerate(zip(stored, now, strict=True)):
            found += differences(one, other, f"{where}[{i}]", **more)
        return found
    if isinstance(stored, float) and isinstance(now, float | int) and not isinstance(now, bool):
        same = math.isclose(stored, now, rel_tol=relative, abs_tol=absolute)
    else:
        same = type(stored) is type(now) and stored == now
    return [] if same else [f"{where}: was {_short(stored)}, is {_short(now)}"]


def check(found: list[str], most: int = 30) -> None:
    """Fails with a line for each difference."""
    rest = [f"... and {len(found) - most} more"] if len(found) > most else []
    assert not found, "\n".join([f"{len(found)} entries differ; {REMEDY}", *found[:most], *rest])


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else f"{text[:200]}..."
