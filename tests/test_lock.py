"""The lock: no package reaches users or tests without an exact version."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).resolve().parents[1] / "constraints.txt"
# Builds of torch for accelerators pin these themselves.
OF_TORCH = re.compile(r"nvidia|cuda|triton")


def pins() -> list[Requirement]:
    lines = LOCK.read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed(name: str, extras: tuple[str, ...], found: set[str]) -> set[str]:
    """All packages that one needs here, at any depth."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras))
        if wanted and (key := canonicalize_name(requirement.name)) not in found:
            found.add(key)
            needed(key, tuple(requirement.extras), found)
    return found


def test_torch_comes_first_and_everything_is_exact() -> None:
    assert str(pins()[0]).startswith("torch==")
    for pin in pins():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), pin


def test_every_package_is_locked() -> None:
    try:
        found = needed("ilrm", ("dev",), set()) - {"ilrm"}
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"not all of ilrm[dev] is installed: {error}")
    here = {canonicalize_name(pin.name) for pin in pins() if pin.marker is None or pin.marker.evaluate()}
    assert len(found) > 50
    assert sorted(name for name in found - here if not OF_TORCH.match(name)) == []
