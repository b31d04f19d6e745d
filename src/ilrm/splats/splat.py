"""The .splat format of antimatter15: 32 bytes per Gaussian, without a header, the most important ones first.

Position and standard deviations are float32; red, green, blue and opacity are bytes; the rotation wxyz is in bytes
128 + 128 q. There is no view-dependent colour. Coordinates are those of the PLY: the scene's own world frame.
Layout: https://github.com/antimatter15/splat
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.files import atomic_file
from ilrm.splats.checks import check_writable, keep_possible, unreadable

_RECORD = np.dtype([("xyz", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rot", "u1", 4)])
_EXPECTED = f"a .splat file: {_RECORD.itemsize} bytes per Gaussian, without a header"


def save_splat(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians, sorted by decreasing volume times opacity, without SH above degree 0.

    Raises:
        GaussiansError: there are none, they are batched, or some have NaN or infinite values.
        OutputError: the file cannot be written.
    """
    check_writable(gaussians, path)
    g = gaussians.detach().to("cpu", torch.float32)
    volume = g.scales.double().prod(dim=-1)
    g = g[torch.argsort(-volume * g.opacities, stable=True)]
    table = np.empty(len(g), _RECORD)
    table["xyz"], table["scale"] = g.means.numpy(), g.scales.numpy()
    rgba = torch.cat([0.5 + C0 * g.sh[:, 0], g.opacities[:, None]], dim=1)
    table["rgba"] = (rgba * 255).round().clamp(0, 255).numpy()
    table["rot"] = (g.quats * 128 + 128).round().clamp(0, 255).numpy()
    with atomic_file(path) as temporary:
        table.tofile(temporary)


def load_splat(path: Path | str) -> Gaussians:
    """Read N Gaussians of SH degree 0.

    Raises:
        GaussiansError: no such file, a size that is not a whole number of Gaussians, or invalid values.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, _EXPECTED) from error
    if not data or len(data) % _RECORD.itemsize:
        raise GaussiansError(
            f"{path} has {len(data)} bytes, which is not a whole number of Gaussians.",
            expected=_EXPECTED,
            fix="copy or export the file again",
        )
    table = np.frombuffer(data, _RECORD)
    rgba, rot = (torch.from_numpy(table[name].astype(np.float32)) for name in ("rgba", "rot"))
    quats = (rot - 128) / 128
    scales = torch.from_numpy(table["scale"].astype(np.float32))
    gaussians = Gaussians(
        means=torch.from_numpy(table["xyz"].astype(np.float32)),
        scales=scales,
        quats=torch.nn.functional.normalize(quats, dim=-1),
        opacities=rgba[:, 3] / 255,
        sh=((rgba[:, :3] / 255 - 0.5) / C0)[:, None],
    )
    return keep_possible(gaussians, path)
