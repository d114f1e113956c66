"""The import order of the house (docs/design): a room may import only rooms to its left.

Reads the module-level imports of every file. Imports inside functions are for optional packages and
for speed, and `TYPE_CHECKING` blocks do not run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import focalnet

PACKAGE = Path(focalnet.__file__).parent
ORDER = [
    {"errors", "files", "samples", "card"},
    {"visualize"},
    {"results", "structures"},  # structures: the old name of results, samples and card
    {"ops"},
    {"nn"},
    {"kernels", "layers"},  # layers: the old name of nn
    {"models"},
    {"registry"},
    {"weights"},
    {"zoo"},
    {"explanations", "inference", "integrations", "tasks"},
    {"cli"},
]
# See only the first of these rooms ; anything from `explanations` on may use them.
SIDE_BRANCHES = {"data", "metrics"}
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FIRST_USER_OF_SIDE_BRANCHES = LEVEL["explanations"]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "focalnet" else [f"focalnet.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("focalnet."))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_to_the_left(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        assert list(imported_rooms(path)) == []
        return
    assert here in LEVEL or here in SIDE_BRANCHES, f"{here} has no place in the import order"
    for other in imported_rooms(path):
        if other == here:
            continue
        if here in SIDE_BRANCHES:
            seen = ORDER[0] | ORDER[1] | ORDER[2]
            assert other in seen, f"{path} imports {other}"
        elif other in SIDE_BRANCHES:
            assert LEVEL[here] >= FIRST_USER_OF_SIDE_BRANCHES, f"{path} imports {other}"
        else:
            assert LEVEL[other] <= LEVEL[here], f"{path} imports {other}"
