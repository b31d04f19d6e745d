"""The network reproduces the released one: outputs and intermediate activations against stored reference values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ilrm.model import ILRM
from ilrm.model.tokens import patchify, ray_maps, scale_intrinsics
from ilrm.model.weights import load_weights
from tests.conftest import shared_path

LOGIT_TOLERANCE = 2e-5
POSITION_TOLERANCE = 1e-3


class Golden:
    """A tiny released checkpoint with its inputs and reference arrays."""

    def __init__(self, name: str, checkpoint: str) -> None:
        self.arrays = np.load(shared_path(f"golden/{name}.npz"), allow_pickle=False)
        self.model: ILRM = load_weights(shared_path(f"golden/{checkpoint}")).eval()
        self.images = self["in_image_u8"].float().div(255).permute(0, 1, 3, 4, 2)
        height, width = self.images.shape[2:4]
        if name == "main_tiny":
            self.c2w = self["in_extrinsics_c2w"]
            self.K = scale_intrinsics(self["in_intrinsics_normalised"], width, height)
        else:
            self.c2w = self["in_c2w"]
            fx, fy, cx, cy = self["in_fxfycxcy_pixels"].unbind(-1)
            zero, one = torch.zeros_like(fx), torch.ones_like(fx)
            self.K = torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).unflatten(-1, (3, 3))

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files


@pytest.fixture(scope="module")
def main() -> Golden:
    return Golden("main_tiny", "main_tiny.ckpt")


@pytest.fixture(scope="module")
def wide() -> Golden:
    return Golden("wide_tiny", "wide_tiny.pt")


@pytest.fixture(params=["main", "wide"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return request.getfixturevalue(request.param)


def close(ours: Tensor, reference: Tensor, atol: float = LOGIT_TOLERANCE) -> None:
    torch.testing.assert_close(ours.reshape(reference.shape), reference, atol=atol, rtol=0)


@torch.no_grad()
def test_outputs(golden: Golden) -> None:
    logits = golden.model.logits(golden.images, golden.c2w, golden.K)[-1]
    main = "out_means_xyz" in golden
    close(logits.means, golden["out_means_xyz" if main else "out_xyz"], POSITION_TOLERANCE)
    close(logits.log_scales, golden["out_scales_log" if main else "out_scale_log"])
    close(logits.rotations, golden["out_rotations_wxyz_raw" if main else "out_rotation_wxyz_raw"])
    close(logits.opacity_logits, golden["out_opacity_logit"])
    if main:
        close(logits.sh.transpose(-1, -2), golden["out_harmonics_sh_dc"])
    else:
        close(logits.sh, golden["out_feature_sh"])


@torch.no_grad()
def test_activated_values_are_what_the_rasteriser_received(golden: Golden) -> None:
    gaussians = golden.model(golden.images, golden.c2w, golden.K)
    close(gaussians.scales[:, :8], golden["raster_scales_first8"])
    raw = golden["raster_quats_first8"]
    close(gaussians.quats[:, :8], torch.nn.functional.normalize(raw, dim=-1))
    close(gaussians.opacities[:, :8], golden["raster_opacities_first8"])
    close(gaussians.sh[:, :8], golden["raster_colors_first8"])
    if "out_opacity_sigmoid" in golden:
        close(gaussians.opacities, golden["out_opacity_sigmoid"])
        close(gaussians.quats, golden["out_rotations_wxyz_normalised"])


@torch.no_grad()
def test_every_activation(golden: Golden) -> None:
    """Tokens, patch vectors, normed queries and keys, each block, the decoder: this shows where an error starts."""
    model, config = golden.model, golden.model.config
    inputs = golden.model.decoder_inputs(golden.images, golden.c2w, golden.K)
    height, width = inputs.rgb.shape[2:4]
    maps = ray_maps(golden.c2w, inputs.K, width, height)
    patches = patchify(torch.cat([maps[n] for n in config.viewpoint_channels], -1), config.patch_size)
    close(patches[:, [0, 1, -1]], golden["act_viewpoint_patches_tokens_0_1_last"])
    full = ray_maps(golden.c2w, golden.K, *reversed(golden.images.shape[2:4])) | {"rgb": 2 * golden.images - 1}
    patches = patchify(torch.cat([full[n] for n in config.image_channels], -1), config.patch_size)
    close(patches[:, [0, 1, -1]], golden["act_image_patches_tokens_0_1_last"])

    z = model.make_viewpoint_tokens(inputs)
    s = model.make_image_tokens(golden.images, golden.c2w, golden.K, inputs)
    close(z, golden["act_viewpoint_tokens"])
    close(s, golden["act_image_tokens"])
    views = s.shape[0]
    first = model.layers[0]
    per_view = z.reshape(views, -1, z.shape[-1])
    q = first.cross.q_norm(first.cross.lift(first.cross.q(first.cross.norm(per_view))))
    k = first.cross.k_norm(first.cross.k(s).unflatten(-1, (first.cross.heads, -1)))
    if config.uplift == 1:
        close(q[:, :2], golden["act_block0_q_normed_BVxLxHxD_first2tokens"])
    else:
        close(q[:, :4], golden["act_block0_q_normed_BVx2LxHxD_first4queries"])
    close(k[:, :2], golden["act_block0_k_normed_BVxLxHxD_first2tokens"])
    close(first.cross(per_view, s), golden["act_block0_cross_out"])
    for i, layer in enumerate(model.layers):
        z = layer.read(z.reshape(per_view.shape), s).reshape(z.shape)
        close(z, golden[f"act_block{2 * i}_out"])
        if i == 0:
            close(layer.self_attention(z), golden["act_block1_self_out"])
        z = layer.exchange(z)
        close(z, golden[f"act_block{2 * i + 1}_out"])
    close(model.decoder(model.decoder_norm(z))[:, [0, 1, -1]], golden["act_decoder_out_tokens_0_1_last"])


@torch.no_grad()
def test_uplifted_queries_reach_the_projection_in_the_released_order(wide: Golden) -> None:
    cross = wide.model.layers[0].cross
    seen = []
    hook = cross.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    wide.model.logits(wide.images, wide.c2w, wide.K)
    hook.remove()
    close(seen[0][:1, :2], wide["act_block0_proj_input_first2tokens"])


@torch.no_grad()
@pytest.mark.parametrize("mistake", ["tanh_gelu", "layer_norm_eps", "no_query_norm", "half_pixel"])
def test_tolerance_catches_known_mistakes(wide: Golden, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerances above are tight enough: small mistakes of other implementations would fail them."""
    K = wide.K.clone()
    layer = wide.model.layers[0]
    if mistake == "tanh_gelu":
        gelu = torch.nn.functional.gelu
        monkeypatch.setattr("torch.nn.functional.gelu", lambda x: gelu(x, approximate="tanh"))
    elif mistake == "layer_norm_eps":
        for module in wide.model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                monkeypatch.setattr(module, "eps", 1e-6)
    elif mistake == "no_query_norm":
        monkeypatch.setattr(layer.cross.q_norm, "forward", lambda x: x)
    else:
        K[..., :2, 2] += 0.5
    logits = wide.model.logits(wide.images, wide.c2w, K)[-1]
    worst = (logits.sh - wide["out_feature_sh"]).abs().max()
    assert worst > 2 * LOGIT_TOLERANCE
