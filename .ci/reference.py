"""For the reference: its parser takes "width, height: image size" in docstrings for a name and a type.

Another kind of space keeps such names together.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_NAMES = re.compile(r"^ +\w+(?:, \w+)+:", re.MULTILINE)


class NamesTogether(griffe.Extension):
    """Change docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _NAMES.sub(_joined, obj.docstring.value)


def _joined(match: re.Match[str]) -> str:
    return match[0].replace(", ", ",\u2005")
