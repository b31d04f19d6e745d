"""Validation of messages from visitors: only the kinds that our panel needs, with values that its controls allow."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import msgspec

_Number = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
_Angle = Annotated[float, msgspec.Meta(ge=1e-6, le=3.15)]
_Pixels = Annotated[float, msgspec.Meta(ge=0, le=65535)]
_Point = tuple[_Number, _Number, _Number]
_Quaternion = tuple[_Number, _Number, _Number, _Number]


class _Kind(msgspec.Struct, tag_field="type", forbid_unknown_fields=True):
    """Base class of message kinds; tags are viser's names."""


class _Camera(_Kind, tag="ViewerCameraMessage"):
    wxyz: _Quaternion
    position: _Point
    fov: _Angle
    near: float
    far: float
    image_height: _Pixels
    image_width: _Pixels
    look_at: _Point
    up_direction: _Point


class _Control(_Kind, tag="GuiUpdateMessage"):
    uuid: str
    updates: dict[Literal["value"], bool | _Number | str]


class _Click(_Kind, tag="SceneNodeClickMessage"):
    name: str
    instance_index: int | None
    ray_origin: _Point
    ray_direction: _Point
    screen_pos: tuple[_Number, _Number]
    modifier: str | None
    owner: str = ""


class _Gizmo(_Kind, tag="TransformControlsUpdateMessage"):
    name: str
    wxyz: _Quaternion
    position: _Point
    owner: str = ""


class _GizmoTaken(_Kind, tag="TransformControlsDragStartMessage"):
    name: str
    owner: str = ""


class _GizmoLeft(_Kind, tag="TransformControlsDragEndMessage"):
    name: str
    owner: str = ""


class _Command(_Kind, tag="CommandTriggerMessage"):
    uuid: str


class _Picture(_Kind, tag="GetRenderResponseMessage"):
    payload: bytes
    render_uuid: str


_DECODER = msgspec.msgpack.Decoder(
    _Camera | _Control | _Click | _Gizmo | _GizmoTaken | _GizmoLeft | _Command | _Picture
)


class _Messages(Protocol):
    """viser's base class of messages."""

    def deserialize(self, message: bytes) -> Any: ...


class Inbox:
    """Replaces viser's message class when decoding, and refuses messages that our page would not send.

    Args:
        messages: viser's class.

    Attributes:
        controls: the controls of the panel by uuid; set once the server runs.
    """

    def __init__(self, messages: _Messages) -> None:
        self._messages = messages
        self.controls: Mapping[str, Any] = {}

    def deserialize(self, message: bytes) -> Any:
        """Decode a message of a visitor. Raises ValueError, which closes the connection."""
        found = _DECODER.decode(message)
        if isinstance(found, _Control):
            self._check(found)
        return self._messages.deserialize(message)

    def _check(self, update: _Control) -> None:
        if (control := self.controls.get(update.uuid)) is None:
            return
        for value in update.updates.values():
            if hasattr(control, "options"):
                possible = value in control.options
            elif hasattr(control, "min"):
                possible = not isinstance(value, bool | str) and control.min <= value <= control.max
            else:
                possible = isinstance(value, type(control.value))
            if not possible:
                raise ValueError(f"the control {control.label} cannot have this value")


class FirstErrorHandler(logging.Handler):
    """Prints one line when the first connection is closed for an invalid message, and nothing afterwards."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._has_reported = False

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if self._has_reported or error is None or record.getMessage() != "connection handler failed":
            return  # failed handshakes of other programs are not worth a line
        self._has_reported = True
        reason = repr(str(error) or type(error).__name__)[:200]
        print(f"viewer: closed a connection that sent an invalid message: {reason}", file=sys.stderr)
