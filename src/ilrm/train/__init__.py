"""Training: one config in, a folder of weights, checkpoints and curves out."""
