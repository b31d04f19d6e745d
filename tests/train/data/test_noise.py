"""Errors of the inputs: as large as they say, and on the inputs alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilrm.core.errors import ConfigError
from ilrm.train.data.noise import disturb_inputs, rotations
from ilrm.train.data.options import InputNoise
from tests.train.data.worlds import VIEWS, world


def test_noise_is_on_the_inputs_alone() -> None:
    scene, noise = world(0), InputNoise(share=1.0, sensor=0.05)
    noisy = disturb_inputs(scene, 5, noise, np.random.default_rng(0))
    assert torch.equal(noisy.images[5:], scene.images[5:])
    assert torch.equal(noisy.cameras.c2w[5:], scene.cameras.c2w[5:])
    assert torch.equal(noisy.cameras.K[5:], scene.cameras.K[5:])
    ratio = noisy.cameras.K[:5] / scene.cameras.K[:5]
    lens = ratio[0, 0, 0]
    assert lens != 1.0
    torch.testing.assert_close(ratio[:, [0, 1], [0, 1]], lens.expand(5, 2), msg="one lens made all inputs")
    assert torch.equal(noisy.cameras.K[:, :2, 2], scene.cameras.K[:, :2, 2]), "the principal point stays"
    assert noisy.depth is scene.depth
    assert 0 < (noisy.images[:5] - scene.images[:5]).abs().mean() < 0.1
    assert (noisy.images[:] >= 0).all()
    assert (noisy.images[:] <= 1).all()
    noisy.cameras.check()


def test_noise_has_the_size_that_it_says() -> None:
    scene, rng = world(0), np.random.default_rng(0)
    turns, moves, gains, lenses = [], [], [], []
    for _ in range(200):
        noisy = disturb_inputs(scene, VIEWS, InputNoise(share=1.0, sensor=0.0, exposure=0.1), rng)
        delta = noisy.cameras.c2w[:, :3, :3] @ scene.cameras.c2w[:, :3, :3].mT
        turns.append(torch.stack([delta[:, 2, 1], delta[:, 0, 2], delta[:, 1, 0]], 1))
        moves.append(noisy.cameras.centers - scene.cameras.centers)
        lenses.append(noisy.cameras.K[0, 0, 0] / scene.cameras.K[0, 0, 0] - 1)
        usable = (scene.images[:] > 0.2) & (noisy.images[:] < 0.99)
        gains.append(
            torch.stack([(n / s)[u].median() for n, s, u in zip(noisy.images, scene.images, usable, strict=True)])
        )
    centres = scene.cameras.centers
    extent = (centres - centres.mean(0)).abs().max().item()
    assert torch.cat(turns).std().item() == pytest.approx(1e-3, rel=0.1)
    # Of deviations spread evenly from 0.001 to 0.005, the squares have this mean.
    expected = ((0.001**2 + 0.001 * 0.005 + 0.005**2) / 3) ** 0.5 * extent
    assert torch.cat(moves).std().item() == pytest.approx(expected, rel=0.1)
    assert torch.stack(lenses).std().item() == pytest.approx(5e-3, rel=0.15)
    assert (torch.cat(gains).log2() * 2.2).std().item() == pytest.approx(0.1, rel=0.15)


def test_noise_comes_to_its_share_of_samples() -> None:
    scene, rng = world(0), np.random.default_rng(0)
    touched = [disturb_inputs(scene, 2, InputNoise(share=0.25), rng) is not scene for _ in range(200)]
    assert 30 < sum(touched) < 70


def test_ranges_begin_with_the_smaller_number() -> None:
    with pytest.raises(ConfigError, match="position"):
        InputNoise(position=(0.005, 0.001))


def test_rotations_are_those_of_their_vectors() -> None:
    quarter = rotations(torch.tensor([[0.0, 0.0, np.pi / 2], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(quarter[0], torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(quarter[1], torch.eye(3))
