"""Who may connect: only pages of the viewer itself at the announced address, by raw sockets and by websockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest
import viser
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from ilrm.core.errors import OutputError
from ilrm.view.gate import Gate, is_everywhere, is_private
from ilrm.view.server import serve
from tests.conftest import PATIENCE_S, wait_until

VERSION = f"viser-v{viser.__version__}"


@pytest.fixture(scope="module")
def server() -> Iterator[viser.ViserServer]:
    with serve() as server:
        server.gui.add_slider("Share", 0.0, 1.0, 0.1, 0.5)
        server.gui.add_dropdown("Kind", ("a", "b"))
        server.gui.add_checkbox("On", False)
        yield server


def status(port: int, request: bytes) -> tuple[int, bytes]:
    """Of the answer to a raw request, and the whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as line:
        line.sendall(request)
        answer = b""
        while part := line.recv(1 << 16):
            answer += part
    return int(answer.split()[1]), answer


def get(port: int, *headers: str, path: str = "/") -> tuple[int, bytes]:
    lines = [f"GET {path} HTTP/1.1", *headers, "", ""]
    return status(port, "\r\n".join(lines).encode())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "[0:0:0:0:0:0:0:1]"])
def test_the_announced_address_is_answered(server: viser.ViserServer, host: str) -> None:
    port = server.get_port()
    code, answer = get(port, f"Host: {host}:{port}")
    assert code == 200
    assert b"frame-ancestors 'none'" in answer
    assert get(port, f"Host: {host}:{port}", f"Origin: http://{host}:{port}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        ["Host: evil.example.com"],
        ["Host: evil.example.com:{port}"],
        ["Host: 127.0.0.1.evil.example.com:{port}"],
        ["Host: evil.localhost:{port}"],
        ["Host: localhost.:{port}"],
        ["Host: 192.0.2.1:{port}"],
        ["Host: 127.0.0.1"],
        ["Host: 127.0.0.1:1{port}"],
        ["Host: user@127.0.0.1:{port}"],
        ["Host: 127.0.0.1:{port}/x"],
        ["Host:"],
        [],
        ["Host: 127.0.0.1:{port}", "Host: evil.example.com"],
        ["Host: 127.0.0.1:{port}", "Origin: http://evil.example.com"],
        ["Host: 127.0.0.1:{port}", "Origin: http://127.0.0.1"],
        ["Host: 127.0.0.1:{port}", "Origin: http://localhost:80"],
        ["Host: 127.0.0.1:{port}", "Origin: null"],
        ["Host: 127.0.0.1:{port}", "Origin: file://"],
        ["Host: 127.0.0.1:{port}", "Origin: http://127.0.0.1:{port}", "Origin: http://evil.example.com"],
        ["Host: 127.0.0.1:{port}", "Origin: ftp://127.0.0.1:{port}"],
    ],
)
def test_anybody_else_is_refused(server: viser.ViserServer, headers: list[str]) -> None:
    port = server.get_port()
    lines = [line.format(port=port) for line in headers]
    code, answer = get(port, *lines)
    assert code == 403
    assert b"<script" not in answer
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    key = ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", f"Sec-WebSocket-Protocol: {VERSION}"]
    assert get(port, *lines, *upgrade, *key)[0] == 403


def test_odd_requests_are_answered_quietly(server: viser.ViserServer, capfd: pytest.CaptureFixture[str]) -> None:
    port = server.get_port()
    host = f"Host: 127.0.0.1:{port}"
    assert get(port, host, path="/" + "a" * 5000)[0] == 414
    assert get(port, host, path="/" + "a" * 200_000)[0] == 414
    for path in ("/" + "a" * 300, "/%00", "/a%00b", "/..%2f..%2fetc%2fpasswd", "/etc", "/a/b/c.js"):
        assert get(port, host, path=path)[0] == 404, path
    assert get(port, host, "Upgrade: websocket", "Upgrade: websocket")[0] in (400, 404)
    assert status(port, b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")[0] == 405
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(b"\x16\x03\x01\x02\x00nonsense\r\n\r\n")
    assert get(port, host)[0] == 200
    assert capfd.readouterr() == ("", "")


def test_other_pages_cannot_open_a_websocket(server: viser.ViserServer) -> None:
    port = server.get_port()
    for origin in ("http://evil.example.com", "http://localhost:1", "null"):
        with pytest.raises(InvalidStatus) as caught, visit(port, Origin(origin)):
            pass
        assert caught.value.response.status_code == 403
    for origin in (None, f"http://127.0.0.1:{port}", f"https://localhost:{port}"):
        with visit(port, origin and Origin(origin)) as ours:
            assert len(ours.recv(PATIENCE_S)) > 0


def visit(port: int, origin: Origin | None = None, protocol: str = VERSION) -> ClientConnection:
    subprotocols = [Subprotocol(protocol)]
    return connect(f"ws://127.0.0.1:{port}", origin=origin, subprotocols=subprotocols, max_size=None, proxy=None)


def test_pages_of_another_version_reload(server: viser.ViserServer, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidStatus) as caught, visit(server.get_port(), protocol="viser-v0.0.1"):
        pass
    assert caught.value.response.status_code == 400
    assert capfd.readouterr() == ("", "")  # viser would print it to stdout, which is for results


CAMERA = {
    "type": "ViewerCameraMessage",
    "wxyz": (1, 0, 0, 0),
    "position": (0, 0, 0),
    "fov": 1.0,
    "near": 0.1,
    "far": 10.0,
    "image_height": 100,
    "image_width": 100,
    "look_at": (0, 0, 1),
    "up_direction": (0, 1, 0),
}
MALFORMED = [
    "text",
    b"",
    b"\xff\xff\xff",
    bytes(range(256)),
    b"\x91" * 100_000,
    [],
    {"type": "NoSuchMessage"},
    {"type": 3},
    {"type": "ShareUrlRequest"},  # would open a public tunnel
    {"type": "BackgroundImageMessage", "format": "png", "rgb_data": None, "depth_data": None},
    {"type": "ViewerCameraMessage"},
    {"type": "CommandTriggerMessage", "uuid": 3},
    {**CAMERA, "wxyz": (1, 0, 0)},
    {**CAMERA, "position": (float("nan"), 0, 0)},
    {**CAMERA, "fov": 0.0},
    {**CAMERA, "image_width": 1e300},
    {**CAMERA, "extra": 1},
    {"type": "GuiUpdateMessage", "uuid": [], "updates": {}},
    {"type": "GuiUpdateMessage", "uuid": "Share", "updates": {"value": 2.0}},
    {"type": "GuiUpdateMessage", "uuid": "Share", "updates": {"value": "x"}},
    {"type": "GuiUpdateMessage", "uuid": "Share", "updates": {"value": float("nan")}},
    {"type": "GuiUpdateMessage", "uuid": "Share", "updates": {"update_cb": "x"}},
    {"type": "GuiUpdateMessage", "uuid": "Kind", "updates": {"value": "c"}},
    {"type": "GuiUpdateMessage", "uuid": "On", "updates": {"value": "yes"}},
    {"type": "TransformControlsUpdateMessage", "name": "/crop", "wxyz": (1, 0, 0, 0), "position": "abc"},
]


def test_malformed_messages_close_the_connection(server: viser.ViserServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Only one line is printed, and the other clients notice nothing."""
    controls = {handle.label: uuid for uuid, handle in server.gui._gui_input_handle_from_uuid.items()}
    with visit(server.get_port()) as other:
        other.send(msgspec.msgpack.encode(CAMERA))
        for message in MALFORMED:
            if isinstance(message, dict) and isinstance(name := message.get("uuid"), str):
                message = {**message, "uuid": controls[name]}
            content = message if isinstance(message, str | bytes) else msgspec.msgpack.encode(message)
            with visit(server.get_port()) as ours:
                ours.send(content)
                with pytest.raises(ConnectionClosed):
                    while True:
                        ours.recv(PATIENCE_S)
        share = {"type": "GuiUpdateMessage", "uuid": controls["Share"], "updates": {"value": 0.7}}
        other.send(msgspec.msgpack.encode(share))
        wait_until(lambda: server.gui._gui_input_handle_from_uuid[controls["Share"]].value == 0.7)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") <= 1
    assert "Traceback" not in err


def test_hosts() -> None:
    assert is_private("127.0.0.1")
    assert is_private("::1")
    assert is_private("localhost")
    assert not is_private("0.0.0.0")
    assert not is_private("192.0.2.7")
    assert is_everywhere("::")
    assert not is_everywhere("localhost")
    one = Gate("192.0.2.7")
    assert one.admits(["192.0.2.7:80"], [], 80)
    assert one.admits(["192.0.2.7"], ["http://192.0.2.7"], 80)
    assert not one.admits(["192.0.2.8"], [], 80)
    assert not one.admits(["localhost"], [], 80)
    # Every address and every own name; any other name has been rebound.
    everywhere = Gate("0.0.0.0")
    assert everywhere.admits(["192.0.2.7:81"], ["http://192.0.2.7:81"], 81)
    assert everywhere.admits([f"{socket.gethostname()}:81"], [], 81)
    assert not everywhere.admits(["evil.example.com:81"], [], 81)
    assert not everywhere.admits(["192.0.2.7:81"], ["http://evil.example.com:81"], 81)


def test_without_a_watched_gate_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """A viser version that listens through another function must not be left open."""
    from viser import infra

    worker = infra.WebsockServer._background_worker
    import websockets.asyncio.server as websockets

    listen = websockets.serve

    def another(self: infra.WebsockServer, ready: object) -> None:
        monkeypatch.setattr(websockets, "serve", listen)
        worker(self, ready)  # type: ignore[arg-type]

    monkeypatch.setattr(infra.WebsockServer, "_background_worker", another)
    with pytest.raises(OutputError, match="protect"), serve():
        pass
