"""Repairs of viser's client: scripts in its page that run before its own code and do nothing where that has changed."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ilrm.view.gate import Gate, refusal
from ilrm.view.inbox import FirstOnly, Inbox

_TITLE = "<title>Viser</title>"
_ONE_AT_A_TIME = threading.Lock()

# The client sorts splats in a module worker out of a blob. Chromium does not load such a worker for a page that was
# opened from a file, and the splats would stay unsorted. Where the blob fails at once, the client takes a data URL
# instead, which works.
_SORTER_FROM_FILES = """
if (location.protocol === "file:") {
  window.Worker = class extends window.Worker {
    constructor(url, options) {
      if (String(url).startsWith("blob:")) throw new Error("no worker out of a blob in a page from a file");
      super(url, options);
    }
  };
}"""

# The client unpacks its code as text before it runs it, which is where it can be changed. The corners of a splat's quad
# have two coordinates; three.js asks for the third and reports NaN as an error. The notice that there is no GPU would
# stay over the scene until it is closed by hand. What the client keeps about its scene gets a name, for the frustums.
_CODE = """
{
  const decode = TextDecoder.prototype.decode;
  TextDecoder.prototype.decode = function (...of) {
    const text = decode.apply(this, of);
    if (text.length < 1e6) return text;
    TextDecoder.prototype.decode = decode;
    return text
      .replace("[-2,-2,2,-2,2,2,-2,2]),2)", "[-2,-2,0,2,-2,0,2,2,0,-2,2,0]),3)")
      .replace(/(id:`webgl-software-rendering`[^}]*autoClose:)!1/, (_, before) => before + "10000")
      .replace("useRef({sendMessage:", "useRef(window.ilrmClient??={sendMessage:");
  };
}"""

# A picture in the panel is still being fetched when the panel is docked elsewhere and its address taken back, which the
# browser reports as an error. The address has to live a little longer.
_ADDRESSES_OF_PICTURES = """
{
  const revoke = URL.revokeObjectURL.bind(URL);
  URL.revokeObjectURL = (url) => void setTimeout(revoke, 10000, url);
}"""

# Frustums may not cover what is looked at. One that comes near shrinks, down to nothing where one stands in it, and all
# shrink together where they would take more than a share of the picture. A frustum counts as the disc of its sphere.
_FRUSTUMS = """
{
  const LARGEST = 0.06, SHARE = 0.01; // radius over distance; discs over the picture
  const radius = (node) => {
    let largest = 0;
    node.traverse((part) => (largest = Math.max(largest, part.geometry?.boundingSphere?.radius ?? 0)));
    return largest;
  };
  const fit = () => {
    requestAnimationFrame(fit);
    const client = window.ilrmClient, camera = client?.camera;
    if (!camera || !client.nodeRefFromName) return;
    const view = camera.matrixWorldInverse.elements;
    const high = Math.tan((camera.fov * Math.PI) / 360), wide = high * camera.aspect;
    const line = (2 * high) / window.innerHeight; // its width, a pixel, at distance 1
    const scales = new Map();
    let covered = 0;
    for (const [name, node] of Object.entries(client.nodeRefFromName)) {
      const size = name.startsWith("/cameras/") && node ? radius(node) : 0;
      if (size === 0) continue;
      const place = node.matrixWorld.elements;
      const [x, y, z] = [0, 1, 2].map(
        (row) => view[row] * place[12] + view[4 + row] * place[13] + view[8 + row] * place[14] + view[12 + row]
      );
      const distance = Math.hypot(x, y, z);
      scales.set(node, Math.min(1, (LARGEST * distance) / size));
      const seen = Math.abs(x) < -1.1 * wide * z && Math.abs(y) < -1.1 * high * z;
      if (seen) covered += (Math.PI * ((scales.get(node) * size) / distance + line) ** 2) / (4 * wide * high);
    }
    const together = covered > SHARE ? Math.sqrt(SHARE / covered) : 1;
    let changed = false;
    for (const [node, alone] of scales) {
      const scale = Math.max(alone * together, 1e-6);
      if (Math.abs(scale - node.scale.x) <= 0.01 * node.scale.x) continue;
      node.scale.setScalar(scale);
      changed = true;
    }
    if (changed) client.requestRender();
  };
  requestAnimationFrame(fit);
}"""

# In a small window notices lie over the controls: clicks reach what is below them, except on their own buttons.
_NOTICES = """
.mantine-Notification-root { pointer-events: none !important; }
.mantine-Notification-root button { pointer-events: auto; }
"""


def repaired(page: str, head: str = _TITLE) -> str:
    """viser's page with the repairs, and with ``head`` (title and styles) in place of its title."""
    scripts = f"<script>{_SORTER_FROM_FILES}{_CODE}{_ADDRESSES_OF_PICTURES}{_FRUSTUMS}\n</script>"
    # Python's replace: a title with backslashes or dollars stays what it is.
    return page.replace(_TITLE, f"{head}<style>{_NOTICES}</style>{scripts}", 1)


@contextlib.contextmanager
def served_from(folder: Path, gate: Gate, inbox: Inbox) -> Iterator[threading.Event]:
    """Servers that viser starts while inside send a repaired client, which is written to ``folder``, let in whom the
    gate admits, and read what visitors send through the inbox.

    viser has no options for it; this stands in for its server class, and for the function by which that listens. The
    event is set once somebody watches the gate; a viser that listens in another way leaves it open.
    """
    import viser
    import websockets.asyncio.server as websockets
    from viser import infra

    build = Path(str(viser.__file__)).parent / "client" / "build" / "index.html"
    (folder / "index.html").write_text(repaired(build.read_text("utf-8")), "utf-8")
    ours, guarded = threading.local(), threading.Event()

    class Server(infra.WebsockServer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "http_server_root": folder, "message_class": inbox})

        def _background_worker(self, ready_sem: threading.Semaphore) -> None:
            ours.thread = True
            super()._background_worker(ready_sem)

    class Connection(websockets.ServerConnection):
        head, refused = b"", False

        def data_received(self, data: bytes) -> None:
            if self.request is None and not self.refused:
                self.head += data
                if (status := refusal(self.head)) is not None:
                    self.refused = True
                    answer = f"HTTP/1.1 {status} {status.phrase}\r\nAllow: GET\r\nConnection: close\r\n\r\n"
                    self.transport.write(answer.encode())
                    self.transport.write_eof()
            if not self.refused:  # else the rest is read and forgotten, for the answer would not arrive otherwise
                super().data_received(data)

    def listen(*args: Any, **options: Any) -> Any:
        if not hasattr(ours, "thread"):  # somebody else's server
            return serve(*args, **options)
        guarded.set()
        process = gate.before(options["process_request"], viser.__version__)
        own = {"process_request": process, "logger": _quiet(), "create_connection": Connection}
        return serve(*args, **{**options, **own})

    with _ONE_AT_A_TIME:
        original, serve = infra.WebsockServer, websockets.serve
        infra.WebsockServer, websockets.serve = Server, listen
        try:
            yield guarded
        finally:
            infra.WebsockServer, websockets.serve = original, serve


def _quiet() -> logging.Logger:
    """A log of connections by itself: whatever knocks at the port fills no terminal."""
    logger = logging.Logger("ilrm.view", logging.ERROR)
    logger.addHandler(FirstOnly())
    return logger
