"""The pages: every public name is in the reference, snippets run, links work, nothing is loaded from elsewhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ilrm
from tests.conftest import CAPTURE, PATIENCE_S, make_cameras, make_gaussians

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
_MOST_LINES = 90  # two screens


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text("utf-8") for page in DOCS.glob("reference/*.md"))
    documented = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    homes = {name: getattr(ilrm, name) for name in ilrm.__all__}
    missing = {name for name, value in homes.items() if f"{value.__module__}.{value.__qualname__}" not in documented}
    assert missing == set()


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= _MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_name_what_is_there(page: Path) -> None:
    for snippet in snippets(page):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ilrm":
                assert hasattr(ilrm, node.attr), f"ilrm.{node.attr}"


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def run(code: str, folder: Path) -> str:
    """What a program prints, in a folder that holds the bundled capture as my_capture."""
    if not (folder / "my_capture").exists():
        (folder / "my_capture").symlink_to(CAPTURE)
    paths = os.pathsep.join([str(folder), str(ROOT / "src")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_python_guide_runs(tmp_path: Path) -> None:
    """The guide, with fewer steps and smaller photos."""
    code = "\n".join(snippets(DOCS / "guides" / "python.md"))
    for large, small in (('refine="30s"', "refine=2, size=64, export=()"), ("steps=300", "steps=2"), ("=256", "=64")):
        assert large in code
        code = code.replace(large, small)
    code = code.replace("frames=90", "frames=3")
    said = run(code, tmp_path)
    assert "(1, 64, 64, 3)" in said.replace("torch.Size([", "(").replace("])", ")")
    assert "nowhere does not exist" in said
    for name in ("out/scene.ply", "scene.spz", "scene.html", "flight.mp4", "mesh.ply"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
def test_coming_from_nerfstudio(tmp_path: Path) -> None:
    """The move into nerfstudio's frame: place = scale * transform @ (the world before ``applied_transform``)."""
    gaussians = make_gaussians(7)
    (tmp_path / "out").mkdir()
    (tmp_path / "capture").mkdir()
    ilrm.save_gaussians(gaussians, tmp_path / "out" / "scene.ply")
    applied = [[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    transform = [[0.0, 0, 1, 0.5], [1, 0, 0, -0.25], [0, 1, 0, 2]]
    for name, text in (
        ("capture/transforms.json", f'{{"applied_transform": {applied}}}'),
        ("dataparser_transforms.json", f'{{"transform": {transform}, "scale": 0.4}}'),
    ):
        (tmp_path / name).write_text(text)
    (code,) = snippets(DOCS / "coming-from" / "nerfstudio.md")
    run(code.replace("my_capture", "capture"), tmp_path)
    before = torch.linalg.solve(torch.tensor(applied)[:, :3], gaussians.means.T).T
    expected = 0.4 * (before @ torch.tensor(transform)[:, :3].T + torch.tensor(transform)[:, 3])
    torch.testing.assert_close(ilrm.load_gaussians(tmp_path / "out" / "in_nerfstudio.ply").means, expected)


_GSPLAT = """
def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, sh_degree, rasterize_mode):
    assert means.shape[1:] == quats[:, 1:].shape[1:] == scales.shape[1:] == (3,)
    assert colors.shape == (len(means), (sh_degree + 1) ** 2, 3)
    assert viewmats.shape == (12, 4, 4) and Ks.shape == (12, 3, 3) and (width, height) == (256, 256)
    return None, None, None
"""


@pytest.mark.slow
def test_coming_from_gsplat(tmp_path: Path) -> None:
    """Against a function with gsplat's arguments, and a checkpoint as its trainer writes it."""
    gaussians = make_gaussians(7, 3)
    ilrm.save_gaussians(gaussians, tmp_path / "scene.ply")
    (tmp_path / "gsplat.py").write_text(_GSPLAT)
    splats = {
        "means": gaussians.means,
        "quats": 2 * gaussians.quats,
        "scales": gaussians.scales.log(),
        "opacities": gaussians.opacities.logit(),
        "sh0": gaussians.sh[:, :1],
        "shN": gaussians.sh[:, 1:],
    }
    torch.save({"step": 29999, "splats": splats}, tmp_path / "ckpt_29999_rank0.pt")
    code = "\n".join(snippets(DOCS / "coming-from" / "gsplat.md")).replace('"cuda"', '"cpu"')
    run(code.replace("trained.spz", "trained.ply"), tmp_path)
    trained = ilrm.load_gaussians(tmp_path / "trained.ply")
    for name in ("means", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(trained, name), getattr(gaussians, name), atol=1e-5, rtol=1e-4)


_VGGT = """
import torch
from pathlib import Path

class VGGT:
    @staticmethod
    def from_pretrained(name): return VGGT()
    def eval(self): return self
    def __call__(self, images): return {"pose_enc": None}

def load_and_preprocess_images(files): return torch.rand(len(files), 3, 48, 64)
def pose_encoding_to_extri_intri(encoding, size):
    assert tuple(size) == (48, 64)
    return torch.load("cameras.pt")
"""


@pytest.mark.slow
def test_coming_from_vggt(tmp_path: Path) -> None:
    """Against functions that return what VGGT's do."""
    cameras = make_cameras(3, 64, 48)
    torch.save((cameras.w2c[None, :, :3], cameras.K[None]), tmp_path / "cameras.pt")
    for name in ("vggt/models/vggt.py", "vggt/utils/load_fn.py", "vggt/utils/pose_enc.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(_VGGT)
    (code,) = snippets(DOCS / "coming-from" / "vggt.md")
    run(code, tmp_path)
    assert (tmp_path / "scene.html").stat().st_size > 0


@pytest.mark.slow
def test_the_site_builds_and_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text("utf-8")
        outside = [tag for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text) if "//" in tag]
        assert outside == [], page
        # On GitHub a list may follow a paragraph directly. Here it needs an empty line.
        assert not re.search(r"<p>[^<]*\n(?:[-*] |\|)", text), page
    reference = (tmp_path / "site" / "reference" / "values.html").read_text("utf-8")
    assert "resized to the cameras" in reference
    assert "<code>width,</code>" not in reference  # two names, not a name and its type
