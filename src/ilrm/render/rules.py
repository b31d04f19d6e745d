"""The rules of rendering that every backend shares (the defaults of gsplat 1.5).

A Gaussian is projected to a 2D Gaussian with covariance J R S R^T J^T + BLUR * I, seen at pixel centres (+0.5).
For anti-aliased Gaussians the opacity is multiplied by sqrt(det / det_blurred), the determinants of the covariance
before and after the blur (Mip-Splatting; gsplat's rasterize_mode "antialiased"): the area that the blur adds is taken
from the opacity.

Front to back by camera z, each pixel takes alpha = min(ALPHA_CAP, opacity * exp(-d^T cov^-1 d / 2)), skips it
below ALPHA_MIN, and stops before the Gaussian that would bring its transmittance to TRANSMITTANCE_MIN or below.
What remains of the transmittance shows the background.

gsplat also limits a Gaussian to the 16-pixel tiles that its radius, min(3.33, sqrt(2 ln(255 opacity))) standard
deviations, touches. For an opacity of at most 1 the root is at most 3.3291, so the limit never removes a pixel
whose alpha is at least ALPHA_MIN: it only saves work. Here the alpha alone decides.

Numba's cache of compiled kernels does not notice changes of this file: delete __pycache__ after one.
"""

ALPHA_MIN = 1 / 255
# gsplat lowered its cap to 0.99 in February 2026; the published numbers predate that.
ALPHA_CAP = 0.999
TRANSMITTANCE_MIN = 1e-4
# Added to both variances of the projected Gaussian, in square pixels.
BLUR = 0.3
# Least ratio of the determinants. Its root times an opacity is far below ALPHA_MIN, so nothing is drawn with it; it
# keeps the root's derivative finite.
COMPENSATION_MIN = 1e-12
# The Jacobian is evaluated at most this share of tan(fov / 2) beyond the image border.
JACOBIAN_MARGIN = 0.3
# Expected depth is sum(w z) / max(alpha, DEPTH_ALPHA_MIN).
DEPTH_ALPHA_MIN = 1e-10
