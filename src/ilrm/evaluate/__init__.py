"""Metrics of reconstructions: images, depth, surfaces."""

from ilrm.evaluate.metrics import depth_abs_rel, psnr, ssim

__all__ = ["depth_abs_rel", "psnr", "ssim"]
