from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ilrm.core.errors import SceneError
from ilrm.datasets.check_set import SetReport, check_set, is_set
from ilrm.datasets.make_set import make_set
from ilrm.datasets.procedural import ProceduralConfig
from tests.scenes.files import write_scene, write_transforms

CONFIG = ProceduralConfig(views=2, width=16, height=16, points=4, objects=(0, 1), shadows=False)
NAMES = [f"scene_{seed:06d}" for seed in range(5)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scenes in three chunks."""
    root = tmp_path_factory.mktemp("made")
    make_set(root, range(5), CONFIG, "chunks", jobs=1, chunk_bytes=3000)
    assert len(list((root / "train").glob("*.torch"))) == 3
    return root


@pytest.fixture
def stage(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made" / "train"


def check(path: Path) -> SetReport:
    return check_set(path, jobs=1)


def messages(report: SetReport, level: str = "error") -> str:
    """Of the set as a whole."""
    return "\n".join(finding.message for finding in report.findings if finding.level == level)


def broken(report: SetReport) -> dict[str, str]:
    return {scene.name: scene.error for scene in report.scenes if scene.error}


def edit_index(stage: Path, **changes: str | None) -> None:
    index = json.loads((stage / "index.json").read_text()) | changes
    (stage / "index.json").write_text(json.dumps({key: chunk for key, chunk in index.items() if chunk}))


def test_good_chunks(made: Path) -> None:
    for path in (made, made / "train", made / "train" / "index.json"):
        seen: list[tuple[str, int]] = []
        report = check_set(path, jobs=1, on_done=lambda name, total, seen=seen: seen.append((name, total)))
        assert report.usable
        assert report.findings == ()
        assert [scene.name for scene in report.scenes] == NAMES
        assert all((scene.views, scene.size) == (2, (16, 16)) for scene in report.scenes)
        assert all(scene.fov and 44 < scene.fov[0] <= scene.fov[1] < 71 for scene in report.scenes)
        assert seen == [(f"00000{number}.torch", 3) for number in range(3)]


def test_one_chunk_file(made: Path) -> None:
    report = check(made / "train" / "000000.torch")
    assert report.usable
    assert 0 < len(report.scenes) < 5


def test_an_index_that_names_a_missing_chunk(stage: Path) -> None:
    edit_index(stage, lost="000007.torch")
    report = check(stage)
    assert not report.usable
    assert "names chunks that do not exist: 000007.torch" in messages(report)
    assert list(broken(report)) == ["lost"]
    assert len(report.scenes) == 6


def test_an_index_with_a_key_that_its_chunk_lacks(stage: Path) -> None:
    edit_index(stage, **{NAMES[0]: "000002.torch"})
    report = check(stage)
    assert "000002.torch, which does not contain it" in broken(report)[NAMES[0]]
    assert not report.usable


def test_an_index_that_leaves_scenes_out(stage: Path) -> None:
    edit_index(stage, **{NAMES[1]: None})
    report = check(stage)
    assert f"leaves out scenes of its chunks: {NAMES[1]}" in messages(report, "warning")
    assert report.usable
    (stage / "index.json").unlink()
    assert "has no index.json" in messages(check(stage), "warning")


@pytest.mark.parametrize("content", ["{}", "[1]", '{"a": 3}', '{"a": "00'])
def test_an_index_that_is_none(stage: Path, content: str) -> None:
    (stage / "index.json").write_text(content)
    report = check(stage)
    assert "index.json is n" in messages(report), "no index, or not valid JSON"
    assert len(report.scenes) == 5, "the scenes are looked at nevertheless"


def test_an_index_that_repeats_a_key(stage: Path) -> None:
    text = (stage / "index.json").read_text().rstrip().removesuffix("}")
    (stage / "index.json").write_text(f'{text}, "{NAMES[0]}": "000000.torch"}}')
    assert f"lists keys more than once: {NAMES[0]}" in messages(check(stage))


def test_keys_in_several_chunks_and_twice_in_one(stage: Path) -> None:
    first = torch.load(stage / "000000.torch", weights_only=True)
    torch.save([*first, first[0]], stage / "000003.torch")
    report = check(stage)
    assert f"the key {NAMES[0]} occurs in several chunks: 000000.torch, 000003.torch" in messages(report)
    assert "more than once" in broken(report)[NAMES[0]]


def test_a_truncated_chunk_costs_its_scenes_only(stage: Path) -> None:
    data = (stage / "000001.torch").read_bytes()
    (stage / "000001.torch").write_bytes(data[: len(data) // 2])
    report = check(stage)
    assert "000001.torch cannot be read as a chunk" in messages(report)
    index = json.loads((stage / "index.json").read_text())
    assert set(broken(report)) == {key for key in NAMES if index[key] == "000001.torch"}
    assert all("which cannot be read" in error for error in broken(report).values())


def test_what_is_wrong_inside_a_chunk(stage: Path) -> None:
    examples = torch.load(stage / "000000.torch", weights_only=True)
    examples[0]["images"][1] = examples[0]["images"][1][:100].clone()
    examples[1]["cameras"][0, 6] = float("nan")
    torch.save(examples, stage / "000000.torch")
    report = check(stage)
    assert set(broken(report)) == set(NAMES[:2])
    assert "image 1 of scene scene_000000" in broken(report)[NAMES[0]]
    assert "NaN" in broken(report)[NAMES[1]]


def write_set(folder: Path) -> None:
    """Scenes a (good), b (an odd field of view), c (an undecodable photo), d (without cameras)."""
    for name in "abcd":
        _, data = write_scene(folder / name)
        if name == "b":
            data["fl_x"] = 5.0
            write_transforms(folder / name, data)
    photo = folder / "c" / "images" / "1.png"
    photo.write_bytes(photo.read_bytes()[:-200])
    (folder / "d" / "transforms.json").unlink()


def test_a_folder_of_scenes(tmp_path: Path) -> None:
    write_set(tmp_path)
    report = check(tmp_path)
    assert [scene.name for scene in report.scenes] == ["a", "b", "c", "d"]
    assert set(broken(report)) == {"c", "d"}
    assert "1.png cannot be decoded" in broken(report)["c"]
    assert "no camera poses" in broken(report)["d"]
    odd = [finding.message for finding in report.scenes[1].findings if finding.level == "warning"]
    assert any("field of view" in message for message in odd)


def test_a_list_of_scenes(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "list.txt").write_text("a\nb/transforms.json\nnowhere\na\n")
    report = check(tmp_path / "list.txt")
    assert set(broken(report)) == {"nowhere"}
    assert "does not exist" in broken(report)["nowhere"]
    assert "listed more than once" in messages(report, "warning")


@pytest.mark.slow
def test_jobs_do_not_matter(stage: Path, tmp_path: Path) -> None:
    (stage / "000001.torch").write_bytes(b"")
    edit_index(stage, lost="000007.torch")
    assert check_set(stage, jobs=2) == check(stage)


def test_what_is_a_set(made: Path, tmp_path: Path) -> None:
    write_set(tmp_path)
    assert is_set(made)
    assert is_set(made / "train")
    assert is_set(made / "train" / "000000.torch")
    assert is_set(tmp_path)
    assert not is_set(tmp_path / "a")
    assert not is_set(tmp_path / "a" / "transforms.json")
    assert not is_set(tmp_path / "a" / "images")
    assert not is_set(tmp_path / "nowhere")
    (tmp_path / "empty.txt").write_text("")
    assert is_set(tmp_path / "empty.txt")
    with pytest.raises(SceneError, match="lists no scenes"):
        check(tmp_path / "empty.txt")
