"""Lenses from JSON camera files: focal lengths, distortion, and refusing unsupported lens models."""

from __future__ import annotations

import math

from ilrm.core.errors import SceneError, warn
from ilrm.scenes.lenses.models import Lens
from ilrm.scenes.photos.images import Photo
from ilrm.scenes.readers.records import Record

_DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
# Parameters of unsupported lens models; they do no harm if they are zero.
_UNREAD_KEYS = ("k5", "k6", "p3", "p4", "s1", "s2", "s3", "s4", "b1", "b2", "skew")
_FISHEYE_MODELS = ("OPENCV_FISHEYE", "FISHEYE")
_PERSPECTIVE_MODELS = ("PERSPECTIVE", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_PANORAMAS = ("latlong", "equirectangular")  # instant-ngp's flags
_F_THETA = tuple(f"ftheta_p{order}" for order in range(5))
# Tolerances when the image size is guessed as twice the principal point: as a share of the size, and as a share of the
# step to the next reduction factor.
_OFF_CENTRE, _OFF_FACTOR = 0.05, 0.15
# If twice the principal point is within these shares of the photo's size, it is off centre, not of another size.
_OWN_SIZE = (0.67, 1.5)


def perspective_or_fisheye(record: Record, photo: Photo, reduction: int) -> Lens:
    """The lens of a frame of transforms.json.

    Args:
        record: the frame.
        photo: its photo.
        reduction: factor by which the photo is smaller than the calibrated one, according to its folder's name.

    Raises:
        SceneError: missing, impossible or unreadable values, or another kind of lens.
    """
    _refuse_other_lenses(record)
    model = record.text("camera_model") if "camera_model" in record else "PERSPECTIVE"
    fisheye = model in _FISHEYE_MODELS or record.flag("is_fisheye")
    if not fisheye and model not in _PERSPECTIVE_MODELS:
        raise SceneError(
            f"{record.label} has the camera model {model!r}.",
            expected=f"one of {', '.join((*_PERSPECTIVE_MODELS, *_FISHEYE_MODELS))}",
            fix="undistort the images to a pinhole camera first",
        )
    declared = record.size()
    if declared is None and "cx" in record and "cy" in record:
        declared = calibrated_size(record, record.number("cx"), record.number("cy"), photo, reduction)
    width, height = declared or (photo.width * reduction, photo.height * reduction)
    fx, fy = _focal(record, photo, width, height)
    cx, cy = record.number("cx", width / 2), record.number("cy", height / 2)
    return _lens(record, (fx, fy, cx, cy), width, height, fisheye)


def opencv_lens(record: Record, photo: Photo, reduction: int) -> Lens:
    """The lens of a frame of opencv_cameras.json or its LVSM variant. Raises SceneError as above."""
    _refuse_other_lenses(record)
    if "fxfycxcy" in record:
        fx, fy, cx, cy = record.numbers("fxfycxcy", 4)
    else:
        fx, fy = record.positive("fx"), record.positive("fy")
        cx, cy = record.number("cx"), record.number("cy")
    width, height = record.size() or calibrated_size(record, cx, cy, photo, reduction)
    return _lens(record, (fx, fy, cx, cy), width, height, fisheye=False)


def calibrated_size(record: Record, cx: float, cy: float, photo: Photo, reduction: int) -> tuple[int, int]:
    """(width, height) that intrinsics in pixels refer to, if their file does not say.

    It is the photo's own size, unless the principal point shows that the photo is a reduced or enlarged copy. As the
    principal point is near the centre, 2 cx / width and 2 cy / height are then the same factor.

    Raises:
        SceneError: a principal point outside the photo that this does not explain.
    """
    if reduction != 1:
        return photo.width * reduction, photo.height * reduction
    x, y = 2 * cx / photo.width, 2 * cy / photo.height
    outside = not (0 < x < 2 and 0 < y < 2)
    if not outside and not (max(x, y) < _OWN_SIZE[0] or min(x, y) > _OWN_SIZE[1]):
        return photo.width, photo.height
    if (factor := _common_factor(x, y)) is not None:
        size = round(photo.width * factor), round(photo.height * factor)
        warn(
            f"there are intrinsics without an image size; their principal point is that of {size[0]}x{size[1]}, "
            f"so they are scaled to the photos of {photo.width}x{photo.height}"
        )
        return size
    if not outside:
        return photo.width, photo.height
    raise SceneError(
        f"{record.label} has its principal point at ({cx:g}, {cy:g}), outside its photo of "
        f"{photo.width}x{photo.height}, and no image size.",
        expected='intrinsics of the photo\'s own size, or "w" and "h" of the photos that were calibrated',
        fix='add "w" and "h"',
    )


def _common_factor(x: float, y: float) -> float | None:
    """The scale of both axes: a nearby whole number or its inverse, or else any factor on which both agree to 0.1 %."""
    if min(x, y) <= 0 or not math.isfinite(x) or not math.isfinite(y):
        return None
    for factor in (max(1, round(x)), 1 / max(1, round(1 / x))):
        allowed = min(_OFF_CENTRE, _OFF_FACTOR / max(factor, 1 / factor))
        if factor != 1 and max(abs(x / factor - 1), abs(y / factor - 1)) < allowed:
            return factor
    return x if abs(x / y - 1) < 1e-3 else None


def _refuse_other_lenses(record: Record) -> None:
    """Refuse lens models that are marked by keys of specific programs. Raises SceneError."""
    panorama = next((key for key in _PANORAMAS if record.flag(key)), None)
    f_theta = next((key for key in _F_THETA if record.number(key, 0.0) != 0), None)
    if panorama or f_theta:
        name = panorama or f"F-theta ({f_theta})"
        raise SceneError(
            f"{record.label} was taken through a lens of the kind {name}, which no pinhole camera can represent.",
            expected="a perspective or fisheye camera",
            fix="cut panoramas into perspective views, or undistort the images to a pinhole camera, first",
        )
    unread = next((key for key in _UNREAD_KEYS if record.number(key, 0.0) != 0), None)
    if unread:
        raise SceneError(
            f"{record.label} has a lens parameter {unread} = {record.number(unread):g}.",
            expected="k1, k2, k3, p1, p2 of a perspective camera, or k1 to k4 of a fisheye",
            fix="undistort the images first",
        )
    shutter = record.values.get("rolling_shutter")
    if shutter and (not isinstance(shutter, list) or any(value != 0 for value in shutter)):
        warn("the camera file declares a rolling shutter, which is ignored: each photo is treated as one instant")


def _lens(record: Record, pinhole: tuple[float, float, float, float], width: int, height: int, fisheye: bool) -> Lens:
    if "distortion_params" in record:  # nerfstudio's parameters of a single frame
        k1, k2, k3, k4, p1, p2 = record.numbers("distortion_params", 6)
    else:
        k1, k2, k3, k4, p1, p2 = (record.number(key, 0.0) for key in _DISTORTION_KEYS)
    if fisheye:  # also with zero coefficients: the projection is still equidistant, not a pinhole
        return Lens("OPENCV_FISHEYE", (*pinhole, k1, k2, k3, k4), width, height)
    if k4 != 0:
        raise SceneError(
            f"{record.label} has a fourth radial distortion coefficient k4 = {k4:g}.",
            expected="k1, k2, k3, p1, p2 of a perspective camera, or a fisheye camera model",
            fix="undistort the images first",
        )
    if k3 != 0:
        return Lens("FULL_OPENCV", (*pinhole, k1, k2, p1, p2, k3, 0, 0, 0), width, height)
    if any((k1, k2, p1, p2)):
        return Lens("OPENCV", (*pinhole, k1, k2, p1, p2), width, height)
    return Lens.pinhole(*pinhole, width, height)


def _focal(record: Record, photo: Photo, width: int, height: int) -> tuple[float, float]:
    """fx, fy in pixels, given directly or by fields of view; if one is missing, it equals the other."""
    fx = record.positive("fl_x") if "fl_x" in record else None
    fy = record.positive("fl_y") if "fl_y" in record else None
    if fx is None:
        if photo.width == 2 * photo.height:
            warn(
                f"photos of {photo.width}x{photo.height} are exactly twice as wide as high and have no focal length in "
                "pixels; if they are panoramas, cut them into perspective views first"
            )
        fx = _focal_of_angle(record, "x", width)
        fy = _focal_of_angle(record, "y", height) if fy is None else fy
    if fx is None and fy is None:
        raise SceneError(
            f'{record.label} has neither "fl_x" nor "camera_angle_x".',
            expected="a focal length in pixels or a horizontal field of view in radians",
        )
    return fx or fy or 0.0, fy or fx or 0.0


def _focal_of_angle(record: Record, axis: str, side: int) -> float | None:
    """The focal length from "camera_angle_x" in radians or instant-ngp's "x_fov" in degrees; None without either."""
    for key, unit in ((f"camera_angle_{axis}", 1.0), (f"{axis}_fov", math.pi / 180)):
        if key in record:
            angle = record.positive(key) * unit
            if angle >= math.pi:
                expected = "radians between 0 and pi" if unit == 1.0 else "degrees between 0 and 180"
                raise SceneError(f'{record.label}: "{key}" is {record.number(key):g}.', expected=expected)
            return 0.5 * side / math.tan(0.5 * angle)
    return None
