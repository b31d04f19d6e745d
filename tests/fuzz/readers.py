"""Every reader of the package, each with a small valid input and what a command does with it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from plyfile import PlyData

from ilrm.datasets.indices import read_evaluation_index
from ilrm.model import ILRM, FootprintDecoder, ILRMConfig
from ilrm.model.config import MatchingConfig
from ilrm.model.weights import load_weights, official, save_weights
from ilrm.pictures.camera_path import load_path
from ilrm.results.result import load_result
from ilrm.scenes import load_scene
from ilrm.scenes.readers.points import read_points
from ilrm.splats import load_gaussians, save_gaussians
from ilrm.splats.cameras import load_cameras, save_cameras
from ilrm.train.checkpoint import Checkpoint, Progress, check_same_run, read_checkpoint, write_checkpoint
from ilrm.train.presets import preset
from ilrm.train.serialise import from_json, to_dict, to_json
from tests.conftest import make_cameras, make_gaussians
from tests.fuzz.mutations import BINARY, JSON, TEXT
from tests.fuzz.reader import Reader
from tests.scenes.files import smooth, transforms, write_scene, write_transforms
from tests.scenes.test_chunks import write_chunks
from tests.scenes.test_colmap import write_model

VIEWS, WIDTH, HEIGHT = 3, 32, 24


# --- splats, cameras and results ------------------------------------------------------------------------------------


def _splats(name: str, degree: int = 1) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        save_gaussians(make_gaussians(40, degree), folder / name)
        return [folder / name]

    return make


def _ply_in_words(folder: Path) -> list[Path]:
    save_gaussians(make_gaussians(40, 1), folder / "binary.ply")
    vertices = PlyData.read(folder / "binary.ply")["vertex"]
    (folder / "binary.ply").unlink()
    PlyData([vertices], text=True).write(folder / "x.ply")
    return [folder / "x.ply"]


def _glb_json(data: bytes) -> bytes:
    return data[20 : 20 + struct.unpack_from("<I", data, 12)[0]]


def _with_glb_json(data: bytes, content: bytes) -> bytes:
    rest = data[20 + struct.unpack_from("<I", data, 12)[0] :]
    content += b" " * (-len(content) % 4)
    head = b"glTF" + struct.pack("<II", 2, 20 + len(content) + len(rest))
    return head + struct.pack("<I", len(content)) + b"JSON" + content + rest


def _camera_path(folder: Path) -> list[Path]:
    frames = [{"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 50 + i, "aspect": 1} for i in range(3)]
    content = {"camera_type": "perspective", "render_width": 64, "render_height": 48, "fps": 24, "seconds": 1}
    (folder / "path.json").write_text(json.dumps({**content, "camera_path": frames}))
    return [folder / "path.json"]


def _cameras(folder: Path) -> list[Path]:
    names = [f"{view}.png" for view in range(VIEWS)]
    save_cameras(make_cameras(VIEWS, WIDTH, HEIGHT), names, folder / "cameras.json")
    return [folder / "cameras.json"]


def _cameras_of_inria(folder: Path) -> list[Path]:
    cameras = make_cameras(VIEWS, WIDTH, HEIGHT).c2w.double()
    views = [
        {"id": view, "img_name": f"{view}", "width": WIDTH, "height": HEIGHT, "fx": 30.0, "fy": 31.5}
        | {"position": cameras[view, :3, 3].tolist(), "rotation": cameras[view, :3, :3].tolist()}
        for view in range(VIEWS)
    ]
    (folder / "cameras.json").write_text(json.dumps(views))
    return [folder / "cameras.json"]


def _result(folder: Path) -> None:
    save_gaussians(make_gaussians(10), folder / "scene.ply")
    _cameras(folder)
    (folder / "inputs").mkdir()
    for view in range(VIEWS):
        Image.fromarray(smooth(WIDTH, HEIGHT, view)).save(folder / "inputs" / f"{view}.jpg")
    metrics = {"psnr": 20.5, "ssim": 0.8, "weights": "ilrm-small", "refine_steps_done": 100, "inputs": ["a", "b"]}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "views": {"a": {"psnr": 20.0, "ssim": 0.5}}}))


def _result_file(name: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        _result(folder)
        return [folder / name]

    return make


def _read_result(folder: Path, _: Path) -> object:
    return str(load_result(folder).numbers)


# --- scenes ---------------------------------------------------------------------------------------------------------


def _read_scene(folder: Path, _: Path) -> object:
    return load_scene(folder, max_side=64).images[:]


def _transforms(folder: Path) -> list[Path]:
    write_scene(folder / "scene", VIEWS, WIDTH, HEIGHT)
    shutil.move(folder / "scene" / "images", folder / "images")
    cameras, files = make_cameras(VIEWS, WIDTH, HEIGHT), [f"images/{view}.png" for view in range(VIEWS)]
    write_transforms(folder, transforms(cameras, files, camera_model="OPENCV", k1=0.01, k2=0.0, p1=0.0, p2=0.0))
    shutil.rmtree(folder / "scene")
    return [folder / "transforms.json"]


def _opencv(folder: Path) -> list[Path]:
    _transforms(folder)
    (folder / "transforms.json").unlink()
    save_cameras(
        make_cameras(VIEWS, WIDTH, HEIGHT),
        [f"images/{view}.png" for view in range(VIEWS)],
        folder / "opencv_cameras.json",
    )
    return [folder / "opencv_cameras.json"]


def _colmap(text: bool) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        write_model(folder, "OPENCV", text=text)
        suffix = ".txt" if text else ".bin"
        names = [f"{name}{suffix}" for name in ("cameras", "images", "points3D")]
        return sorted(path for path in folder.rglob(f"*{suffix}") if path.name in names)

    return make


def _chunks(folder: Path) -> list[Path]:
    write_chunks(folder)
    return [folder / "000001.torch"]


def _read_chunk(folder: Path, _: Path) -> object:
    return load_scene(folder, key="ccc").images[:]


def _outline_name(archive: zipfile.ZipFile) -> str:
    return next(name for name in archive.namelist() if name.endswith("/data.pkl"))


def _outline(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(_outline_name(archive))


def _with_outline(data: bytes, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(stream, "w") as written:
        for name in archive.namelist():
            written.writestr(name, content if name == _outline_name(archive) else archive.read(name))
    return stream.getvalue()


def _index(folder: Path) -> list[Path]:
    write_chunks(folder)
    return [folder / "index.json"]


def _read_index(folder: Path, _: Path) -> object:
    return load_scene(folder).images[:]


def _evaluation_index(folder: Path) -> list[Path]:
    entries = {"a": {"context": [0, 5], "target": [1, 2, 3]}, "b": None, "c": {"context": [2, 9], "target": [4]}}
    (folder / "index.json").write_text(json.dumps(entries))
    return [folder / "index.json"]


def _points(folder: Path) -> list[Path]:
    _transforms(folder)
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 20\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += "".join(f"property uchar {colour}\n" for colour in ("red", "green", "blue")) + "end_header\n"
    rows = b"".join(struct.pack("<fffBBB", i, 1, 2, 3, 4, 5) for i in range(20))
    (folder / "points.ply").write_bytes(header.encode() + rows)
    content = json.loads((folder / "transforms.json").read_text())
    write_transforms(folder, {**content, "ply_file_path": "points.ply"})
    return [folder / "points.ply"]


def _read_points(folder: Path, file: Path) -> object:
    load_scene(folder)
    return read_points(file)


def _depth(folder: Path) -> list[Path]:
    write_scene(folder / "scene", VIEWS, WIDTH, HEIGHT)
    for name in ("images", "transforms.json"):
        shutil.move(folder / "scene" / name, folder / name)
    content = json.loads((folder / "transforms.json").read_text())
    for view, frame in enumerate(content["frames"]):
        np.save(folder / f"{view}.npy", np.full((HEIGHT, WIDTH), 1500 + view, np.uint16))
        frame["depth_file_path"] = f"{view}.npy"
    write_transforms(folder, content)
    return [folder / "1.npy"]


def _read_depth(folder: Path, _: Path) -> object:
    return load_scene(folder).depth


def _photo(suffix: str, mode: str = "RGB") -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        _transforms(folder)
        content = json.loads((folder / "transforms.json").read_text())
        photo = Image.fromarray(smooth(WIDTH, HEIGHT, 1)).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 1
        photo.save(folder / f"photo.{suffix}", **({} if suffix == "bmp" else {"exif": exif}))
        content["frames"][1]["file_path"] = f"photo.{suffix}"
        write_transforms(folder, content)
        return [folder / f"photo.{suffix}"]

    return make


# --- weights and training -------------------------------------------------------------------------------------------

_TINY = ILRMConfig(
    width=32,
    head_width=16,
    layers=2,
    patch_size=4,
    image_channels=("rgb", "origin", "direction", "moment", "match"),
    decoder=FootprintDecoder(),
    matching=MatchingConfig(planes=8, sources=2, window=3),
)


def _weights_config(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    save_weights(ILRM(_TINY), folder / "w")
    return [folder / "w" / "config.json"]


def _safetensors(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    save_weights(ILRM(_TINY), folder / "w.safetensors")
    return [folder / "w.safetensors"]


def _safetensors_head(data: bytes) -> bytes:
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def _with_safetensors_head(data: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content + data[8 + int.from_bytes(data[:8], "little") :]


def _released(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    config = ILRMConfig(
        width=32,
        head_width=16,
        layers=2,
        patch_size=8,
        viewpoint_factor=1,
        uplift=1,
        viewpoint_channels=("moment", "direction"),
        image_channels=("rgb", "moment", "direction"),
        normalisation="raw",
        decoder=ILRMConfig.released_two_view().decoder,
    )
    state = ILRM(config).state_dict()
    tensors = {theirs: state[ours] for theirs, ours in official.name_map("main", config.layers).items()}
    torch.save({"state_dict": tensors, "epoch": 3, "loops": {"a": [1, None, 2.5]}}, folder / "w.ckpt")
    return [folder / "w.ckpt"]


def _checkpoint(folder: Path) -> list[Path]:
    tensors = {"network.a": torch.ones(4), "optimiser.exp_avg.a": torch.zeros(4), "average.a": torch.ones(4)}
    write_checkpoint(folder / "last", Checkpoint(Progress(step=3, seconds=2.5), tensors, 2, to_dict(preset("smoke"))))
    return [folder / "last"]


def _read_run(_: Path, file: Path) -> object:
    check_same_run(read_checkpoint(file).config, preset("smoke"), file)
    return None


def _state(data: bytes) -> bytes:
    return json.loads(_safetensors_head(data))["__metadata__"]["ilrm_checkpoint"].encode()


def _with_state(data: bytes, content: bytes) -> bytes:
    """With the right digest: the author of a malicious checkpoint would compute it as well."""
    head = json.loads(_safetensors_head(data))
    text = content.decode("utf-8", "replace")
    sha = hashlib.sha256(text.encode())
    import safetensors.torch

    for name, x in sorted(safetensors.torch.load(data).items()):
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        sha.update(x.reshape(-1).view(torch.uint8).numpy().data)
    head["__metadata__"] = {"ilrm_checkpoint": text, "sha256": sha.hexdigest()}
    return _with_safetensors_head(data, json.dumps(head).encode())


def _train_config(folder: Path) -> list[Path]:
    to_json(preset("smoke"), folder / "config.json")
    return [folder / "config.json"]


def _file(read: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda _, file: read(file)


READERS: dict[str, Reader] = {
    "ply": Reader(_splats("x.ply"), _file(load_gaussians), TEXT),
    "ascii ply": Reader(_ply_in_words, _file(load_gaussians), TEXT),
    "compressed ply": Reader(_splats("x.compressed.ply"), _file(load_gaussians), TEXT),
    "splat": Reader(_splats("x.splat", 0), _file(load_gaussians), BINARY),
    "spz": Reader(_splats("x.spz"), _file(load_gaussians), BINARY),
    "spz payload": Reader(
        _splats("x.spz"), _file(load_gaussians), BINARY, gzip.decompress, lambda _, content: gzip.compress(content, 1)
    ),
    "glb": Reader(_splats("x.glb"), _file(load_gaussians), BINARY),
    "glb json": Reader(_splats("x.glb"), _file(load_gaussians), JSON, _glb_json, _with_glb_json),
    "camera path": Reader(_camera_path, _file(load_path), JSON),
    "cameras.json": Reader(_cameras, _file(load_cameras), JSON),
    "cameras.json of INRIA": Reader(_cameras_of_inria, _file(load_cameras), JSON),
    "transforms.json": Reader(_transforms, _read_scene, JSON),
    "opencv_cameras.json": Reader(_opencv, _read_scene, JSON),
    "COLMAP binary": Reader(_colmap(text=False), _read_scene, BINARY),
    "COLMAP text": Reader(_colmap(text=True), _read_scene, TEXT),
    "chunk": Reader(_chunks, _read_chunk, BINARY),
    "chunk outline": Reader(_chunks, _read_chunk, BINARY, _outline, _with_outline),
    "chunk index": Reader(_index, _read_index, JSON),
    "evaluation index": Reader(_evaluation_index, _file(read_evaluation_index), JSON),
    "points.ply": Reader(_points, _read_points, TEXT),
    "depth .npy": Reader(_depth, _read_depth, TEXT),
    "metrics.json": Reader(_result_file("metrics.json"), _read_result, JSON),
    "cameras of a result": Reader(_result_file("cameras.json"), _read_result, JSON),
    "photo of a result": Reader(_result_file("inputs/1.jpg"), _read_result, BINARY),
    "weights config": Reader(_weights_config, lambda folder, _: load_weights(folder / "w"), JSON),
    "weights": Reader(_safetensors, _file(load_weights), BINARY),
    "weights header": Reader(_safetensors, _file(load_weights), JSON, _safetensors_head, _with_safetensors_head),
    "released checkpoint": Reader(_released, _file(load_weights), BINARY),
    "released outline": Reader(_released, _file(load_weights), BINARY, _outline, _with_outline),
    "png": Reader(_photo("png", "RGBA"), _read_scene, BINARY),
    "jpg": Reader(_photo("jpg"), _read_scene, BINARY),
    "webp": Reader(_photo("webp"), _read_scene, BINARY),
    "tiff": Reader(_photo("tiff"), _read_scene, BINARY),
    "bmp": Reader(_photo("bmp"), _read_scene, BINARY),
    "training checkpoint": Reader(_checkpoint, _read_run, BINARY),
    "training state": Reader(_checkpoint, _read_run, JSON, _state, _with_state),
    "training config": Reader(_train_config, _file(from_json), JSON),
}
