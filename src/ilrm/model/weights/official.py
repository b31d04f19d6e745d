"""The two released checkpoint layouts, as one explicit map that is strict in both directions.

Left: names in the file (after its prefix). Right: names in ``ilrm.model.ILRM``. ``{i}`` counts update layers; in the
files cross-attention blocks have even numbers and self-attention blocks odd ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from ilrm.core.errors import ConfigError, WeightsError
from ilrm.files.torch_files import LazyTensor
from ilrm.model.config import ILRMConfig

ReleasedLayout = Literal["main", "wide"]
_MAIN_PREFIX = "encoder.scaler."
_BLOCK = re.compile(r"processor\.blocks\.(\d+)\.")

_CROSS_BLOCK = {
    "read_cross.norm": "cross.norm",
    "read_cross.q_norm": "cross.q_norm",
    "read_cross.k_norm": "cross.k_norm",
    "read_cross.q": "cross.q",
    "read_cross.k": "cross.k",
    "read_cross.v": "cross.v",
    "read_cross.proj": "cross.proj",
    "read_ff.norm": "cross_mlp.norm",
    "read_ff.fc1": "cross_mlp.fc1",
    "read_ff.fc2": "cross_mlp.fc2",
}
_SELF_BLOCK = {
    "attn.norm": "self_attention.norm",
    "attn.qkv": "self_attention.qkv",
    "attn.q_norm": "self_attention.q_norm",
    "attn.k_norm": "self_attention.k_norm",
    "attn.proj": "self_attention.proj",
    "mlp.norm": "self_mlp.norm",
    "mlp.fc1": "self_mlp.fc1",
    "mlp.fc2": "self_mlp.fc2",
}
_ENDS: dict[ReleasedLayout, dict[str, str]] = {
    "main": {
        "input_tokenizer": "viewpoint_tokens.project",
        "input_layernorm": "viewpoint_tokens.norm",
        "support_tokenizer": "image_tokens.project",
        "support_layernorm": "image_tokens.norm",
        "token_decoder.0": "decoder_norm",
        "token_decoder.1": "decoder",
    },
    "wide": {
        "viewpoint_tokenizer.1": "viewpoint_tokens.project",
        "viewpoint_tokenizer.2": "viewpoint_tokens.norm",
        "image_tokenizer.1": "image_tokens.project",
        "image_tokenizer.2": "image_tokens.norm",
        "viewpoint_token_decoder.0": "decoder_norm",
        "viewpoint_token_decoder.1": "decoder",
    },
}


def name_map(layout: ReleasedLayout, layers: int) -> dict[str, str]:
    """{name in the file: name in our network} of every tensor of a network with that many update layers."""
    prefix = _MAIN_PREFIX if layout == "main" else ""
    names = dict(_ENDS[layout])
    for i in range(layers):
        names |= {f"processor.blocks.{2 * i}.{a}": f"layers.{i}.{b}" for a, b in _CROSS_BLOCK.items()}
        names |= {f"processor.blocks.{2 * i + 1}.{a}": f"layers.{i}.{b}" for a, b in _SELF_BLOCK.items()}
    return {f"{prefix}{a}.weight": f"{b}.weight" for a, b in names.items()}


def detect(tensors: Mapping[str, Any]) -> ReleasedLayout | None:
    """Which released layout these names belong to, if any."""
    if any(name.startswith(_MAIN_PREFIX) for name in tensors):
        return "main"
    if any(name.startswith("viewpoint_token_decoder.") for name in tensors):
        return "wide"
    return None


def infer_config(layout: ReleasedLayout, tensors: Mapping[str, LazyTensor], source: str) -> ILRMConfig:
    """The config whose network these tensors fill: sizes are read off the shapes, the rest is fixed by the layout.

    Raises:
        WeightsError: a tensor that fixes a size is missing or impossible.
    """
    base = ILRMConfig.released_two_view() if layout == "main" else ILRMConfig.released_wide()
    prefix = _MAIN_PREFIX if layout == "main" else ""
    ends = {ours: f"{prefix}{theirs}.weight" for theirs, ours in _ENDS[layout].items()}
    first = f"{prefix}processor.blocks.0.read_cross"
    needed = [ends["decoder"], ends["viewpoint_tokens.project"], f"{first}.q.weight", f"{first}.q_norm.weight"]
    for name in needed:
        if name not in tensors:
            raise WeightsError(
                f"{source} lacks the tensor {name}.",
                expected=f"the released layout {layout!r}",
                fix="download it again",
            )
    decoder, rays, query, head = (tensors[name] for name in needed)
    if decoder.ndim != 2 or rays.ndim != 2 or query.ndim != 2 or head.ndim != 1:
        raise WeightsError(f"{source} holds tensors of the wrong rank.", expected=f"the released layout {layout!r}")
    width = decoder.shape[1]
    ray_channels = 3 * len(base.viewpoint_channels)
    patch_size = round((rays.shape[1] / ray_channels) ** 0.5)
    other = sum(base.raw_split()) - base.sh_channels
    colours = decoder.shape[0] // max(1, patch_size**2) - other
    degree = round(max(colours / 3, 0) ** 0.5) - 1
    blocks = {match[1] for match in map(_BLOCK.search, tensors) if match}
    hidden = tensors.get(f"{prefix}processor.blocks.0.read_ff.fc1.weight")
    possible = (
        hidden is not None and hidden.ndim == 2 and width > 0 and head.shape[0] > 0 and width % head.shape[0] == 0
    )
    if hidden is None or not possible or 3 * (degree + 1) ** 2 != colours:
        raise WeightsError(
            f"{source} holds tensors of impossible shapes: decoder {tuple(decoder.shape)}, "
            f"viewpoint tokeniser {tuple(rays.shape)}.",
            expected=f"the released layout {layout!r}",
        )
    try:
        return replace(
            base,
            width=width,
            head_width=head.shape[0],
            layers=len(blocks) // 2,
            patch_size=patch_size,
            uplift=max(1, query.shape[0] // width),
            mlp_ratio=max(1, hidden.shape[0] // width),
            sh_degree=degree,
        )
    except ConfigError as error:
        raise WeightsError(f"{source}: {error.problem}", expected=f"the released layout {layout!r}") from error


def rename(layout: ReleasedLayout, tensors: Mapping[str, LazyTensor], layers: int) -> dict[str, LazyTensor]:
    """The tensors under our names. Names that the map lacks are passed on, so that a strict load reports them."""
    names = name_map(layout, layers)
    return {names.get(name, name): tensor for name, tensor in tensors.items()}
