from __future__ import annotations

import numpy as np
import pytest
import torch

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.errors import SceneError
from ilrm.scenes import farthest_points, select_inputs, split_holdout
from tests.conftest import look_at, make_cameras, shared_path


def test_every_eighth_view_is_held_out():
    rest, held_out = split_holdout(20)
    assert held_out == [0, 8, 16]
    assert sorted(rest + held_out) == list(range(20))


@pytest.mark.parametrize("case", ["B40x3:8", "B40x3:2", "line:5", "fewer:5"])
def test_farthest_points_as_released(case):
    arrays = np.load(shared_path("golden/main_view_samplers.npz"))
    name, count = case.split(":")
    names = {
        "B40x3": ("fps_in_positions_B40x3", f"fps_out_indices_{count}"),
        "line": ("fps_line_in", "fps_line_out_5"),
        "fewer": ("fps_fewer_distinct_than_requested_in", "fps_fewer_distinct_than_requested_out_5"),
    }[name]
    for positions, expected in zip(arrays[names[0]], arrays[names[1]], strict=True):
        assert farthest_points(torch.from_numpy(positions), int(count)) == expected.tolist()


def test_inputs_are_distinct_candidates_and_repeatable():
    cameras = make_cameras(40, 32, 24)
    rest, _ = split_holdout(40)
    chosen = select_inputs(cameras, 8, rest)
    assert len(set(chosen)) == 8
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(rest)
    assert chosen == select_inputs(cameras, 8, rest[::-1])
    assert select_inputs(cameras, 35, rest) == rest
    assert len(set(select_inputs(cameras, 34, rest))) == 34


def test_inputs_take_one_view_of_every_group():
    centres = torch.tensor([[x, 0.0, -4.0] for x in (-6.0, -2.0, 2.0, 6.0)])
    g = torch.Generator().manual_seed(0)
    near = centres.repeat_interleave(5, 0) + 0.05 * torch.randn(20, 3, generator=g)
    c2w = torch.stack([look_at(c, torch.zeros(3)) for c in near])
    cameras = Cameras(c2w, torch.eye(3).repeat(20, 1, 1), 8, 8)
    assert [view // 5 for view in select_inputs(cameras, 4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(10))
def test_inputs_do_not_depend_on_the_world(seed):
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    rotation = rotation * torch.linalg.det(rotation)
    moved = Similarity(10 ** (seed - 5), rotation, torch.randn(3, generator=g, dtype=torch.float64))
    cameras = make_cameras(30, 32, 24, seed=seed)
    assert select_inputs(cameras.transform(moved), 6) == select_inputs(cameras, 6)


def test_coincident_cameras_still_give_distinct_views():
    cameras = Cameras(torch.eye(4).repeat(5, 1, 1), torch.eye(3).repeat(5, 1, 1), 8, 8)
    assert select_inputs(cameras, 3) == sorted(set(select_inputs(cameras, 3)))
    assert len(select_inputs(cameras, 3)) == 3


def test_too_many_inputs_are_refused():
    with pytest.raises(SceneError, match="4 input views were requested from 3 candidates"):
        select_inputs(make_cameras(9, 8, 8), 4, [1, 2, 5])
