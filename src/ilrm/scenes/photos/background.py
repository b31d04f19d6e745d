"""The colour behind a scene: what is drawn where no Gaussian is."""

from __future__ import annotations

import torch

from ilrm.core.scene import Scene
from ilrm.scenes.views import evenly_spaced

_MOST_PHOTOS = 16
# Edges of one colour: this share of their pixels differs by no more than that in any channel.
_EDGE, _ALIKE, _SHARE = 2, 0.04, 0.9


def background_colour(photos: Scene) -> tuple[float, float, float] | None:
    """Red, green and blue in [0, 1]: the colour of the photos' edges if they all have one, else the mean of all pixels.

    An object before a wall of one colour is seen before it from anywhere. Of other scenes, a view from between the
    photos has gaps that could show anything; their mean colour is wrong by less than white. None, which is drawn white,
    where masks say that not all pixels belong to the scene.
    """
    if photos.mask is not None or len(photos) == 0:
        return None
    images = photos.images[evenly_spaced(len(photos), _MOST_PHOTOS)]
    rows = torch.cat([images[:, :_EDGE], images[:, -_EDGE:]], 1).reshape(-1, 3)
    columns = torch.cat([images[:, :, :_EDGE], images[:, :, -_EDGE:]], 2).reshape(-1, 3)
    edge = torch.cat([rows, columns])
    middle = edge.median(0).values
    alike = ((edge - middle).abs().amax(1) <= _ALIKE).float().mean() >= _SHARE
    red, green, blue = (middle if alike else images.mean((0, 1, 2))).clamp(0, 1).tolist()
    return red, green, blue
