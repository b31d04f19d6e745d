"""Saving, loading, converting and refusing weights."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ilrm.core.errors import OutputError, WeightsError
from ilrm.model import ILRM, ComputeConfig, FootprintDecoder, ILRMConfig
from ilrm.model.weights import convert, describe, from_pretrained, list_weights, load_weights, official, save_weights
from tests.conftest import shared_path

TINY = ILRMConfig(width=32, head_width=16, layers=2, patch_size=4, decoder=FootprintDecoder())


@pytest.fixture
def model() -> ILRM:
    torch.manual_seed(0)
    return ILRM(TINY)


def same(a: ILRM, b: ILRM) -> bool:
    return a.config == b.config and all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_round_trip(model: ILRM, tmp_path: Path, name: str) -> None:
    save_weights(model, tmp_path / name)
    assert same(load_weights(tmp_path / name), model)
    assert same(ILRM.from_pretrained(tmp_path / name), model)
    assert not load_weights(tmp_path / name).training
    model.save_pretrained(tmp_path / "again")
    assert same(from_pretrained(str(tmp_path / "again")), model)


def test_bf16_file_gives_fp32_parameters(model: ILRM, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "w", dtype=torch.bfloat16)
    loaded = load_weights(tmp_path / "w")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b.bfloat16().float(), atol=0, rtol=0)
    half = (tmp_path / "w" / "model.safetensors").stat().st_size
    save_weights(model, tmp_path / "full.safetensors")
    assert half < 0.6 * (tmp_path / "full.safetensors").stat().st_size


@pytest.mark.parametrize("layout", ["main", "wide"])
def test_the_map_covers_a_full_network_both_ways(layout: official.ReleasedLayout) -> None:
    config = ILRMConfig.released_two_view() if layout == "main" else ILRMConfig.released_wide()
    with torch.device("meta"):
        ours = set(ILRM(config).state_dict())
    names = official.name_map(layout, config.layers)
    assert len(names) == len(set(names.values())) == 222
    assert set(names.values()) == ours


@pytest.mark.parametrize("file", ["main_tiny.ckpt", "wide_tiny.pt"])
def test_released_files_convert_to_ours(file: str, tmp_path: Path) -> None:
    source = shared_path(f"golden/{file}")
    info = convert(source, tmp_path / "converted")
    assert info.layout == "ilrm"
    assert describe(source).layout == "released"
    assert info.config.width == 64
    assert info.config.layers == 2
    assert same(load_weights(source), load_weights(tmp_path / "converted"))


def test_a_bare_state_dict_of_the_released_layout_loads(tmp_path: Path) -> None:
    content = torch.load(shared_path("golden/main_tiny.ckpt"), weights_only=True)
    torch.save(content["state_dict"], tmp_path / "bare.ckpt")
    assert same(load_weights(tmp_path / "bare.ckpt"), load_weights(shared_path("golden/main_tiny.ckpt")))


def test_released_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    content = torch.load(shared_path("golden/wide_tiny.pt"), weights_only=True)["model"]
    gone = dict(content)
    del gone["processor.blocks.3.mlp.fc2.weight"]
    torch.save({"model": gone}, tmp_path / "gone.pt")
    with pytest.raises(WeightsError, match=r"missing: layers\.1\.self_mlp\.fc2\.weight"):
        load_weights(tmp_path / "gone.pt")
    torch.save({"model": content | {"ema.decay": torch.ones(1)}}, tmp_path / "more.pt")
    with pytest.raises(WeightsError, match=r"unexpected: ema\.decay"):
        load_weights(tmp_path / "more.pt")
    torch.save({"model": content | {"image_tokenizer.2.weight": torch.ones(3)}}, tmp_path / "shape.pt")
    with pytest.raises(WeightsError, match=r"image_tokens\.norm\.weight is \(3,\) instead of \(64,\)"):
        load_weights(tmp_path / "shape.pt")
    torch.save({"model": content | {"image_tokenizer.2.weight": torch.full((64,), torch.nan)}}, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match="not finite"):
        load_weights(tmp_path / "nan.pt")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path("weights-were-executed").touch, ())  # type: ignore[return-value]


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": Bomb()}}, "bomb.pt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"model": Bomb()}))
    for name in ("bomb.pt", "plain.ckpt"):
        with pytest.raises(WeightsError, match="refused") as raised:
            load_weights(name)
        assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "weights-were-executed").exists()


def test_a_zip_that_promises_to_inflate_without_end_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "big.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(WeightsError, match="inflate"):
        load_weights(tmp_path / "big.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_files(model: ILRM, tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"model": model.state_dict()}, path)
    else:
        save_weights(model, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else len(data) * keep)])
    with pytest.raises(WeightsError, match=path.name):
        load_weights(path)


def test_a_header_that_declares_more_than_the_file_holds(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "huge.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="huge"):
        load_weights(tmp_path / "huge.safetensors")


def test_safetensors_without_a_config_or_with_a_foreign_one(model: ILRM, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "w")
    save_file(load_file(tmp_path / "w" / "model.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="says nothing"):
        load_weights(tmp_path / "bare.safetensors")
    (tmp_path / "w" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="no network config"):
        load_weights(tmp_path / "w")
    (tmp_path / "w" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json is not valid JSON"):
        load_weights(tmp_path / "w")
    (tmp_path / "w" / "config.json").write_text(json.dumps(replace(TINY, layers=3).to_dict()))
    with pytest.raises(WeightsError, match=r"missing: layers\.2"):
        load_weights(tmp_path / "w")
    shutil.rmtree(tmp_path / "w")
    (tmp_path / "w").mkdir()
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 30_000},
        {"layers": 900},
        {"layers": 0},
        {"width": 10**12},
        {"head_width": 0},
        {"patch_size": 0},
        {"mlp_ratio": float("nan")},
        {"viewpoint_channels": ["x"]},
        {"viewpoint_channels": []},
        {"viewpoint_channels": ["origin"] * 1000},
        {"image_channels": {"rgb": 1}},
        {"decoder": None},
        {"decoder": {"kind": ["footprint"]}},
        {"decoder": {"kind": "footprint", "near": float("nan")}},
        {"matching": {"planes": 10**9}},
        {"pixel_head": 1e300},
        {"sh_degree": 2.0},
    ],
    ids=str,
)
def test_impossible_configs_are_refused_before_a_module_is_made(
    model: ILRM, tmp_path: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(model, tmp_path / "w")
    values = {**TINY.to_dict(), **change}
    monkeypatch.setattr("ilrm.model.weights.store.ILRM", None)
    (tmp_path / "w" / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError):
        load_weights(tmp_path / "w")
    save_file(model.state_dict(), tmp_path / "f.safetensors", metadata={"ilrm_config": json.dumps(values)})
    with pytest.raises(WeightsError):
        load_weights(tmp_path / "f.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "null", "[]", '"text"', "\u0000", "1" * 5000])
def test_configs_that_are_none(model: ILRM, tmp_path: Path, text: str) -> None:
    save_weights(model, tmp_path / "w")
    (tmp_path / "w" / "config.json").write_text(text)
    save_file(model.state_dict(), tmp_path / "f.safetensors", metadata={"ilrm_config": text})
    for path in (tmp_path / "w", tmp_path / "f.safetensors"):
        with pytest.raises(WeightsError):
            load_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.ones(2)},
        {("a", 1): torch.ones(2)},
        {"state_dict": {3: torch.ones(2)}},
        {"model": [torch.ones(2)]},
        {"model": {"a": torch.ones(2).to_sparse()}},
        {"model": {"a": torch.empty(2, device="meta")}},
        {"model": {"a": torch.ones(1).expand(10**10)}},
        {"model": {"viewpoint_token_decoder.1.weight": torch.ones(8, 0)}},
        {"model": {"a": {1, 2}, "b": 1j}},
        [],
        None,
    ],
    ids=lambda x: str(x)[:50],
)
def test_checkpoints_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt"):
        load_weights(tmp_path / "x.pt")


def test_released_sizes_that_fit_no_network(tmp_path: Path) -> None:
    content = torch.load(shared_path("golden/wide_tiny.pt"), weights_only=True)["model"]
    for name, x in (
        ("viewpoint_token_decoder.1.weight", torch.ones(8, 0)),
        ("processor.blocks.0.read_ff.fc1.weight", torch.tensor(1.0)),
        ("processor.blocks.x.read_ff.fc1.weight", torch.tensor(1.0)),
        ("processor.blocks.0.read_cross.q_norm.weight", torch.ones(0)),
        ("processor.blocks.0.read_cross.q.weight", torch.ones(64 * 70_000, 1)),
    ):
        torch.save({"model": content | {name: x}}, tmp_path / "x.pt")
        with pytest.raises(WeightsError, match=r"x\.pt"):
            load_weights(tmp_path / "x.pt")


def test_a_full_disk_leaves_the_earlier_weights(model: ILRM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(model, tmp_path / "w")
    before = {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()}
    written = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if len(data) > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    for folder in ("w", "new"):
        with pytest.raises(OutputError, match="no space left"):
            save_weights(ILRM(replace(TINY, layers=3)), tmp_path / folder)
    assert {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_loading_does_not_import_the_compiler(model: ILRM, tmp_path: Path) -> None:
    """It takes seconds to import, and torch does so for normal numbers on the meta device."""
    save_weights(model, tmp_path / "w")
    code = "import sys; from ilrm.model.weights import load_weights; load_weights(sys.argv[1]); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "w")], capture_output=True, text=True, check=True)
    assert "torch._dynamo" not in run.stdout.split()


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [entry.name for entry in list_weights()] == [
        "ilrm-small",
        "ilrm-re10k-2view",
        "ilrm-dl3dv-32view",
        "ilrm-dl3dv-16view",
    ]
    with pytest.raises(WeightsError, match="no weights 'ilrm-smal'"):
        from_pretrained("ilrm-smal")
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights("nowhere.safetensors")


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for source in ("ilrm-re10k-2view", "someone/something"):
        with pytest.raises(WeightsError, match="hub cannot be reached"):
            from_pretrained(source)


def test_a_hub_id_loads_what_the_hub_delivers(model: ILRM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "hub")
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / "hub" / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert same(ILRM.from_pretrained("someone/something"), model)
    assert asked == [("someone/something", "config.json"), ("someone/something", "model.safetensors")]


def test_how_a_network_is_computed_is_kept_beside_what_it_is(tmp_path: Path) -> None:
    """Networks that were trained with mini-batches are computed with them; the first files had this in the config."""
    config = replace(ILRMConfig(), width=32, head_width=16, layers=1)
    model = ILRM(config, ComputeConfig(mini_batch="quarter", checkpoint=True))
    save_weights(model, tmp_path / "w")
    back = load_weights(tmp_path / "w")
    assert back.config == config
    assert back.compute == ComputeConfig(mini_batch="quarter")
    values = json.loads((tmp_path / "w" / "config.json").read_text())
    assert values.pop("compute") == {"mini_batch": "quarter"}
    (tmp_path / "w" / "config.json").write_text(json.dumps({**values, "mini_batch": "half", "checkpoint": True}))
    assert load_weights(tmp_path / "w").compute == ComputeConfig(mini_batch="half")
    (tmp_path / "w" / "config.json").write_text(json.dumps({**values, "compute": {"mini_batch": "some"}}))
    with pytest.raises(WeightsError, match="mini_batch"):
        load_weights(tmp_path / "w")
    (tmp_path / "w" / "config.json").write_text(json.dumps({**values, "compute": [1]}))
    with pytest.raises(WeightsError):
        load_weights(tmp_path / "w")
