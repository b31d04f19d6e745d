"""Texts are narrow, write 0.5 and not .5, and avoid phrases that no native speaker would use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "tests").rglob("*.md"))]
SOURCES = [
    *(path for folder in ("src", "tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))),
    *(path for path in (ROOT / "examples").glob("*.ipynb")),
    *(ROOT / name for name in ("Makefile", "mkdocs.yml", "pyproject.toml", ".ci/run", ".ci/newest")),
]
WIDTH = 100
# Literal translations, and phrases that readers had to read twice.
BANNED = (
    "every so-manieth",
    "told before",
    "for want of",
    "the way through",
    "the way there",
    "nothing else is lost for",
    "is said",
    "are said",
    "of strangers",
    "stands beside",
    "stands in the",
    "of so many",
    "what came of",
)


def too_long(text: str) -> Iterator[int]:
    """Numbers of the lines over ``WIDTH``. Rows of tables cannot be broken; targets of links do not count."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|") and len(re.sub(r"\]\([^)]*\)|https?://\S+", "", line)) > WIDTH:
            yield number


def bare_points(text: str) -> Iterator[int]:
    """Numbers of the lines with a number such as .5, outside code."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith("    ") and re.search(r"(?<![\w.])\.\d", re.sub(r"`[^`]*`", "", line)):
            yield number


def banned(text: str) -> Iterator[tuple[int, str]]:
    """Banned phrases with the number of the line where each begins, also where it goes over the end of the line."""
    for phrase in BANNED:
        pattern = r"\b" + r"(?:\s|#)+".join(map(re.escape, phrase.split())) + r"\b"
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, phrase


def report(path: Path, findings: Iterable[object]) -> list[str]:
    """One line per finding, which an editor can open."""
    places = [(x[0], f": {x[1]}") if isinstance(x, tuple) else (x, "") for x in findings]
    return [f"{path.relative_to(ROOT)}:{number}{what}" for number, what in places]


def test_lines_of_pages_are_narrow() -> None:
    found = [place for page in PAGES for place in report(page, too_long(page.read_text("utf-8")))]
    assert not found, "\n".join(found)


def test_numbers_in_pages_have_a_leading_zero() -> None:
    found = [place for page in PAGES for place in report(page, bare_points(page.read_text("utf-8")))]
    assert not found, "\n".join(found)


def test_no_banned_phrase() -> None:
    texts = [path for path in (*PAGES, *SOURCES) if path != Path(__file__).resolve()]
    found = [place for path in texts for place in report(path, banned(path.read_text("utf-8")))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("check", "text", "expected"),
    [
        (too_long, "short\n" + 101 * "x", [2]),
        (too_long, "| " + 120 * "x" + " |\n[a](" + 120 * "x" + ")", []),
        (bare_points, "a\n| b | .5 |\nfrom 0.5 to .7", [2, 3]),
        (bare_points, "    x = .5\n```\n.5\n```\n`.5` or scene.7z, torch 2.13.0", []),
        (banned, "x\n# It is told\n# before the work.", [(2, "told before")]),
    ],
)
def test_the_checks_can_fail(check, text: str, expected: list[object]) -> None:
    assert list(check(text)) == expected
