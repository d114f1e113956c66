"""Links of README, CONTRIBUTING and docs lead to files and headings that exist; those to other hosts are skipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=\"([^\"]+)\"", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without its code."""
    return _CODE.sub(lambda code: "" if code[0].startswith("```") else "x", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    found = (next(filter(None, groups)) for groups in _LINK.findall(prose(page)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Of all headings, as both GitHub and MkDocs make them; they differ where several spaces follow each other."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", text, re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        if re.sub(r"\s", "-", words) == re.sub(r"[-\s]+", "-", words):
            found.add(re.sub(r"\s", "-", words))
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def problems(page: Path) -> list[str]:
    """One line for each link of the page that leads nowhere."""
    found = []
    for link in links(page):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (ROOT not in target.parents and target != ROOT):
            found.append(f"{link}: no such file")
        elif not place.startswith("/") and anchor and target.suffix == ".md" and anchor not in anchors(target):
            found.append(f"{link}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert problems(page) == []


def test_links_are_found():
    assert sum(len(links(page)) for page in PAGES) > 100


def test_the_docs_link_to_every_image():
    linked = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    commands = {ROOT / "docs/images/cat.jpg"}  # the README's command predicts it
    assert set((ROOT / "docs/images").iterdir()) - linked <= commands


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](missing.md)", "missing.md: no such file"),
        ("[a](#nothing)", "#nothing: no such heading"),
        ("[a](other.md#nothing)", "other.md#nothing: no such heading"),
        ("![a](images/missing.png)", "images/missing.png: no such file"),
        ("[a]: missing.md", "missing.md: no such file"),
        ("[a](../../outside)", "../../outside: no such file"),
    ],
)
def test_a_broken_link_is_reported(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_docs_links.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# Title\n\n## A heading\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text} [good](other.md#a-heading) [good](#page)\n\n```\n[code](nowhere)\n```\n")
    assert problems(page) == [expected]
