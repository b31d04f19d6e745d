"""Comparison of Gaussians that went through a file, and independent programs that read those files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from ilrm.core.gaussians import Gaussians
from ilrm.splats import load_ply


def differences(back: Gaussians, original: Gaussians) -> dict[str, float]:
    """Largest absolute error of each attribute; shapes are compared as covariances relative to their size.

    Quaternions cannot be compared: q, -q and permutations of the axes give the same ellipsoid.
    """
    expected = original.covariances()
    shape = (back.covariances() - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1))
    errors = {name: (getattr(back, name) - getattr(original, name)).abs() for name in ("means", "opacities", "sh")}
    return {name: error.max().item() for name, error in {**errors, "shape": shape}.items()}


def in_order_of(back: Gaussians, original: Gaussians) -> Gaussians:
    """The Gaussians read, in the order of those written, for formats that reorder: nearest centres are matched."""
    nearest = torch.cdist(original.means, back.means).argmin(dim=1)
    assert len(set(nearest.tolist())) == len(original) == len(back)
    return back[nearest]


def splat_transform(source: Path, target: Path) -> Path:
    """Convert with PlayCanvas's program; the calling test is skipped if it is not installed."""
    if shutil.which("splat-transform") is None:
        pytest.skip("splat-transform is not installed (npm install -g @playcanvas/splat-transform)")
    subprocess.run(
        ["splat-transform", "-q", "-w", "-g", "cpu", str(source), str(target)], check=True, capture_output=True
    )
    return target


def read_by_splat_transform(path: Path) -> Gaussians:
    """The Gaussians that PlayCanvas's program reads from a file, through a plain PLY."""
    return load_ply(splat_transform(path, path.with_name("independent.ply")))


def gltf_issues(path: Path) -> list[dict[str, Any]]:
    """What Khronos's validator reports."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    root = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=False).stdout.strip()
    script = (
        "const v = require('gltf-validator'), fs = require('fs');"
        "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))"
        ".then(r => console.log(JSON.stringify(r.issues.messages)));"
    )
    command, environment = ["node", "-e", script, str(path)], {**os.environ, "NODE_PATH": root}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "Cannot find module" in done.stderr:
        pytest.skip("gltf-validator is not installed (npm install -g gltf-validator)")
    return json.loads(done.stdout)
