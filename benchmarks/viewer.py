"""The viewer: time to prepare and to reach a browser, size of the page, and the browser's picture against ours.

    python benchmarks/viewer.py                            # Gaussians of a random scene, without a browser
    python benchmarks/viewer.py --result out/fox           # a result's own, and its picture in Chromium

"sent" is from an empty server to a client that holds everything, over the loopback: loading without drawing.
The picture is compared at the first input camera once the splats are drawn in order, which takes long without a GPU.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
import viser
import websockets
from PIL import Image

from ilrm.core.gaussians import Gaussians
from ilrm.render import render
from ilrm.results import Result, load_result
from ilrm.splats import save_ply
from ilrm.view import save_page
from ilrm.view.live import Viewer
from ilrm.view.server import serve, show_layout, show_splats
from ilrm.view.splats import arrange, splat_arrays


@dataclass(frozen=True)
class Setting:
    """What to measure."""

    counts: tuple[int, ...] = (131_072, 300_000, 1_000_000)
    result: Path | None = None
    size: int = 480
    """Width and height of the browser's window."""
    patience: float = 300.0
    """Seconds to wait for the picture."""


def random_gaussians(count: int) -> Gaussians:
    """Compresses worse than any scene."""
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(count, 3, generator=g),
        scales=0.01 * torch.exp(0.5 * torch.randn(count, 3, generator=g)),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        opacities=torch.rand(count, generator=g),
        sh=0.5 * torch.randn(count, 1, 3, generator=g),
    )


async def received(port: int, least: int) -> float:
    """Seconds until a client of the server has received that many bytes."""
    begun, held = time.perf_counter(), 0
    protocol = websockets.Subprotocol(f"viser-v{viser.__version__}")
    async with websockets.connect(f"ws://127.0.0.1:{port}", subprotocols=[protocol], max_size=None) as client:
        while held < least:
            held += len(await client.recv())
    return time.perf_counter() - begun


def measure(gaussians: Gaussians) -> str:
    result = Result(Path("random/scene.ply"), gaussians)
    with serve() as server:
        begun = time.perf_counter()
        viewer = Viewer(server, result)
        prepared = time.perf_counter() - begun
        sent = asyncio.run(received(server.get_port(), 32 * len(gaussians)))
        viewer.close()
    with tempfile.TemporaryDirectory() as folder:
        page, ply = Path(folder) / "page.html", Path(folder) / "scene.ply"
        begun = time.perf_counter()
        save_page(gaussians, page)
        written = time.perf_counter() - begun
        save_ply(gaussians, ply)
        sizes = page.stat().st_size, ply.stat().st_size
    megabytes = f"{sizes[0] / 1e6:.1f} | {sizes[1] / 1e6:.1f} | {sizes[0] / sizes[1]:.2f}"
    return f"| {len(gaussians):,} | {prepared:.2f} | {sent:.2f} | {written:.2f} | {megabytes} |"


def in_chromium(result: Result, size: int, patience: float) -> None:
    """Print the PSNR of screenshots until it no longer changes."""
    from playwright.sync_api import sync_playwright

    layout = arrange(result.gaussians, result.cameras)
    seen = render(result.gaussians, layout.poses[0].camera(size, size), near=layout.near).rgb[0].clamp(0, 1).numpy()
    args = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with serve() as server, sync_playwright() as playwright:
        show_layout(server, layout)
        show_splats(server, splat_arrays(result.gaussians))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=args)
        page = browser.new_page(viewport={"width": size, "height": size})
        page.set_default_timeout(1000 * patience)
        page.goto(f"http://127.0.0.1:{server.get_port()}")
        page.add_style_tag(
            content="[class*=Notifications], [class*=Paper-root], [class*=dock] { visibility: hidden !important }"
        )
        begun, before = time.perf_counter(), -1.0
        while time.perf_counter() - begun < patience:
            picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")) / 255.0
            psnr = -10 * np.log10(np.square(picture - seen).mean())
            print(f"{len(result.gaussians):,} Gaussians after {time.perf_counter() - begun:.0f} s: {psnr:.2f} dB")
            if psnr == before and psnr > 20:
                break
            before = psnr
            time.sleep(2)
        browser.close()


def main(setting: Setting) -> None:
    print("| Gaussians | prepared s | sent s | page s | page MB | PLY MB | page / PLY |\n|---|---|---|---|---|---|---|")
    if setting.result is None:
        for count in setting.counts:
            print(measure(random_gaussians(count)))
        return
    result = load_result(setting.result)
    print(measure(result.gaussians))
    in_chromium(result, setting.size, setting.patience)


if __name__ == "__main__":
    main(tyro.cli(Setting))
