"""The 32 bytes of .splat: as its inventor's viewer reads them, most important first, clear errors."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.splats.splat import load_splat, save_splat
from tests.conftest import make_gaussians
from tests.splats.compare import differences, in_order_of, read_by_splat_transform


def test_the_bytes_of_one_gaussian(tmp_path: Path) -> None:
    one = Gaussians(
        means=torch.tensor([[1.0, -2, 3]]),
        scales=torch.tensor([[0.5, 0.25, 0.125]]),
        quats=torch.tensor([[0.5, -0.5, 0.5, -0.5]]),
        opacities=torch.tensor([0.6]),
        sh=(torch.tensor([[[1.0, 0.2, -0.3]]]) - 0.5) / C0,
    )
    save_splat(one, tmp_path / "a.splat")
    expected = struct.pack("<6f8B", 1, -2, 3, 0.5, 0.25, 0.125, 255, 51, 0, 153, 192, 64, 192, 64)
    assert (tmp_path / "a.splat").read_bytes() == expected


def test_values_return_within_the_quantisation(tmp_path: Path) -> None:
    gaussians = make_gaussians(500)
    visible = (gaussians.sh * C0).clamp(-0.5, 0.5) / C0
    gaussians = Gaussians(gaussians.means, gaussians.scales, gaussians.quats, gaussians.opacities, visible)
    save_splat(gaussians, tmp_path / "a.splat")
    back = in_order_of(load_splat(tmp_path / "a.splat"), gaussians)
    assert torch.equal(back.means, gaussians.means)
    assert torch.equal(back.scales, gaussians.scales)
    errors = differences(back, gaussians)
    assert errors["opacities"] <= 0.5 / 255 + 1e-6
    assert errors["sh"] * C0 <= 0.5 / 255 + 1e-6
    assert errors["shape"] < 0.03


def test_the_most_important_come_first(tmp_path: Path) -> None:
    gaussians = make_gaussians(200)
    save_splat(gaussians, tmp_path / "a.splat")
    scales = np.frombuffer((tmp_path / "a.splat").read_bytes(), "<f4").reshape(-1, 8)[:, 3:6]
    weight = gaussians.scales.double().prod(-1) * gaussians.opacities
    expected = gaussians.scales[(-weight).argsort()]
    np.testing.assert_array_equal(scales, expected.numpy())


def test_view_dependence_is_left_out(tmp_path: Path) -> None:
    gaussians = make_gaussians(50, 3)
    save_splat(gaussians, tmp_path / "a.splat")
    assert load_splat(tmp_path / "a.splat").sh.shape == (50, 1, 3)


def test_playcanvas_reads_the_same(tmp_path: Path) -> None:
    save_splat(make_gaussians(300), tmp_path / "a.splat")
    errors = differences(read_by_splat_transform(tmp_path / "a.splat"), load_splat(tmp_path / "a.splat"))
    assert errors.pop("shape") < 0.03  # it decodes rotations a little differently, as b / 127.5 - 1
    assert max(errors.values()) < 1e-5


GOOD = struct.pack("<6f8B", 1, 2, 3, 1, 1, 1, 0, 0, 0, 255, 255, 128, 128, 128)
BAD_FILES = {
    "empty": (b"", "0 bytes"),
    "not a multiple of 32": (GOOD + GOOD[:-1], "63 bytes"),
    "NaN": (struct.pack("<f", np.nan) + GOOD[4:], "1 of 1 Gaussians have NaN"),
    "infinite scale": (GOOD[:12] + struct.pack("<f", np.inf) + GOOD[16:], "have NaN or infinite"),
    "negative scale": (GOOD[:12] + struct.pack("<f", -1) + GOOD[16:], "negative scale"),
    "no rotation": (GOOD[:28] + b"\x80" * 4, "rotation 0 0 0 0"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    content, words = BAD_FILES[name]
    (tmp_path / "bad.splat").write_bytes(content)
    with pytest.raises(GaussiansError, match=words) as caught:
        load_splat(tmp_path / "bad.splat")
    assert "bad.splat" in str(caught.value)
