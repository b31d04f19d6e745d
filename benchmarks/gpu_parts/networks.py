"""Networks: encoding, compiled or not, matching, feedback, and the same weights on the CPU and on the device."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from gpu_parts.bench import Bench, inference_network, random_network, views_of
from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.core.precision import autocast
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import ProceduralConfig
from ilrm.datasets.procedural.batch import make_batch
from ilrm.model import ILRM, ILRMConfig
from ilrm.model.compute.attention import known_kernels
from ilrm.render.comparison import compare
from ilrm.train.presets import preset


def released(bench: Bench) -> tuple[ILRMConfig, ILRMConfig]:
    """The two released layouts; the small form has two of their layers."""
    both = ILRMConfig.released_two_view(), ILRMConfig.released_wide()
    return tuple(replace(config, layers=2) for config in both) if bench.small else both  # type: ignore[return-value]


def encode(bench: Bench) -> dict[str, Any]:
    """The paper's settings: (views, resolution of viewpoints, of images)."""
    main, wide = released(bench)
    settings = {
        "(2,F,F) 256": (main, 2, 256, 256),
        "(4,H,F) 256": (wide, 4, 256, 256),
        "(8,H,F) 256": (wide, 8, 256, 256),
        "(16,H,F) 544x960": (wide, 16, 544, 960),
        "(32,H,F) 544x960": (wide, 32, 544, 960),
        "(64,H,F) 544x960": (wide, 64, 544, 960),
    }
    if bench.small:
        settings = {"(2,F,F) 64": (main, 2, 64, 64), "(4,H,F) 64": (wide, 4, 64, 64)}
    found: dict[str, Any] = {}
    models: dict[int, ILRM] = {}
    for name, (config, views, height, width) in settings.items():
        if id(config) not in models:
            models[id(config)] = inference_network(config, bench)
        model = models[id(config)]
        inputs = views_of(views, height, width, bench)
        bench.forget_peak()

        def work(model: ILRM = model, inputs: tuple[torch.Tensor, ...] = inputs) -> object:
            with torch.inference_mode(), autocast(bench.precision, bench.device):
                return model(*inputs)

        large = height > 300
        seconds = bench.seconds(work, repeats=3 if large else 10, warm=1 if large else 3)
        found[name] = {"ms": 1e3 * seconds, "peak_gib": bench.peak_gib()}
        if not large or views == 32:
            found[name] |= bench.profile(work)
    found["attention"] = {
        f"{shape.sequences} x {shape.queries} x {shape.keys}": kernel for shape, kernel in known_kernels().items()
    }
    return found


def compiled(bench: Bench) -> dict[str, Any]:
    """The settings that launching dominates and a large one, compiled; the small form only traces."""
    (main, wide), found = released(bench), {}
    settings = {
        "(2,F,F) 256": (main, 2, 256, 256),
        "(4,H,F) 256": (wide, 4, 256, 256),
        "(8,H,F) 256": (wide, 8, 256, 256),
        "(32,H,F) 544x960": (wide, 32, 544, 960),
    }
    if bench.small:
        settings = {"(2,F,F) 64": (main, 2, 64, 64)}
    for name, (config, views, height, width) in settings.items():
        model = inference_network(config, bench)
        inputs = views_of(views, height, width, bench)

        def work(model: ILRM = model, inputs: tuple[torch.Tensor, ...] = inputs) -> Gaussians:
            with torch.no_grad(), autocast(bench.precision, bench.device):
                return model(*inputs)

        plain = work().means
        model.compile(backend="eager" if bench.small else "inductor")
        begun = time.perf_counter()
        apart = (work().means - plain).norm(dim=-1) / plain.norm(dim=-1)
        bench.wait()
        found[name] = {"first_s": time.perf_counter() - begun, "median_difference": apart.median().item()}
        bench.forget_peak()
        repeats, warm = (20, 5) if height < 300 else (3, 1)
        found[name] |= {"ms": 1e3 * bench.seconds(work, repeats, warm), "peak_gib": bench.peak_gib()}
        found[name] |= bench.profile(work)
    return found


def matching(bench: Bench) -> dict[str, Any]:
    """Plane sweep and cross-checks of the shipped network's kind."""
    config = preset("synthetic-small").model
    assert config.matching is not None
    batch, views, side = (1, 3, 32) if bench.small else (4, 8, 128)
    images, c2w, K = views_of(views, side, side, bench)
    images, c2w, K = (x.expand(batch, *x.shape[1:]).contiguous() for x in (images, c2w, K))
    network = random_network(config, bench)

    def work() -> object:
        with torch.inference_mode():
            return network.decoder_inputs(images, c2w, K, None)

    return {"ms": 1e3 * bench.seconds(work), **bench.profile(work)}


def feedback(bench: Bench) -> dict[str, Any]:
    """Reconstructing with feedback iterations, all kept in this measurement, and one comparison alone."""
    config = preset("synthetic-feedback").model
    model = inference_network(config, bench).train()
    found: dict[str, Any] = {}
    for views, side in ((2, 32),) if bench.small else ((8, 256), (12, 256)):
        inputs = views_of(views, side, side, bench)

        def work(iterations: int, inputs: tuple[torch.Tensor, ...] = inputs) -> Gaussians:
            with torch.no_grad(), autocast(bench.precision, bench.device):
                return model(*inputs, feedback=iterations)

        made, cameras = work(0), Cameras(inputs[1], inputs[2], side, side)
        bench.forget_peak()
        found[f"{views} x {side}"] = {
            "compare_ms": 1e3 * bench.seconds(lambda made=made, c=cameras, x=inputs[0]: compare(made, c, x)),
            **{f"{count} iterations_ms": 1e3 * bench.seconds(partial(work, count)) for count in (0, 1, 3)},
            "peak_gib": bench.peak_gib(),
            **bench.profile(partial(work, 3)),
        }
    return found


def transfer(bench: Bench) -> dict[str, Any]:
    """The shipped network, CPU against device."""
    from ilrm.model.reconstruct import reconstruct

    model = ILRM.from_pretrained("ilrm-small")
    made = make_batch([5], ProceduralConfig(views=3, width=64, height=64))
    cameras = Cameras(made.c2w[0], made.K[0], 64, 64)
    scene = Scene(made.images[0], cameras, ("a", "b", "c"))
    expected, found = reconstruct(scene, model, precision="fp32"), {}
    model = model.to(bench.device)
    for precision in ("fp32", "bf16") if bench.precision == "bf16" else ("fp32",):
        ours = reconstruct(scene, model, precision=precision)  # type: ignore[arg-type]
        apart = (ours.means.cpu() - expected.means).norm(dim=-1) / expected.means.norm(dim=-1).mean()
        found[precision] = {"median_of_centres": apart.median().item()}
    return found
