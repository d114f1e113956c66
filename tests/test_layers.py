"""The import order of docs/design/layout.md: a package imports only what comes before it.

Every import of every file counts, those inside functions, too; only ``TYPE_CHECKING`` blocks, which never run, do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import focalnet

PACKAGE = Path(focalnet.__file__).parent
ORDER = [
    {"errors", "files", "lazy", "reading", "samples", "card"},
    {"visualize"},
    {"results", "structures"},  # structures: the old name of results, samples and card
    {"ops"},
    {"nn"},
    {"kernels", "layers"},  # layers: the old name of nn
    {"models"},
    {"registry"},
    {"weights"},
    {"zoo"},
    {"listing"},
    {"runtime"},
    {"inference"},
    {"training"},
    {"explanations"},
    {"exporting"},
    {"integrations"},
    {"demo"},
    {"cli"},
]
LEVEL = {package: level for level, packages in enumerate(ORDER) for package in packages}
# These see what comes before ``nn``, and not each other; what comes after ``zoo`` sees them.
SIDE_BRANCHES = {"data", "metrics"}
# ``focalnet.fit`` and others are in the lazy table of the package itself.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("__"))


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Packages of ours that a file imports anywhere, but for type checkers."""
    skipped = [node for node in ast.walk(ast.parse(path.read_text())) if _for_type_checkers(node)]
    unseen = {
        (inner.lineno, inner.col_offset) for node in skipped for inner in ast.walk(node) if hasattr(inner, "lineno")
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, (ast.Import, ast.ImportFrom)) or (node.lineno, node.col_offset) in unseen:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.module == "focalnet":
            names = [f"focalnet.{alias.name}" for alias in node.names]
        else:
            names = [node.module or ""]
        yield from (name.split(".")[1] for name in names if name.startswith("focalnet."))


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_package_imports_what_comes_before_it(path: Path) -> None:
    here = package_of(path)
    assert here in LEVEL or here in SIDE_BRANCHES, f"{here} has no place in the import order"
    for other in set(imported(path)) - {here}:
        if other.startswith("__"):  # focalnet.__version__
            continue
        if here in SIDE_BRANCHES:
            assert LEVEL.get(other, 99) <= LEVEL["ops"], f"{path} imports {other}"
        elif other in SIDE_BRANCHES:
            assert LEVEL[here] > LEVEL["zoo"], f"{path} imports {other}"
        else:
            assert LEVEL[other] < LEVEL[here] or other in ORDER[LEVEL[here]], f"{path} imports {other}"


def test_no_two_packages_import_each_other() -> None:
    pairs = {(package_of(path), other) for path in FILES for other in imported(path) if other != package_of(path)}
    assert [pair for pair in pairs if pair[::-1] in pairs] == []


def test_no_package_has_the_name_of_a_public_function() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert packages & set(focalnet.__all__) == set()
