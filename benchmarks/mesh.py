"""Meshes of procedural scenes compared with the true surface: from perfect Gaussians and from the network's.

    python benchmarks/mesh.py [--scenes 10] [--weights ilrm-small]

Scenes whose cameras hardly move are skipped. Of the views along a path every second one is used: the mesh is fused
from those cameras, and the Gaussians come from those photos. Perfect Gaussians are one flat, opaque Gaussian a pixel on
the true depth, as large as the pixel is there. The true surface is what all views see at twice the size, the unused
ones included, without the sky, which is not a surface. Recall leaves out ground so near the horizon that
neighbouring pixels lie farther apart than half the threshold. Both surfaces are scored as points, one a cell of a
quarter of the threshold, inside the box of the true points; the threshold is 1 % of the diagonal of that box. Prints a
Markdown table.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
import torch
import tyro

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians, matrix_to_quaternion
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import ProceduralConfig, layout, make_scene
from ilrm.datasets.procedural.config import Kind
from ilrm.evaluate.geometry import SurfaceScore, compare_surfaces
from ilrm.mesh.fusion import is_watertight
from ilrm.mesh.make_mesh import mesh_gaussians
from ilrm.mesh.tsdf import Surface
from ilrm.model.ilrm import ILRM
from ilrm.model.reconstruct import reconstruct

_SIZE = 0.3  # standard deviation of a perfect Gaussian, in pixels


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        scenes: number of scenes.
        seed: of the first scene.
        views: views of each scene, half of which are used.
        size: width and height in pixels.
        share: the threshold as a share of the scene's size.
        weights: name or path of the network; "none" leaves it out.
        kind: closed rooms, open ground under a sky, or both.
    baseline: range of the path's length as a share of the distance to what the cameras look at.
    """

    scenes: int = 10
    seed: int = 100_000
    views: int = 16
    size: int = 128
    share: float = 0.01
    weights: str = "ilrm-small"
    kind: Kind = "mixed"
    baseline: tuple[float, float] = (0.5, 1.2)


def points_of(depth: torch.Tensor, cameras: Cameras) -> torch.Tensor:
    """(V, H, W, 3) world points behind all pixels of z-depth (V, H, W)."""
    origins, directions = cameras.rays()
    along = (directions * cameras.forward[:, None, None]).sum(-1, keepdim=True)
    return origins + directions * (depth[..., None] / along)


def solid(scene: Scene, seed: int, config: ProceduralConfig) -> torch.Tensor:
    """(V, H, W) True where a pixel does not show the sky, whose depth is that of procedural.casting."""
    assert scene.depth is not None
    dome = layout.sample_world(seed, config).dome
    origins, rays = scene.cameras.rays()
    unit_depth = rays / (rays * scene.cameras.forward[:, None, None]).sum(-1, keepdim=True)
    b = (origins * unit_depth).sum(-1)
    sky = (b * b - (origins * origins).sum(-1) + dome**2).sqrt() - b
    return scene.depth < 0.999 * sky


def true_points(seed: int, config: ProceduralConfig, share: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Points (N, 3) of the true surface, those (M, 3) where it is densely seen, and the scene's size."""
    scene = make_scene(seed, config)
    assert scene.depth is not None
    points, seen = points_of(scene.depth, scene.cameras), solid(scene, seed, config)
    size = float((points[seen].amax(0) - points[seen].amin(0)).norm())
    spacing = torch.zeros_like(scene.depth)
    for axis in (1, 2):
        steps = points.diff(dim=axis).norm(dim=-1)
        ends = torch.full_like(steps.narrow(axis, 0, 1), torch.inf)
        steps = torch.cat([ends, steps, ends], dim=axis)  # the nearer neighbour: the other may lie on another surface
        length = scene.depth.shape[axis]
        spacing = torch.maximum(spacing, torch.minimum(steps.narrow(axis, 0, length), steps.narrow(axis, 1, length)))
    dense = seen & (spacing <= share * size / 2)
    cell = share * size / 4
    return thinned(points[seen], cell), thinned(points[dense], cell), size


def perfect_gaussians(scene: Scene, wanted: torch.Tensor) -> Gaussians:
    """One Gaussian for each pixel in ``wanted`` (V, H, W): on the true surface, along it, as large as the pixel is."""
    assert scene.depth is not None
    points = points_of(scene.depth, scene.cameras)
    _, rays = scene.cameras.rays()
    right, down = torch.gradient(points, dim=(2, 1))
    normal = torch.nn.functional.normalize(torch.linalg.cross(right, down, dim=-1), dim=-1)
    cosine = (normal * rays).sum(-1, keepdim=True)
    # At silhouettes the difference of neighbours says nothing about the surface: there it faces the camera.
    sound = (cosine.abs() > 0.15) & (right.norm(dim=-1, keepdim=True) < 0.1 * scene.depth[..., None])
    normal, cosine = torch.where(sound, normal, rays), torch.where(sound, cosine.abs(), 1.0)
    side = torch.linalg.cross(normal, scene.cameras.c2w[:, None, None, :3, 1].expand_as(normal), dim=-1)
    tilted = torch.linalg.cross(normal, rays, dim=-1)
    axis = torch.nn.functional.normalize(torch.where(tilted.norm(dim=-1, keepdim=True) > 1e-3, tilted, side), dim=-1)
    frame = torch.stack([axis, torch.linalg.cross(normal, axis, dim=-1), normal], dim=-1)
    pixel = (scene.depth / scene.cameras.K[:, 0, 0][:, None, None])[..., None]
    scales = _SIZE * torch.cat([pixel, pixel / cosine, 0.1 * pixel], dim=-1)
    every = Gaussians(
        means=points.reshape(-1, 3),
        scales=scales.reshape(-1, 3),
        quats=matrix_to_quaternion(frame.reshape(-1, 3, 3)),
        opacities=torch.full((scene.depth.numel(),), 0.99),
        sh=((scene.images[:] - 0.5) / 0.2820948).reshape(-1, 1, 3),
    )
    return every[wanted.flatten()]


def sampled(surface: Surface, spacing: float) -> torch.Tensor:
    """(N, 3) points spread over the faces by area, several a square of the given side."""
    corners = surface.vertices[surface.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    draw = np.random.default_rng(0)
    number = int(min(max(8 * area.sum() / spacing**2, 1000), 3_000_000))
    chosen = corners[draw.choice(len(corners), number, p=area / area.sum())]
    u, v = np.sqrt(draw.random((number, 1))), draw.random((number, 1))
    return torch.from_numpy((1 - u) * chosen[:, 0] + u * (1 - v) * chosen[:, 1] + u * v * chosen[:, 2])


def thinned(points: torch.Tensor, cell: float) -> torch.Tensor:
    """One of the points (N, 3) in each cell, so that near surfaces do not count for more than far ones."""
    _, first = np.unique(np.floor(points.double().numpy() / cell).astype(np.int64), axis=0, return_index=True)
    return points.double()[torch.from_numpy(first)]


def with_parallax(seed: int, config: ProceduralConfig) -> Iterator[tuple[int, Scene]]:
    """Seeds and scenes, without those where the room has cut the path down to almost nothing."""
    for number in count(seed):
        scene = make_scene(number, config)
        assert scene.depth is not None
        extent = (scene.cameras.centers.amax(0) - scene.cameras.centers.amin(0)).norm()
        if extent > 0.1 * scene.depth.median():
            yield number, scene


def judge(surface: Surface, truth: torch.Tensor, required: torch.Tensor, threshold: float) -> SurfaceScore:
    points = thinned(sampled(surface, threshold / 4), threshold / 4)
    inside = ((points >= truth.amin(0) - threshold) & (points <= truth.amax(0) + threshold)).all(-1)
    if not inside.any():
        return SurfaceScore(np.inf, np.inf, 0.0, 0.0)
    return compare_surfaces(points[inside], truth, threshold, required)


def row(label: str, surface: Surface, score: SurfaceScore, size: float, seconds: float) -> str:
    closed = "yes" if is_watertight(surface) else "no"
    numbers = f"{score.precision:.3f} | {score.recall:.3f} | {score.f_score:.3f} | {100 * score.chamfer / size:.3f}"
    return f"| {label} | {len(surface.faces)} | {numbers} | {closed} | {seconds:.1f} |"


def main(options: Options) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        f"Commit {commit}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end=""
    )
    print(f"load {os.getloadavg()[0]:.1f} at the start; {options}\n")
    print("| scene, Gaussians | faces | precision | recall | F-score | Chamfer, % of size | watertight | s |")
    print("|---|---|---|---|---|---|---|---|")
    model = None if options.weights == "none" else ILRM.from_pretrained(options.weights)
    config = ProceduralConfig(
        views=options.views, width=options.size, height=options.size, kind=options.kind, baseline=options.baseline
    )
    scores: dict[str, list[SurfaceScore]] = {}
    for seed, scene in islice(with_parallax(options.seed, config), options.scenes):
        used = scene.select(range(0, options.views, 2))
        finer = replace(config, width=2 * options.size, height=2 * options.size)
        truth, required, size = true_points(seed, finer, options.share)
        sources = {"perfect": perfect_gaussians(used, solid(used, seed, config))}
        if model is not None:
            sources[options.weights] = reconstruct(used, model)
        for name, gaussians in sources.items():
            start = time.perf_counter()
            surface = mesh_gaussians(gaussians, used.cameras)
            seconds = time.perf_counter() - start
            score = judge(surface, truth, required, options.share * size)
            scores.setdefault(name, []).append(score)
            print(row(f"{seed}, {name}", surface, score, size, seconds), flush=True)
    print()
    for name, some in scores.items():
        values = [score.f_score for score in some]
        print(f"{name}: mean F-score {np.mean(values):.3f}, lowest {min(values):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
