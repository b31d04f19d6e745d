"""Weights: our safetensors, the released checkpoints, and where named weights come from."""

from ilrm.weights.store import load_weights, save_weights

__all__ = ["load_weights", "save_weights"]
