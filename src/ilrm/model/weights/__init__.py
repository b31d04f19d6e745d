"""Weights: our safetensors, the released checkpoints, and where named weights come from."""

from ilrm.model.weights.registry import (
    NamedWeights,
    WeightsInfo,
    convert,
    describe,
    from_pretrained,
    list_weights,
    pull,
)
from ilrm.model.weights.store import load_weights, save_weights

__all__ = [
    "NamedWeights",
    "WeightsInfo",
    "convert",
    "describe",
    "from_pretrained",
    "list_weights",
    "load_weights",
    "pull",
    "save_weights",
]
