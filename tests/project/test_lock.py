"""The lock: every package that users and tests get has an exact version."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "constraints.txt"
# Builds of torch for accelerators pin these themselves.
OF_TORCH = re.compile(r"nvidia|cuda|triton")


def pins() -> list[Requirement]:
    lines = LOCK.read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed(name: str, extras: tuple[str, ...], found: set[str]) -> set[str]:
    """All packages that one depends on, at any depth."""
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


# Modules whose names are not those of their packages.
MODULES = {"scikit-image": "skimage", "fast-simplification": "fast_simplification"}
MODULES |= {"lightning-fabric": "lightning_fabric"}
# The packages that import those that we do not import ourselves.
FOR_OTHERS = {"ninja": "gsplat", "tensorboard": "torch"}


def test_every_extra_is_used() -> None:
    """Every package of an extra, except those for developers, is imported somewhere in the package."""
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    extras = toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {"dev", "docs", "all"} <= set(extras)
    imported = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
    packages = {Requirement(x).name for name in extras if name not in ("dev", "docs", "all") for x in extras[name]}
    assert len(packages) > 5
    importers = {name: FOR_OTHERS.get(name, name) for name in packages}
    assert {name for name, importer in importers.items() if MODULES.get(importer, importer) not in imported} == set()
    (everything,) = [Requirement(x).extras for x in extras["all"]]
    assert everything == set(extras) - {"dev", "docs", "all"}
