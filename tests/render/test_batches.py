"""Batches: ``render`` of a batch is the stack of its elements, in all three back ends, with the same gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import CameraError, GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.render import Backend, render
from ilrm.render.gsplat_cuda import draw
from tests.conftest import make_cameras, make_gaussians
from tests.render.scenes import IMAGES, PARAMETERS, change, image_weights, render_with_gradients

SIZE = (20, 13)


def batch_of(count: int, degree: int = 1) -> Gaussians:
    parts = [make_gaussians(60, degree, seed=seed) for seed in range(count)]
    return change(parts[0], lambda name, _: torch.stack([getattr(part, name) for part in parts]))


def cameras_of(count: int, views: int = 2) -> Cameras:
    return Cameras.stack([make_cameras(views, *SIZE, seed=seed) for seed in range(count)])


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_batch_is_the_stack_of_its_elements(backend: Backend) -> None:
    gaussians, cameras = batch_of(3), cameras_of(3)
    whole, gradients = render_with_gradients(gaussians, cameras, backend)
    alone = [render(one, seen_by, backend=backend) for one, seen_by in zip(gaussians, cameras, strict=True)]
    for image in IMAGES:
        assert getattr(whole, image).shape[:2] == (3, 2)
    for image in ("alpha", "depth"):
        assert torch.equal(getattr(whole, image), torch.stack([getattr(one, image) for one in alone]))
    weights = [image_weights(whole, (image,)) for image in IMAGES]  # the same draws as in the gradients
    assert all(torch.isfinite(weight) for weight in weights)
    leaves = change(gaussians, lambda _, x: x.clone().requires_grad_())
    seen = [render(leaves[b], cameras[b], backend=backend, background=(0.2, 0.5, 0.9)) for b in range(3)]
    stacked = replace(seen[0], **{image: torch.stack([getattr(one, image) for one in seen]) for image in IMAGES})
    expected = torch.autograd.grad(image_weights(stacked, IMAGES), [getattr(leaves, name) for name in PARAMETERS])
    for name, gradient in zip(PARAMETERS, expected, strict=True):
        torch.testing.assert_close(gradients[name].to(gradient), gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_batch_dimensions_are_broadcast(backend: Backend) -> None:
    states, cameras = batch_of(2), make_cameras(2, *SIZE)
    several = render(states, cameras, backend=backend).rgb
    assert torch.equal(several[1], render(states[1], cameras, backend=backend).rgb)
    one, many = make_gaussians(60, 1), cameras_of(4, views=1)
    grid = replace(many, c2w=many.c2w.unflatten(0, (2, 2)), K=many.K.unflatten(0, (2, 2)))
    seen = render(one, grid, backend=backend).rgb
    assert seen.shape == (2, 2, 1, SIZE[1], SIZE[0], 3)
    assert torch.equal(seen[1, 0], render(one, many[2], backend=backend).rgb)


def test_batches_that_do_not_fit() -> None:
    with pytest.raises(GaussiansError, match=r"\(3,\) and cameras with \(2,\)"):
        render(batch_of(3), cameras_of(2))
    with pytest.raises(CameraError, match="several shapes"):
        Cameras.stack([make_cameras(1, 8, 8), make_cameras(2, 8, 8)])


def rasterization(**given: Any) -> tuple[Tensor, Tensor, None]:
    """What gsplat's function of that name promises for batches, by the reference back end."""
    assert (given["sh_degree"], given["packed"], given["render_mode"]) == (None, False, "RGB+D")
    batch, views, _, _ = given["viewmats"].shape[0], *given["viewmats"].shape[1:]
    images, alphas = [], []
    for b in range(batch):
        for v in range(views):
            seen = Gaussians(
                *(given[name][b] for name in ("means", "scales", "quats", "opacities")),
                sh=(given["colors"][b, v] - 0.5)[:, None] / C0,
                antialiased=given["rasterize_mode"] == "antialiased",
            )
            size = given["width"], given["height"]
            camera = Cameras.from_w2c(given["viewmats"][b, v : v + 1], given["Ks"][b, v : v + 1], *size)
            planes = {"near": given["near_plane"], "far": given["far_plane"]}
            picture = render(seen, camera, given["backgrounds"][b, v], backend="reference", **planes)
            depth = picture.depth * picture.alpha
            images.append(torch.cat([picture.rgb, depth[..., None]], dim=-1)[0])
            alphas.append(picture.alpha[0, ..., None])
    return torch.stack(images).unflatten(0, (batch, views)), torch.stack(alphas).unflatten(0, (batch, views)), None


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 2])
def test_gsplat_is_given_what_it_expects(degree: int, antialiased: bool) -> None:
    """One call for the whole batch; broken Gaussians are not drawn and get no gradient."""
    gaussians = replace(batch_of(2, degree), antialiased=antialiased)
    means, scales, quats = gaussians.means.clone(), gaussians.scales.clone(), gaussians.quats.clone()
    means[0, 3], scales[1, 5], quats[1, 7, 2] = math.nan, math.inf, math.nan
    broken = replace(gaussians, means=means, scales=scales, quats=quats)
    cameras, background = cameras_of(2, views=3), torch.tensor([0.2, 0.5, 0.9])
    leaves = change(broken, lambda _, x: x.clone().requires_grad_())
    rgb, alpha, depth = draw(rasterization, leaves, cameras, background, 0.01, 1e6)
    expected = render(broken, cameras, background, backend="reference")
    torch.testing.assert_close(rgb, expected.rgb, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(alpha, expected.alpha, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(depth, expected.depth * expected.alpha, atol=1e-5, rtol=1e-5)
    (rgb.sum() + depth.sum()).backward()
    for name in PARAMETERS:
        gradient = getattr(leaves, name).grad
        assert torch.isfinite(gradient).all(), name
        assert not gradient[0, 3].any()
        assert not gradient[1, 5].any()


def test_nothing_to_draw_keeps_the_graph() -> None:
    empty = change(batch_of(2), lambda _, x: x[:, :0].clone().requires_grad_())
    rgb, alpha, _ = draw(rasterization, empty, cameras_of(2), torch.tensor([0.2, 0.5, 0.9]), 0.01, 1e6)
    assert rgb.shape == (2, 2, SIZE[1], SIZE[0], 3)
    assert torch.equal(rgb[1, 0, 0, 0], torch.tensor([0.2, 0.5, 0.9]))
    alpha.sum().backward()
    assert empty.means.grad is not None


def test_cameras_and_gaussians_are_sequences() -> None:
    """Length and iteration are those of the first dimension, as of a tensor."""
    gaussians, cameras = batch_of(3), cameras_of(3, views=2)
    assert (len(gaussians), gaussians.count, gaussians.batch_shape) == (3, 60, (3,))
    assert (len(cameras), cameras.views, cameras.batch_shape) == (3, 2, (3,))
    assert [one.count for one in gaussians] == [60] * 3
    assert [one.views for one in cameras] == [2] * 3
    assert torch.equal(gaussians[-1].means, gaussians.means[2])
    assert torch.equal(cameras[-1].c2w, cameras.c2w[2])
    assert len([*gaussians[0]]) == 60
    assert len([*cameras[0]]) == 2
    assert len(gaussians[0][-1]) == 1
    for thing, last in ((gaussians, 3), (gaussians[0], 60), (cameras, 3), (cameras[0], 2)):
        with pytest.raises(IndexError):
            thing[last]
        with pytest.raises(IndexError):
            thing[-last - 1]
    assert torch.allclose(Cameras.from_w2c(cameras.w2c, cameras.K, *SIZE).c2w, cameras.c2w, atol=1e-6)
    assert torch.allclose(Cameras.from_w2c(cameras.w2c[..., :3, :], cameras.K, *SIZE).c2w, cameras.c2w, atol=1e-6)
    moved = cameras.relative_to(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(moved.centers, cameras.centers.double() - torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(cameras.crop(1, 2, 3, 4)[1].K, cameras[1].crop(1, 2, 3, 4).K)
    assert torch.equal(cameras.rays()[1][2], cameras[2].rays()[1])
    with pytest.raises(CameraError, match="view 1"):
        replace(cameras, K=cameras.K * torch.tensor([1.0, -1.0])[:, None, None]).check()
