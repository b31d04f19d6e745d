"""Quality from 2, 4, 8 and 12 photos, compared with the untrained network and optimisation from scratch.

    python benchmarks/weights.py FOLDER [FOLDER ...] -o out/weights --methods trained sparse
    python benchmarks/weights.py FOLDER [FOLDER ...] -o out/weights --methods untrained random
    python benchmarks/weights.py FOLDER [FOLDER ...] -o out/points --procedural 0 --methods trained points sparse

Procedural scenes have seeds that training never drew; every 4th of their 16 views is held out, every 8th photo of a
FOLDER. Starts: "trained" and "untrained" are the forward pass of the same network, "points" the trained one that is
also given the scene's sparse points; "random" draws as many Gaussians as
that makes on rays of the inputs, at random depths; "sparse" has one for every sparse point of the scene that lies in
two input images or more (all photos of the scene were used to find them, which favours it). All are then refined by
``ilrm.refine``. The time allowed to the last two is the processor time that "trained" took for its forward pass and
``--steps`` steps (it comes first), or "points" if that was measured and took longer; they are scored when it is used
up. ``--steps`` without a number compares forward passes.

Every result is appended to OUT/results.jsonl, so a stopped run can continue. OUT/table.md has the means.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ilrm import ILRM, Gaussians, Scene, load_scene, render
from ilrm.core.cameras import normalise
from ilrm.core.spherical_harmonics import C0
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.evaluate import depth_abs_rel, psnr, ssim
from ilrm.model.reconstruct import reconstruct
from ilrm.pipeline.refine import RefineConfig, refine
from ilrm.scenes import select_inputs, split_holdout

Method = Literal["trained", "points", "untrained", "random", "sparse"]
# Random depths, in units of the normalised frame: from a camera's own reach to far behind everything.
_RANDOM_DEPTHS = (0.5, 20.0)


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        folders: scenes on disk, or none.
        output: folder of the results.
        methods: starts to measure now.
        procedural: number of procedural scenes.
        refined: of those, how many are also refined.
        first: the first procedural scene to measure now, so that several processes can share them.
        views: numbers of input photos.
        steps: steps of refinement after which to look (the last one sets the time of the other starts).
        size: longer side of photos in pixels.
        weights: name or path.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out/weights")
    methods: tuple[Method, ...] = ("trained", "untrained", "random", "sparse")
    procedural: int = 50
    refined: int = 50
    first: int = 0
    views: tuple[int, ...] = (2, 4, 8, 12)
    steps: tuple[int, ...] = (100, 300)
    size: int = 256
    weights: str = "ilrm-small"


@cache
def network(weights: str, trained: bool) -> ILRM:
    model = ILRM.from_pretrained(weights)
    if not trained:
        torch.manual_seed(0)
        model = ILRM(model.config).eval()
    return model


def scenes(options: Options) -> Iterator[tuple[str, bool, Scene, list[int], list[int]]]:
    """Name, whether it is refined, scene, candidates for inputs, held-out views."""
    for folder in options.folders:
        scene = load_scene(folder, max_side=options.size)
        yield folder.name, True, scene, *split_holdout(len(scene), 8)
    config = ProceduralConfig(views=16, width=128, height=128, baseline=(0.1, 1.5))
    for i in range(options.first, options.procedural):
        scene = make_scene(1000 + i, config)
        yield f"procedural {i:02d}", i < options.refined, scene, *split_holdout(len(scene), 4)


@torch.no_grad()
def score(gaussians: Gaussians, views: Scene, near: float) -> dict[str, float]:
    seen = render(gaussians, views.cameras, near=near)
    truth = views.images[:]
    found = {"psnr": psnr(seen.rgb.clamp(0, 1), truth).mean().item(), "ssim": ssim(seen.rgb, truth).mean().item()}
    if views.depth is not None:
        found["abs_rel"] = depth_abs_rel(seen.depth, views.depth.to(seen.depth)).mean().item()
    return found


def start(method: Method, inputs: Scene, options: Options) -> Gaussians:
    match method:
        case "trained" | "untrained":
            return reconstruct(inputs, network(options.weights, method == "trained"), points=False)
        case "points":
            return reconstruct(inputs, network(options.weights, True), points=True)
        case "sparse":
            assert inputs.points is not None
            keep = _in_images(inputs) >= 2
            return _unconnected(
                inputs.points[keep].float(), None if inputs.points_rgb is None else inputs.points_rgb[keep]
            )
        case "random":
            return _random(inputs, network(options.weights, False).config.viewpoint_factor)


def _in_images(inputs: Scene) -> torch.Tensor:
    """(N,) in how many input images each sparse point lies."""
    assert inputs.points is not None
    cameras, points = inputs.cameras, inputs.points.double()
    local = points @ cameras.w2c[:, :3, :3].double().mT + cameras.w2c[:, None, :3, 3].double()  # (V, N, 3)
    pixel = (local @ cameras.K.double().mT)[..., :2] / local[..., 2:]
    inside = (pixel >= 0).all(-1) & (pixel <= torch.tensor([cameras.width, cameras.height])).all(-1)
    return (inside & (local[..., 2] > 0)).sum(0)


def _random(inputs: Scene, factor: int) -> Gaussians:
    """As many Gaussians as the network makes, at random pixels and log-uniform depths, with the pixels' colours."""
    generator = torch.Generator().manual_seed(0)
    cameras, to_world = normalise(inputs.cameras)
    views, height, width = len(inputs), cameras.height, cameras.width
    count = views * (height // factor) * (width // factor)
    origins, directions = cameras.rays()
    pick = torch.randint(views * height * width, (count,), generator=generator)
    low, high = torch.tensor(_RANDOM_DEPTHS).log().tolist()
    distance = torch.exp(low + (high - low) * torch.rand(count, 1, generator=generator))
    points = origins.expand_as(directions).reshape(-1, 3)[pick] + directions.reshape(-1, 3)[pick] * distance
    return _unconnected(to_world.apply_points(points).float(), inputs.images[:].reshape(-1, 3)[pick])


def _unconnected(points: torch.Tensor, rgb: torch.Tensor | None) -> Gaussians:
    """Round Gaussians as large as the mean distance of the three nearest others, opacity 0.1 (as 3DGS starts)."""
    from scipy.spatial import cKDTree

    nearest = cKDTree(points.numpy()).query(points.numpy(), 4)[0][:, 1:]
    size = torch.from_numpy(nearest).float().mean(1).clamp_min(1e-6)
    colour = torch.full_like(points, 0.5) if rgb is None else rgb.float()
    return Gaussians(
        means=points,
        scales=size[:, None].expand(-1, 3).contiguous(),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(len(points), 4).contiguous(),
        opacities=torch.full((len(points),), 0.1),
        sh=((colour - 0.5) / C0)[:, None],
    )


def measure(method: Method, inputs: Scene, held_out: Scene, options: Options, allowed: float | None) -> dict[str, Any]:
    """Scores after the start and the steps, and the processor seconds used (of one thread)."""
    near = inputs.cameras.near_plane()
    begin = time.process_time()
    gaussians = start(method, inputs, options)
    used = time.process_time() - begin
    result: dict[str, Any] = {"gaussians": len(gaussians), "start_s": used, "0": score(gaussians, held_out, near)}
    result["seconds"] = used
    if not options.steps and allowed is None:
        return result
    config = RefineConfig.long()
    if allowed is None:
        for steps in options.steps:
            begin = time.process_time()
            refined = refine(gaussians, inputs, steps, config=config).gaussians
            result[str(steps)] = score(refined, held_out, near)
            result["seconds"] = used + time.process_time() - begin
        return result
    begin = time.process_time()
    refine(gaussians, inputs, 10, config=config)
    each = (time.process_time() - begin) / 10
    steps = max(1, round((allowed - used) / each))
    begin = time.process_time()
    refined = refine(gaussians, inputs, steps, config=config).gaussians
    result["equal time"] = score(refined, held_out, near)
    result |= {"seconds": used + time.process_time() - begin, "steps": steps}
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Means by group of scenes (a real scene, all procedural ones), views and method."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in results:
        for stage in ("0", "100", "300", "equal time"):
            if stage in row:
                name = "procedural" if row["scene"].startswith("procedural") else row["scene"]
                groups[name, row["views"], row["method"], stage].append(row[stage])
    lines = [
        "| scenes | inputs | start | steps | PSNR | SSIM | depth AbsRel | scenes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, views, method, stage), rows in sorted(groups.items(), key=str):
        means = {key: sum(r[key] for r in rows) / len(rows) for key in rows[0]}
        depth = f"{means['abs_rel']:.3f}" if "abs_rel" in means else ""
        scores = f"{means['psnr']:.2f} | {means['ssim']:.3f} | {depth}"
        lines.append(f"| {name} | {views} | {method} | {stage} | {scores} | {len(rows)} |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["scene"], row["views"], row["method"]): row for row in results}
    for name, refined, scene, candidates, hidden in scenes(options):
        for views in options.views:
            if views > len(candidates):
                continue
            inputs = scene.select(select_inputs(scene.cameras, views, candidates)).loaded()
            for method in options.methods:
                if (name, views, method) in done or (method in ("random", "sparse") and not refined):
                    continue
                timed = [done[key]["seconds"] for x in ("trained", "points") if (key := (name, views, x)) in done]
                allowed = max(timed) if method in ("random", "sparse") else None
                run = options if refined else Options(**{**vars(options), "steps": ()})
                row = {"scene": name, "views": views, "method": method}
                row |= measure(method, inputs, scene.select(hidden), run, allowed)
                done[name, views, method] = row
                results.append(row)
                with file.open("a") as out:
                    out.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    (options.output / "table.md").write_text(table(results))


if __name__ == "__main__":
    main(tyro.cli(Options))
