"""How good a reconstruction is, in numbers."""

from ilrm.evaluate.metrics import depth_abs_rel, psnr, ssim

__all__ = ["depth_abs_rel", "psnr", "ssim"]
