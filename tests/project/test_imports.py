"""The direction of imports: only from right to left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "ilrm"
LEVELS = [
    {"core"},
    {"files"},
    {"scenes", "model", "render"},
    {"datasets", "evaluate", "splats"},
    {"pictures"},
    {"mesh", "results", "train"},
    {"view"},
    {"pipeline"},
    {"cli"},
]
# On one level, but not allowed to import each other: the network needs no files. It may render, to see what it made.
STRANGERS = {(a, b) for a in ("model", "scenes", "render") for b in ("model", "scenes", "render") if a != b}
STRANGERS -= {("model", "render")}
MOST_SIBLINGS = 15


def level(part: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if part in names)


def imports(path: Path) -> set[str]:
    """First part below ``ilrm`` of everything a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "ilrm":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("ilrm."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ilrm.")}
    return found


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_left(path: Path) -> None:
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for other in imports(path) - {here}:
        assert (here, other) not in STRANGERS, f"{here} must not know {other}"
        assert level(other) <= level(here), f"{here} imports {other}, which is to its right"


def test_packages_import_each_other_one_way() -> None:
    """Packages of one level may import each other, but not in a circle."""
    uses: dict[str, set[str]] = {}
    for path in FILES:
        here = path.relative_to(SOURCE).parts[0]
        uses.setdefault(here, set()).update(imports(path) - {here})
    done: list[str] = []
    while len(done) < len(uses):
        free = [room for room in uses if room not in done and uses[room] <= {*done}]
        assert free, f"a circle among {sorted(set(uses) - set(done))}"
        done += free


# Both import inside a call: ILRM.from_pretrained, and the command line before it reads its arguments.
LATE = {("ilrm.model.ilrm", "ilrm.model.weights"), ("ilrm.cli", "ilrm.cli.commands")}


def test_modules_import_each_other_one_way() -> None:
    """No circle of imports, including imports for types only."""
    names = {".".join(("ilrm", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    uses: dict[str, set[str]] = {}
    for name, path in names.items():
        lines = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom))
        found = ((line.module or "", alias.name) for line in lines for alias in line.names)
        modules = {f"{module}.{part}" if f"{module}.{part}" in names else module for module, part in found}
        uses[name] = {other for other in modules if other in names and other != name and (name, other) not in LATE}
    done: set[str] = set()
    while len(done) < len(uses):
        free = {name for name in uses if name not in done and uses[name] <= done}
        assert free, f"a circle among {sorted(set(uses) - done)}"
        done |= free


def test_packages_are_not_crowded() -> None:
    folders = {path.parent for path in FILES} | {SOURCE}
    counts = {
        folder: len([x for x in folder.iterdir() if x.suffix == ".py" or (x / "__init__.py").exists()])
        for folder in folders
    }
    assert {str(folder): count for folder, count in counts.items() if count > MOST_SIBLINGS + 1} == {}


def test_tests_have_the_same_folders() -> None:
    """So that a reader finds the tests of a package. The others test no single package."""
    tests = SOURCE.parents[1] / "tests"
    folders = {folder.name for folder in tests.iterdir() if any(folder.glob("test_*.py"))}
    assert folders - {"devices", "fuzz", "project"} == {path.parent.name for path in SOURCE.glob("*/__init__.py")}


@pytest.mark.parametrize("room", ["docs", "tests"])
def test_other_folders_are_not_crowded(room: str) -> None:
    """``tests`` itself has a folder for each package, and some more."""
    top = SOURCE.parents[1] / room
    folders = [
        folder for folder in (top, *top.rglob("*")) if folder.is_dir() and folder.name not in ("tests", "__pycache__")
    ]
    counts = {folder: len([x for x in folder.iterdir() if not x.name.startswith("__")]) for folder in folders}
    assert {str(folder): count for folder, count in counts.items() if count > MOST_SIBLINGS} == {}


def test_the_check_sees_violations(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def f():\n    from ilrm.cli import main\n    import ilrm.view.page\n")
    assert imports(tmp_path / "x.py") == {"cli", "view"}


def test_the_package_s_names_are_those_that_type_checkers_see() -> None:
    import ilrm

    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name: line.module for line in block.body for alias in line.names}  # type: ignore[attr-defined]
    homes = {name: f"ilrm.{home}" for home, names in ilrm._HOMES.items() for name in names}
    assert declared == homes
    assert sorted(homes) == sorted(ilrm.__all__)
    assert set(ilrm.__all__) <= set(dir(ilrm))


def test_functions_that_are_named_like_their_module_stay_functions() -> None:
    import ilrm.model.reconstruct
    import ilrm.pipeline.refine
    import ilrm.render.rules

    for name in ("reconstruct", "refine", "render"):
        assert callable(getattr(ilrm, name))
    assert ilrm.files.paths.exists(SOURCE)  # modules are available as if they had been imported
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ilrm.nothing  # noqa: B018
