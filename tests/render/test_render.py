"""What a caller of ``render`` relies on: invariances, which gradients flow, errors, threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from ilrm.core.cameras import Cameras
from ilrm.core.errors import CameraError, ConfigError, GaussiansError, MissingExtraError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.render import numba_cpu, render
from tests.conftest import ROOT, make_cameras, make_gaussians
from tests.render.scenes import IMAGES, PARAMETERS, change, image_weights, render_with_gradients


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_order_of_the_gaussians_does_not_matter() -> None:
    gaussians, cameras = make_gaussians(200, 1), make_cameras(2, 40, 30)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    straight, gradients = render_with_gradients(gaussians, cameras, "numba")
    mixed, mixed_gradients = render_with_gradients(gaussians[shuffled], cameras, "numba")
    for image in IMAGES:
        torch.testing.assert_close(getattr(mixed, image), getattr(straight, image), atol=1e-6, rtol=0)
    for name in PARAMETERS:
        torch.testing.assert_close(mixed_gradients[name], gradients[name][shuffled], atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("_restore_threads")
def test_number_of_threads_does_not_matter() -> None:
    gaussians, cameras = make_gaussians(500, 1), make_cameras(2, 70, 50)
    torch.set_num_threads(1)
    single, single_gradients = render_with_gradients(gaussians, cameras, "numba")
    torch.set_num_threads(2)
    double, double_gradients = render_with_gradients(gaussians, cameras, "numba")
    for image in IMAGES:
        assert torch.equal(getattr(single, image), getattr(double, image))
    for name in PARAMETERS:
        assert torch.equal(single_gradients[name], double_gradients[name])


def test_threads_of_torch_are_respected_from_the_first_call_on() -> None:
    """Numba's OpenMP start-up would set torch's number of threads back to that of all cores."""
    code = """
import numba, torch
torch.set_num_threads(1)
from tests.conftest import ROOT, make_cameras, make_gaussians
from ilrm.render import numba_cpu, render
with numba_cpu.threads_of_torch():
    assert numba.get_num_threads() == 1
render(make_gaussians(4), make_cameras(1, 8, 8))
assert torch.get_num_threads() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_several_python_threads_may_render() -> None:
    gaussians, cameras = make_gaussians(100), make_cameras(2, 40, 30)
    expected, gradients = render_with_gradients(gaussians, cameras, "numba")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: render_with_gradients(gaussians, cameras, "numba"), range(12)))
    for rendering, found in results:
        assert torch.equal(rendering.rgb, expected.rgb)
        assert all(torch.equal(found[name], gradients[name]) for name in PARAMETERS)


def test_views_are_rendered_as_if_alone() -> None:
    gaussians, cameras = make_gaussians(80, 2), make_cameras(3, 21, 35)
    together = render(gaussians, cameras)
    for view in range(3):
        alone = render(gaussians, cameras[view])
        for image in IMAGES:
            assert torch.equal(getattr(together, image)[view], getattr(alone, image)[0])


def test_projections_that_are_not_kept_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians, cameras, found = make_gaussians(80, 1), make_cameras(3, 24, 16), []
    for most in (numba_cpu._MOST_KEPT, 80 * 4, 0):
        monkeypatch.setattr(numba_cpu, "_MOST_KEPT", most)
        leaf = gaussians.map(lambda x: x.clone().requires_grad_())
        render(leaf, cameras).rgb.square().sum().backward()
        found.append([getattr(leaf, name).grad for name in PER_GAUSSIAN])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_gradients_of_several_views_add_up() -> None:
    gaussians, cameras = make_gaussians(30, 1, scale=0.3), make_cameras(2, 20, 20)
    leaf = change(gaussians, lambda _, x: x.clone().requires_grad_())
    both = torch.autograd.grad(render(leaf, cameras).rgb.sum(), leaf.means)[0]
    apart = [torch.autograd.grad(render(leaf, cameras[v]).rgb.sum(), leaf.means)[0] for v in range(2)]
    torch.testing.assert_close(both, apart[0] + apart[1])


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("wanted", PARAMETERS)
def test_gradient_only_where_it_is_asked_for(backend: str, wanted: str) -> None:
    gaussians, cameras = make_gaussians(30, 1, scale=0.3), make_cameras(1, 20, 20)
    _, everything = render_with_gradients(gaussians, cameras, backend)  # type: ignore[arg-type]
    leaves = change(gaussians, lambda name, x: x.clone().requires_grad_(name == wanted))
    rendering = render(leaves, cameras, (0.2, 0.5, 0.9), backend=backend)  # type: ignore[arg-type]
    image_weights(rendering, IMAGES).backward()
    for name in PARAMETERS:
        if name == wanted:
            torch.testing.assert_close(getattr(leaves, name).grad.double(), everything[name])
        else:
            assert getattr(leaves, name).grad is None


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_no_gradient_to_cameras_and_background(backend: str) -> None:
    cameras = make_cameras(1, 8, 8)
    moving = Cameras(cameras.c2w.clone().requires_grad_(), cameras.K.clone().requires_grad_(), 8, 8)
    background = torch.ones(3, requires_grad=True)
    rendering = render(make_gaussians(5), moving, background, backend=backend)  # type: ignore[arg-type]
    assert not rendering.rgb.requires_grad


def test_background_shows_through_what_is_left() -> None:
    gaussians, cameras = make_gaussians(40), make_cameras(1, 20, 20)
    black, blue = render(gaussians, cameras, torch.zeros(3)), render(gaussians, cameras, torch.tensor([0.0, 0.0, 2.0]))
    difference = blue.rgb - black.rgb
    torch.testing.assert_close(difference[..., 2], 2 * (1 - black.alpha), atol=1e-6, rtol=0)
    assert not difference[..., :2].any()


def test_world_frame_does_not_matter() -> None:
    """Moving, turning and scaling the world with the cameras leaves the image; depth scales."""
    from ilrm.core.cameras import Similarity
    from ilrm.core.gaussians import quaternion_to_matrix

    turn = quaternion_to_matrix(torch.tensor([0.5, 0.3, -0.7, 0.2], dtype=torch.float64))
    move = Similarity(3.0, turn, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    gaussians, cameras = make_gaussians(60, 3), make_cameras(1, 30, 20)
    here, there = render(gaussians, cameras), render(gaussians.transform(move), cameras.transform(move))
    torch.testing.assert_close(there.rgb, here.rgb, atol=1e-4, rtol=0)
    torch.testing.assert_close(there.depth, 3 * here.depth, atol=1e-3, rtol=1e-4)


def test_double_precision_is_taken_and_gets_double_gradients() -> None:
    leaves = change(make_gaussians(20), lambda _, x: x.double().requires_grad_())
    rendering = render(leaves, make_cameras(1, 10, 10))
    assert rendering.rgb.dtype == torch.float32
    rendering.rgb.sum().backward()
    assert leaves.means.grad is not None
    assert leaves.means.grad.dtype == torch.float64


def test_strided_and_expanded_parameters() -> None:
    gaussians, cameras = make_gaussians(20), make_cameras(1, 10, 10)
    odd = change(gaussians, lambda name, x: torch.full((1, 3), 0.2).expand(20, 3) if name == "scales" else x)
    odd = change(odd, lambda name, x: torch.stack([x, x], -1)[..., 0] if name == "means" else x)
    plain = change(odd, lambda _, x: x.contiguous())
    assert torch.equal(render(odd, cameras).rgb, render(plain, cameras).rgb)


def test_expanded_image_gradient() -> None:
    """sum() hands back a gradient with stride 0."""
    leaf = make_gaussians(10).means.requires_grad_()
    gaussians = Gaussians(leaf, *(getattr(make_gaussians(10), name) for name in PARAMETERS[1:]))
    rendering = render(gaussians, make_cameras(1, 10, 10))
    by_sum = torch.autograd.grad(rendering.rgb.sum(), leaf, retain_graph=True)[0]
    by_hand = torch.autograd.grad((rendering.rgb * torch.ones(1, 10, 10, 3)).sum(), leaf)[0]
    assert torch.equal(by_sum, by_hand)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "opengl"}, "no render backend 'opengl'"),
        ({"background": (1.0, 1.0)}, "background"),
        ({"near": 0.0}, "near = 0"),
        ({"near": 2.0, "far": 1.0}, "far = 1"),
    ],
)
def test_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render(make_gaussians(2), make_cameras(1, 8, 8), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(backend: str, dtype: torch.dtype) -> None:
    gaussians, cameras = make_gaussians(30, 1).to(dtype=dtype), make_cameras(1, 20, 16)
    expected = render(gaussians.to(dtype=torch.float32), cameras, backend=backend)  # type: ignore[arg-type]
    assert torch.equal(render(gaussians, cameras, backend=backend).rgb, expected.rgb)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: replace(g, scales=-g.scales), "negative scales"),
        (lambda g: replace(g, quats=0 * g.quats), "rotation 0 0 0 0"),
        (lambda g: g.to("meta"), "without values"),
        (lambda g: g.to(dtype=torch.int64), "int64"),
    ],
)
def test_gaussians_that_cannot_be_drawn(spoil: Callable[[Gaussians], Gaussians], message: str) -> None:
    with pytest.raises(GaussiansError, match=message):
        render(spoil(make_gaussians(3)), make_cameras(1, 8, 8))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_cameras_without_a_focal_length(backend: str) -> None:
    cameras = make_cameras(1, 8, 8)
    with pytest.raises(CameraError, match="focal lengths 0 and 0"):
        render(make_gaussians(3), replace(cameras, K=0 * cameras.K), backend=backend)  # type: ignore[arg-type]
    with pytest.raises(CameraError, match="whole numbers"):
        replace(cameras, width=8.5)  # pyright: ignore[reportArgumentType]


def test_gsplat_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(MissingExtraError, match=r"ilrm\[cuda\]"):
        render(make_gaussians(2), make_cameras(1, 8, 8), backend="gsplat")


def test_import_does_not_load_numba() -> None:
    code = "import sys, ilrm.render; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("antialiased", [False, True])
def test_gsplat_agrees_with_the_reference(antialiased: bool) -> None:
    """Opacities stay below 0.9, so that the cap (0.999, since February 2026 0.99) plays no part."""
    pytest.importorskip("gsplat")
    gaussians = change(make_gaussians(150, 2), lambda name, x: 0.9 * x if name == "opacities" else x)
    gaussians = replace(gaussians, antialiased=antialiased)
    cameras = make_cameras(2, 40, 27)
    slow, slow_gradients = render_with_gradients(gaussians, cameras, "reference", torch.float64)
    fast, fast_gradients = render_with_gradients(gaussians.to("cuda"), cameras, "gsplat")
    for image in IMAGES:
        torch.testing.assert_close(getattr(fast, image).double().cpu(), getattr(slow, image), atol=1e-4, rtol=1e-4)
    for name in PARAMETERS:
        scale = slow_gradients[name].abs().max().item()
        torch.testing.assert_close(fast_gradients[name].cpu(), slow_gradients[name], atol=1e-3 * scale, rtol=1e-3)
