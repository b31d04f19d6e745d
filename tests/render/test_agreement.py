"""The numba rasteriser gives the reference's images and gradients, on ordinary and on degenerate Gaussians."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ilrm.core.gaussians import Gaussians
from ilrm.render import render
from tests.conftest import make_cameras, make_gaussians
from tests.render.scenes import (
    IMAGES,
    PARAMETERS,
    assert_agree,
    change,
    front_camera,
    one_gaussian,
    render_with_gradients,
)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_random_gaussians(degree: int) -> None:
    assert_agree(make_gaussians(150, degree, seed=degree), make_cameras(3, 40, 27))


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_sweep(seed: int, antialiased: bool) -> None:
    """Sizes from a hundredth of a pixel to the whole image, any aspect, any opacity, any image size."""
    draw = torch.Generator().manual_seed(100 + seed)
    width, height = (int(x) for x in torch.randint(1, 70, (2,), generator=draw))
    count, degree = int(torch.randint(1, 120, (1,), generator=draw)), seed % 4
    gaussians = make_gaussians(count, degree, seed=seed)
    spread = torch.exp(1.5 * torch.randn(count, 3, generator=draw))
    wild = change(
        gaussians,
        lambda name, x: {"scales": 0.05 * spread, "quats": 3 * x}.get(name, x),
    )
    assert_agree(replace(wild, antialiased=antialiased), make_cameras(2, width, height, seed=seed))


@pytest.mark.parametrize("outputs", [("rgb",), ("alpha",), ("depth",)])
def test_each_image_alone(outputs: tuple[str, ...]) -> None:
    assert_agree(make_gaussians(60, 1, seed=7), make_cameras(2, 30, 20), outputs=outputs)


def test_deep_stack_stops_early() -> None:
    """Opaque layers one behind the other: hidden ones take no part and get no gradient."""
    layers = make_gaussians(300, seed=3, scale=0.4)
    layers = change(layers, lambda name, x: 0.5 + 0.5 * x if name == "opacities" else x)
    assert_agree(layers, make_cameras(1, 33, 18))
    _, gradients = render_with_gradients(layers, make_cameras(1, 33, 18), "numba")
    assert (gradients["opacities"] == 0).any()


def test_thin_needles() -> None:
    """Across the image and 1000 times longer than wide, where the expanded quadratic form loses its digits."""
    draw = torch.Generator().manual_seed(0)
    needles = make_gaussians(20, seed=5)
    scales = torch.stack([torch.full((20,), 1.0), torch.full((20,), 1e-3), torch.full((20,), 1e-3)], -1)
    quats = torch.randn(20, 4, generator=draw)
    needles = change(needles, lambda name, x: {"scales": scales, "quats": quats}.get(name, x))
    assert_agree(needles, make_cameras(2, 90, 70))


def _mixed(degenerate: Gaussians) -> Gaussians:
    return Gaussians.cat([make_gaussians(20, seed=11), degenerate])


DEGENERATE = {
    "behind the camera": one_gaussian(mean=(0.0, 0.0, -3.0)),
    "at the near plane": one_gaussian(mean=(0.001, 0.0, -3.985), scale=(0.003, 0.003, 0.003)),
    "huge": one_gaussian(scale=(50.0, 40.0, 60.0)),
    "beyond all measure": one_gaussian(scale=(1e12, 1e12, 1e12)),
    "tiny": one_gaussian(scale=(1e-7, 1e-7, 1e-7)),
    "flat": one_gaussian(scale=(0.3, 0.0, 0.0)),
    "a point": one_gaussian(scale=(0.0, 0.0, 0.0)),
    "zero opacity": one_gaussian(opacity=0.0),
    "opacity 1": one_gaussian(opacity=1.0, scale=(0.5, 0.5, 0.5)),
    "opacity at the cutoff": one_gaussian(opacity=1.001 / 255),
    "far to the side": one_gaussian(mean=(30.0, 20.0, 1.0), scale=(6.0, 6.0, 6.0)),
    "long quaternion": one_gaussian(quat=(30.0, -10.0, 5.0, 20.0), scale=(0.3, 0.05, 0.1)),
    "short quaternion": one_gaussian(quat=(3e-4, -1e-4, 5e-5, 2e-4), scale=(0.3, 0.05, 0.1)),
    "black": one_gaussian(sh=(-9.0, -9.0, -9.0)),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("antialiased", [False, True])
def test_degenerate_gaussian_among_others(name: str, antialiased: bool) -> None:
    assert_agree(replace(_mixed(DEGENERATE[name]), antialiased=antialiased), make_cameras(2, 37, 21))


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_gaussian_alone(name: str, antialiased: bool) -> None:
    assert_agree(replace(DEGENERATE[name], antialiased=antialiased), make_cameras(1, 20, 20))


def test_capped_alpha_has_no_gradient_at_the_peak() -> None:
    """Opacity 1 at a pixel centre: alpha is at the cap there, so only the other pixels give gradients."""
    camera = front_camera(width=1, height=1, focal=1.0)
    peak = one_gaussian(opacity=1.0)
    rendering, gradients = render_with_gradients(peak, camera, "numba", outputs=("alpha",))
    assert rendering.alpha.item() == pytest.approx(0.999, abs=1e-6)
    assert gradients["opacities"].item() == 0
    assert_agree(peak, camera)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (17, 1), (3, 50), (48, 31)])
def test_image_sizes(width: int, height: int) -> None:
    assert_agree(make_gaussians(40, seed=2, scale=0.3), make_cameras(1, width, height))


def test_principal_point_far_off_centre() -> None:
    """The clamp of the Jacobian follows the image border, not the optical axis."""
    wide = change(make_gaussians(80, seed=4), lambda name, x: x * 2 if name == "means" else x)
    cameras = make_cameras(1, 40, 30)
    K = cameras.K.clone()
    K[:, 0, 2], K[:, 1, 2] = -15.0, 55.0
    assert_agree(wide, type(cameras)(cameras.c2w, K, 40, 30))


def test_near_and_far_planes() -> None:
    rendering = assert_agree(make_gaussians(100, seed=6), make_cameras(1, 32, 32), near=3.5, far=4.5)
    everything = render(make_gaussians(100, seed=6), make_cameras(1, 32, 32), (0.2, 0.5, 0.9))
    assert (rendering.rgb - everything.rgb).abs().max() > 0.05


def test_no_gaussians() -> None:
    none = make_gaussians(5)[torch.zeros(5, dtype=torch.bool)]
    rendering = assert_agree(none, make_cameras(2, 18, 9))
    torch.testing.assert_close(rendering.rgb[1, 3, 4], torch.tensor([0.2, 0.5, 0.9]))
    assert not rendering.alpha.any()
    assert not rendering.depth.any()


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", PARAMETERS)
def test_gaussian_with_impossible_values_is_not_drawn(backend: str, value: float, broken: str) -> None:
    whole = make_gaussians(12, seed=9, scale=0.3)

    def spoil(name: str, x: Tensor) -> Tensor:
        x = x.clone()
        if name == broken:
            x[4] = value
        return x

    keep = torch.arange(12) != 4
    cameras = make_cameras(1, 20, 12)
    spoilt, gradients = render_with_gradients(change(whole, spoil), cameras, backend)  # type: ignore[arg-type]
    without, expected = render_with_gradients(whole[keep], cameras, backend)  # type: ignore[arg-type]
    for image in IMAGES:
        torch.testing.assert_close(getattr(spoilt, image), getattr(without, image))
    for name in PARAMETERS:
        torch.testing.assert_close(gradients[name][keep], expected[name])
        assert not gradients[name][4].any()
