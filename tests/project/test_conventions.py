"""The conventions page is executable: its snippets run unchanged, in order."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conventions.md"


def test_the_conventions_page_holds() -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 4
    source = "\n".join(snippets)
    assert source.count("assert") >= 8
    exec(compile(source, str(PAGE), "exec"), {})
