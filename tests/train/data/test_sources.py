from __future__ import annotations

import json
import pickle
import zipfile

import pytest
import torch

from ilrm.core.errors import SceneError
from ilrm.files.torch_files import LazyTensor, load_lazily
from ilrm.scenes import load_scene
from ilrm.scenes.readers.chunks import open_chunk
from ilrm.train.config import Chunks, Folders, SceneList
from ilrm.train.data.sources import FiniteSource, ProceduralSource, open_source
from tests.scenes.files import assert_close, write_scene
from tests.scenes.test_chunks import example
from tests.train.data.sets import PROCEDURAL, write_chunk_set


def opened(config: Chunks | SceneList | Folders) -> FiniteSource:
    source = open_source(config)
    assert isinstance(source, FiniteSource)
    return source


def same_as_load_scene(source: FiniteSource, key: str, path, chunk_key: str | None = None) -> None:
    clip, scene = source.load(key), load_scene(path, key=chunk_key)
    assert_close(clip.c2w, scene.cameras.c2w, atol=1e-6, rtol=1e-6)
    size = torch.tensor([scene.cameras.width, scene.cameras.height], dtype=torch.float64)
    K = scene.cameras.K
    assert_close(clip.lenses, torch.cat([K[:, [0, 1], [0, 1]] / size, K[:, :2, 2] / size], 1), atol=1e-6, rtol=1e-6)
    assert [frame.name for frame in clip.frames([1, 0]).frames] == [scene.names[1], scene.names[0]]


def test_chunks(tmp_path):
    source = opened(Chunks(write_chunk_set(tmp_path)))
    assert source.keys == ("s0", "s1", "s2", "s3", "s4", "s5")
    for key in source.keys:
        same_as_load_scene(source, key, tmp_path, key)
    assert opened(Chunks(tmp_path / "000001.torch")).keys == ("s2", "s3")
    (tmp_path / "index.json").unlink()
    assert opened(Chunks(tmp_path)).keys == source.keys


def test_opening_chunks_reads_no_chunk(tmp_path):
    write_chunk_set(tmp_path)
    (tmp_path / "000001.torch").write_bytes(b"broken")
    source = opened(Chunks(tmp_path))
    source.load("s0")
    with pytest.raises(SceneError, match=r"000001\.torch cannot be read as a chunk"):
        source.load("s2")


def test_wrong_indices_are_refused_by_name(tmp_path):
    write_chunk_set(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "x": "000007.torch"}))
    with pytest.raises(SceneError, match=r"index\.json names chunks that do not exist: 000007\.torch"):
        open_source(Chunks(tmp_path))
    (tmp_path / "index.json").write_text(json.dumps({**index, "x": "000001.torch"}))
    with pytest.raises(SceneError, match=r"no scene 'x' in .*000001\.torch"):
        opened(Chunks(tmp_path)).load("x")
    for empty in ("{}", "[]", '{"a": 5}', "{"):
        (tmp_path / "index.json").write_text(empty)
        with pytest.raises(SceneError, match=r"index\.json"):
            open_source(Chunks(tmp_path))


def test_roots_of_data_sets_are_refused(tmp_path):
    write_chunk_set(tmp_path / "train")
    with pytest.raises(SceneError, match=r"root of a dataset(.|\n)*train"):
        open_source(Chunks(tmp_path))
    with pytest.raises(SceneError, match="holds chunks, not folders"):
        open_source(Folders(tmp_path / "train"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match="holds no chunks"):
        open_source(Chunks(tmp_path / "empty"))


def test_lists_and_folders(tmp_path):
    for name in ("b", "a"):
        write_scene(tmp_path / "scenes" / name)
    (tmp_path / "scenes" / ".cache").mkdir()
    (tmp_path / "list.txt").write_text("# ours\nscenes/b/transforms.json\n\nscenes/a\n")
    listed, folders = opened(SceneList(tmp_path / "list.txt")), opened(Folders(tmp_path / "scenes"))
    assert listed.keys == ("scenes/b/transforms.json", "scenes/a")
    assert folders.keys == ("a", "b")
    same_as_load_scene(listed, listed.keys[0], tmp_path / "scenes" / "b")
    same_as_load_scene(folders, "a", tmp_path / "scenes" / "a")
    one = opened(Folders(tmp_path / "scenes" / "a"))
    assert one.keys == ("a",)
    same_as_load_scene(one, "a", tmp_path / "scenes" / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no scenes"),
        (b"# nothing\n\n", "lists no scenes"),
        (b"here\nthere\nhere", "lists here more than once"),
        (b"here\nnowhere\n", "1 of the 2 scenes that .* do not exist: nowhere"),
        (b"\xff\xfe\xfa", "cannot be read as a list"),
    ],
)
def test_malformed_lists_are_refused(tmp_path, content, message):
    (tmp_path / "here").mkdir()
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(SceneError, match=message):
        open_source(SceneList(tmp_path / "list.txt"))


def test_missing_paths_are_refused(tmp_path):
    for config in (Chunks(tmp_path / "no"), SceneList(tmp_path / "no"), Folders(tmp_path / "no")):
        with pytest.raises(SceneError, match="no does not exist"):
            open_source(config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match="holds no scenes"):
        open_source(Folders(tmp_path))


def test_opened_sources_travel_to_other_processes(tmp_path):
    source = opened(Chunks(write_chunk_set(tmp_path)))
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.load("s1").c2w, source.load("s1").c2w)


def test_procedural_scenes_do_not_depend_on_their_neighbours():
    source = open_source(PROCEDURAL)
    assert isinstance(source, ProceduralSource)
    four, five = (source.describe(number, 2, (16, 24)) for number in (4, 5))
    alone, (_, among) = source.cast([five], 2, (16, 24)), source.cast([four, five], 2, (16, 24))
    assert torch.equal(alone[0].images[:], among.images[:])
    assert torch.equal(alone[0].cameras.c2w, among.cameras.c2w)
    assert among.images.shape == (2, 16, 24, 3)
    assert among.depth is not None
    assert (among.depth > 0).all()
    assert source.name(5) == f"procedural-{PROCEDURAL.first_seed + 5}"


# --- tensors that are read on demand --------------------------------------------------------------------------------


def test_lazy_tensors_equal_those_of_torch_load(tmp_path):
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    value = {
        "view": base[1:, ::2].T,
        "types": [torch.tensor([1, 0, 1]).to(d) for d in (torch.bool, torch.int16, torch.float16, torch.bfloat16)],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "plain": ["text", 1, None, (2.0, True)],
    }
    torch.save(value, tmp_path / "x.pt")
    lazy = load_lazily(tmp_path / "x.pt")
    assert lazy["plain"] == value["plain"]
    for ours, theirs in zip(
        [lazy["view"], *lazy["types"], lazy["empty"], lazy["scalar"]],
        [value["view"], *value["types"], value["empty"], value["scalar"]],
        strict=True,
    ):
        assert isinstance(ours, LazyTensor)
        assert torch.equal(ours.read(), theirs)
        assert ours.read().dtype == theirs.dtype


def test_photos_that_share_their_memory_are_read_too(tmp_path):
    value = example("a")
    joined = torch.cat(value["images"])
    value["images"] = list(joined.split([len(image) for image in value["images"]]))
    torch.save([value], tmp_path / "0.torch")
    scene = open_chunk(tmp_path / "0.torch").scene()
    assert all(torch.equal(a, b) for a, b in zip(scene.images, value["images"], strict=True))


def test_outlines_that_contradict_their_data_are_refused(tmp_path):
    torch.save([example("a")], tmp_path / "0.torch")
    with zipfile.ZipFile(tmp_path / "0.torch") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    shortened = next(name for name in entries if "/data/" in name)
    with zipfile.ZipFile(tmp_path / "0.torch", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:-1] if name == shortened else data)
    with pytest.raises(SceneError, match="its outline does not fit its data"):
        open_chunk(tmp_path / "0.torch")


def test_a_chunk_that_is_cut_while_in_use_is_an_error_of_its_photos(tmp_path):
    torch.save([example("a")], tmp_path / "0.torch")
    scene = open_chunk(tmp_path / "0.torch").scene()
    (tmp_path / "0.torch").write_bytes((tmp_path / "0.torch").read_bytes()[:200])
    with pytest.raises(SceneError, match="image 0 of scene a"):
        scene.source()
