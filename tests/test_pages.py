"""The Markdown pages: every link leads somewhere, the README's tree is the tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kssm.cli import COMMANDS

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "kssm", "clients", "docker", "examples", "benchmarks", "experiments")
PAGES = [
    page
    for folder in (ROOT, *map(ROOT.joinpath, FOLDERS))
    for page in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
    if "node_modules" not in page.parts
]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def dead_links(page: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def test_pages_are_found() -> None:
    assert {"README.md", "CHANGELOG.md"} <= {page.name for page in PAGES}
    assert len(PAGES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("## A heading, with `code`\n")
    page = tmp_path / "page.md"
    good, bad = ["other.md", "other.md#a-heading-with-code"], ["none.md", "other.md#none", "#none"]
    page.write_text("".join(f"[x]({link})\n" for link in good + bad))
    assert list(dead_links(page)) == bad


def test_the_tree_of_the_readme_is_there() -> None:
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", README, re.S)
    parent = ROOT
    for indent, name in re.findall(r"^( *)(\S+?)/ ", tree, re.M):
        folder = (parent if indent else ROOT) / name
        assert folder.is_dir(), folder
        parent = parent if indent else folder
    (commands,) = re.findall(r"kssm (serve \|.*)", tree)
    assert set(commands.split(" | ")) == COMMANDS.keys()
