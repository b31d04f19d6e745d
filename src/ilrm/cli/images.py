"""Renderings as PNG files, and their scores."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ilrm.files import write_bytes
from ilrm.paths import portable
from ilrm.scenes.save import LONGEST_STEM

if TYPE_CHECKING:
    from torch import Tensor

    from ilrm.cameras import Cameras
    from ilrm.cli.console import Console
    from ilrm.gaussians import Gaussians
    from ilrm.scene import Scene

_NEAR = 0.01  # of the cameras' extent: the rule of the released network, whatever the world's unit is


def near_plane(cameras: Cameras) -> float:
    """The near plane in world units that goes with these cameras."""
    from ilrm.cameras import normalise

    return _NEAR * normalise(cameras)[1].scale


def save_png(image: Tensor, path: Path) -> None:
    """Write an image (H, W, 3), uint8 or in [0, 1] and then rounded to 8 bits."""
    from PIL import Image

    from ilrm.export.video import as_image8

    buffer = io.BytesIO()
    Image.fromarray(as_image8(image)).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def file_stems(names: Sequence[str]) -> list[str]:
    """One flat file name a view, without suffix; views whose names would collide or be too long get their number."""
    flat = [str(PurePosixPath(name.replace("\\", "/")).with_suffix("")).strip("/.").replace("/", "_") for name in names]
    stems = [portable(stem) for stem in flat]
    stems = [stem if len(stem.encode()) <= LONGEST_STEM else "" for stem in stems]
    times = Counter(stems)
    return [stem if times[stem] == 1 and stem else f"{i:04d}_{stem}" for i, stem in enumerate(stems)]


def score(gaussians: Gaussians, scene: Scene, near: float) -> tuple[float, float | None] | None:
    """Mean PSNR in dB and mean SSIM over the views of a scene; None without views in which a pixel counts."""
    from ilrm.evaluate import psnr, ssim
    from ilrm.evaluate.metrics import mean_of_known

    psnrs, ssims = [], []
    for view in range(len(scene)):
        rgb, truth = render_view(gaussians, scene.cameras[view], near), scene.images[[view]]
        mask = scene.mask_of([view])
        psnrs.append(psnr(rgb[None], truth, mask).item())
        ssims.append(ssim(rgb[None], truth, mask).item())
    mean = mean_of_known(psnrs)
    return None if mean is None else (mean, mean_of_known(ssims))


def render_view(gaussians: Gaussians, camera: Cameras, near: float) -> Tensor:
    """What one camera sees, (H, W, 3) on the CPU, not clamped."""
    import torch

    from ilrm.render import render

    with torch.no_grad():
        return render(gaussians, camera, near=near).rgb[0].cpu()


def save_comparisons(gaussians: Gaussians, scene: Scene, folder: Path, near: float, console: Console) -> None:
    """For every view NAME.png, the rendering, and NAME_vs_truth.png, the rendering beside the photo."""
    import torch

    with console.progress("rendering", len(scene)) as advance:
        for view, stem in enumerate(file_stems(scene.names)):
            rgb = render_view(gaussians, scene.cameras[view], near)
            save_png(rgb, folder / f"{stem}.png")
            save_png(torch.cat([rgb, scene.images[view].cpu()], dim=1), folder / f"{stem}_vs_truth.png")
            advance("")
