"""A scene as a single .html file that opens with a double click, without a server or a network connection."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

from ilrm.core.cameras import Cameras
from ilrm.core.errors import GaussiansError, warn
from ilrm.core.gaussians import Gaussians
from ilrm.files import write_text
from ilrm.results.result import Result
from ilrm.view.client import patched_page
from ilrm.view.server import CAMERAS, serve, show_cameras, show_layout, show_splats, thumbnail
from ilrm.view.splats import Array, Pose, ViewLayout, arrange, background_image, check_drawable, splat_arrays

_STRIP_SIDE = 72  # pixels of a thumbnail in the strip

_STYLE = """<style>
#ilrm-card { position: fixed; left: 12px; bottom: 12px; z-index: 20; max-width: min(420px, calc(100vw - 24px));
  background: rgba(255, 255, 255, 0.88); border-radius: 6px; box-shadow: 0 1px 6px rgba(0, 0, 0, 0.25);
  font: 13px/1.45 system-ui, sans-serif; color: #222; padding: 6px 12px; }
#ilrm-card summary { font-weight: 600; cursor: pointer; }
#ilrm-card table { border-spacing: 0; margin: 4px 0; }
#ilrm-card td:first-child { color: #666; padding-right: 14px; }
#ilrm-strip { display: flex; flex-wrap: wrap; gap: 4px; max-height: 180px; overflow-y: auto; margin: 4px 0; }
#ilrm-strip a { display: block; color: #222; }
#ilrm-strip img { display: block; border-radius: 3px; }
#ilrm-card p { margin: 4px 0 2px; color: #666; }
#ilrm-card button { font: inherit; padding: 0 6px; }
</style>"""

_BUTTON = " <button>Hide the cameras</button> (key C)"
# Without a server, the button itself queues the message by which a server would hide the frustums.
_HIDE = """
{
  const button = document.querySelector("#ilrm-card button");
  let visible = true;
  const toggle = () => {
    const client = window.ilrmClient;
    if (!client) return;
    visible = !visible;
    button.textContent = visible ? "Hide the cameras" : "Show the cameras";
    client.messageQueue.push({ type: "SetSceneNodeVisibilityMessage", name: "CAMERAS", visible });
    client.requestRender();
  };
  button.addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select");
    const other = event.repeat || event.ctrlKey || event.metaKey || event.altKey;
    if (event.key.toLowerCase() === "c" && !other && !typing) toggle();
  });
}""".replace("CAMERAS", CAMERAS)


def save_page(
    gaussians: Gaussians,
    path: Path | str,
    cameras: Cameras | None = None,
    thumbnails: Sequence[Array | None] | None = None,
    title: str = "ilrm",
    numbers: Mapping[str, object] | None = None,
) -> None:
    """Write a page that shows Gaussians in any browser with WebGL 2. The file is written atomically.

    It opens at the first camera; links for the other cameras reload the page at their poses. View-dependent colour is
    left out (viser draws degree 0).

    Args:
        gaussians: N > 0 finite Gaussians.
        path: file to write.
        cameras: V input cameras, shown as frustums.
        thumbnails: V photos (H, W, 3) uint8 of any size; None for missing ones.
        title: of the page.
        numbers: names and values to show in a table.

    Raises:
        GaussiansError: no Gaussians, batched ones, or values that are not finite.
        OutputError: the file cannot be written.
    """
    check_drawable(gaussians)
    if thumbnails is not None and len(thumbnails) != (0 if cameras is None else len(cameras)):
        raise GaussiansError(f"{len(thumbnails)} thumbnails were given.", expected="one per camera")
    cameras = None if cameras is None else cameras.relative_to(gaussians.origin)
    gaussians = gaussians.local()  # browsers compute in single precision
    layout = arrange(gaussians, cameras)
    with serve() as server:
        show_layout(server, layout)
        server.scene.set_background_image(background_image(gaussians), format="png")
        show_splats(server, splat_arrays(gaussians))
        if cameras is not None:
            show_cameras(server, cameras, layout, thumbnails or [None] * len(cameras))
        page = server.scene.as_html()
    write_text(path, _dressed(page, layout if cameras is not None else None, thumbnails, title, numbers or {}))


def save_result_page(result: Result, path: Path | str) -> None:
    """``save_page`` of a result with its cameras, photos, title and numbers; warns if the splats are anti-aliased."""
    warn_if_antialiased(result.gaussians)
    save_page(result.gaussians, path, result.cameras, result.photos or None, result.title, result.numbers)


def warn_if_antialiased(gaussians: Gaussians) -> None:
    """Warn that browsers do not draw anti-aliased splats correctly."""
    if gaussians.antialiased:
        warn(
            "the splats are anti-aliased; browsers draw thin ones too opaque, the renderings of `ilrm view` and "
            "`ilrm render` are right"
        )


def _dressed(
    page: str,
    layout: ViewLayout | None,
    thumbnails: Sequence[Array | None] | None,
    title: str,
    numbers: Mapping[str, object],
) -> str:
    """viser's page with our title and a card in the corner."""
    name = html.escape(title)
    rows = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in numbers.items())
    strip = "" if layout is None else _strip(layout, thumbnails)
    more, script = ("", "") if layout is None else (_BUTTON, f"<script>{_HIDE}\n</script>")
    card = (
        f'<details id="ilrm-card" open><summary>{name}</summary><table>{rows}</table>{strip}'
        f"<p>Drag to rotate, drag with the right button to move, scroll to zoom.{more}</p></details>{script}"
    )
    page = patched_page(page, f"<title>{name}</title>{_STYLE}")
    body_end = page.rindex("</body>")
    return page[:body_end] + card + page[body_end:]


def _strip(layout: ViewLayout, thumbnails: Sequence[Array | None] | None) -> str:
    """A link per camera."""
    links = []
    for i, pose in enumerate(layout.poses):
        photo = thumbnails[i] if thumbnails else None
        picture = str(i + 1) if photo is None else f'<img alt="camera {i + 1}" src="{_data_url(photo)}">'
        links.append(f'<a href="?{html.escape(_query(pose, layout))}" title="camera {i + 1}">{picture}</a>')
    return f'<div id="ilrm-strip">{"".join(links)}</div>'


def _query(pose: Pose, layout: ViewLayout) -> str:
    """The URL parameters that make viser's client start at a pose."""
    vectors = {"Position": pose.position, "LookAt": pose.look_at, "Up": layout.up_at(pose)}
    query = {f"initialCamera{name}": ",".join(f"{x:.9g}" for x in vector) for name, vector in vectors.items()}
    return urlencode(query | {"initialCameraFov": f"{pose.fov:.9g}"}, safe=",")


def _data_url(photo: Array) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(thumbnail(photo, _STRIP_SIDE)).save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
