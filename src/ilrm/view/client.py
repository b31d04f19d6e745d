"""Patches for viser's client: scripts in its page that run before its own code.

They match pieces of that code and do nothing if a piece has changed. This module also wraps viser's server, for which
viser has no options.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ilrm.view.gate import Gate, refusal
from ilrm.view.inbox import FirstErrorHandler, Inbox

_TITLE = "<title>Viser</title>"
_ONE_AT_A_TIME = threading.Lock()

# The client sorts splats in a module worker that it loads from a blob URL. In a page opened from a file, Chromium does
# not load such a worker, and the splats would stay unsorted. If creating the worker throws, the client uses a data URL
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

# The client decompresses its own code to text before it runs it; the text can be changed there. Three changes: the
# corners of a splat's quad get a third coordinate, because three.js reads it and logs an error for NaN; the notice that
# there is no GPU closes by itself; and the client's state becomes available as window.ilrmClient, for _FRUSTUMS.
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

# When the panel is docked elsewhere, the client revokes the URL of an image in it while the browser may still fetch it,
# which logs an error. Revoking it later avoids that.
_ADDRESSES_OF_PICTURES = """
{
  const revoke = URL.revokeObjectURL.bind(URL);
  URL.revokeObjectURL = (url) => void setTimeout(revoke, 10000, url);
}"""

# Frustums should not hide the scene. A frustum near the visitor shrinks, down to nothing at its own position, and all
# shrink together if they would cover more than a share of the picture. The area of a frustum is estimated by the disc
# of its bounding sphere.
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

# In a small window notices cover the controls. Clicks pass through them, except on their own buttons.
_NOTICES = """
.mantine-Notification-root { pointer-events: none !important; }
.mantine-Notification-root button { pointer-events: auto; }
"""


def patched_page(page: str, head: str = _TITLE) -> str:
    """viser's page with the patches, and with ``head`` (title and styles) in place of its title."""
    scripts = f"<script>{_SORTER_FROM_FILES}{_CODE}{_ADDRESSES_OF_PICTURES}{_FRUSTUMS}\n</script>"
    # str.replace, because re.sub would interpret backslashes in the title.
    return page.replace(_TITLE, f"{head}<style>{_NOTICES}</style>{scripts}", 1)


@contextlib.contextmanager
def patched_servers(folder: Path, gate: Gate, inbox: Inbox) -> Iterator[threading.Event]:
    """Patch the viser servers that are started in the body.

    They send a patched client, which is written to ``folder``, admit only requests that pass the gate, and decode
    messages of visitors with the inbox. To this end viser's server class and the function by which it listens are
    replaced. The event is set once the gate is installed; it stays unset if a new version of viser listens in another
    way.
    """
    import viser
    import websockets.asyncio.server as websockets
    from viser import infra

    build = Path(str(viser.__file__)).parent / "client" / "build" / "index.html"
    (folder / "index.html").write_text(patched_page(build.read_text("utf-8")), "utf-8")
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
            # After a refusal the rest is read and dropped: closing with unread data would reset the connection, and the
            # browser would not get the answer.
            if not self.refused:
                super().data_received(data)

    def listen(*args: Any, **options: Any) -> Any:
        if not hasattr(ours, "thread"):  # a server of other code in this process
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
    """A separate logger for connections, so that port scans do not fill the terminal."""
    logger = logging.Logger("ilrm.view", logging.ERROR)
    logger.addHandler(FirstErrorHandler())
    return logger
