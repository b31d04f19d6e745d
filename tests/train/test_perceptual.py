"""LPIPS and the VGG-19 distance, compared with a plain computation, and the errors for files that do not fit.

The networks here are of full depth and small width, with random weights: the published ones are too large to ship.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.errors import ConfigError, WeightsError
from ilrm.train import perceptual
from ilrm.train.perceptual import LPIPS, PublishedFile, VGGDistance, VGGFeatures, load_heads, load_vgg, locate

WIDTHS = (4, 6, 8, 10, 10)
# torchvision's description of both networks: widths of convolutions, "M" for a pooling.
VGG16 = [4, 4, "M", 6, 6, "M", 8, 8, 8, "M", 10, 10, 10, "M", 10, 10, 10]
VGG19 = [4, 4, "M", 6, 6, "M", 8, 8, 8, 8, "M", 10, 10, 10, 10, "M", 10, 10, 10, 10]
TAPS_16 = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
TAPS_19 = (3, 8, 13, 22, 31)  # relu1_2 ... relu5_2


def vgg_file(layers: Sequence[int | str], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under torchvision's names, with a stand-in for the classifier."""
    g = torch.Generator().manual_seed(seed)
    tensors, index, channels = {"classifier.0.weight": torch.ones(2, 2)}, 0, 3
    for width in layers:
        if isinstance(width, str):
            index += 1
            continue
        deviation = (2 / (9 * channels)) ** 0.5
        tensors[f"features.{index}.weight"] = deviation * torch.randn(width, channels, 3, 3, generator=g)
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=g)
        channels, index = width, index + 2
    return tensors


def heads_file() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    return {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=g) for i, width in enumerate(WIDTHS)}


def plain_features(
    tensors: dict[str, Tensor], layers: Sequence[int | str], taps: Sequence[int], x: Tensor
) -> list[Tensor]:
    """One operation after the other, as torchvision numbers them."""
    found, index = [], 0
    for width in layers:
        if isinstance(width, str):
            x, index = F.max_pool2d(x, 2, 2), index + 1
            continue
        x = F.conv2d(x, tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"], padding=1).clamp_min(0)
        index += 2
        if index - 1 in taps:
            found.append(x)
    return found


def images(seed: int = 0, height: int = 33, width: int = 18) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 1.2 * torch.rand(2, height, width, 3, generator=g) - 0.1, torch.rand(2, height, width, 3, generator=g)


def plain_lpips(prediction: Tensor, truth: Tensor) -> Tensor:
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    tensors, heads, total = vgg_file(VGG16), heads_file(), torch.zeros(len(truth))
    both = [((2 * x - 1 - shift) / scale).permute(0, 3, 1, 2) for x in (prediction, truth)]
    pairs = zip(*(plain_features(tensors, VGG16, TAPS_16, x) for x in both), strict=True)
    for head, (a, b) in zip(heads.values(), pairs, strict=True):
        a, b = (x / ((x * x).sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        total = total + F.conv2d((a - b) ** 2, head).mean((2, 3))[:, 0]
    return total


def plain_vgg(prediction: Tensor, truth: Tensor) -> Tensor:
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    tensors = vgg_file(VGG19)
    both = [((x - mean) / deviation).permute(0, 3, 1, 2) for x in (prediction, truth)]
    pairs = zip(*(plain_features(tensors, VGG19, TAPS_19, x) for x in both), strict=True)
    total = (prediction - truth).abs().mean((1, 2, 3))
    for divisor, (a, b) in zip((2.6, 4.8, 3.7, 5.6, 0.15), pairs, strict=True):
        total = total + 0.226 * (a - b).abs().mean((1, 2, 3)) / divisor
    return total


@pytest.fixture
def lpips(tmp_path: Path) -> LPIPS:
    torch.save(vgg_file(VGG16), tmp_path / "vgg.pth")
    torch.save(heads_file(), tmp_path / "heads.pth")
    distance = LPIPS(WIDTHS)
    load_vgg(distance.vgg, tmp_path / "vgg.pth")
    load_heads(distance, tmp_path / "heads.pth")
    return distance


@pytest.fixture
def vgg(tmp_path: Path) -> VGGDistance:
    torch.save(vgg_file(VGG19), tmp_path / "vgg.pth")
    distance = VGGDistance(WIDTHS)
    load_vgg(distance.vgg, tmp_path / "vgg.pth")
    return distance


@pytest.mark.parametrize("name", ["lpips", "vgg"])
def test_values_and_gradients_are_those_of_a_plain_computation(name: str, request: pytest.FixtureRequest) -> None:
    distance, plain = request.getfixturevalue(name), {"lpips": plain_lpips, "vgg": plain_vgg}[name]
    prediction, truth = images()
    gradients, values = [], []
    for function in (distance, plain):
        x = prediction.clone().requires_grad_()
        values.append(function(x, truth))
        gradients.append(torch.autograd.grad((torch.tensor([1.0, 2.0]) * values[-1]).sum(), x)[0])
    assert values[0].shape == (2,)
    assert (values[1] > 0.01).all()
    torch.testing.assert_close(values[0], values[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("name", ["lpips", "vgg"])
def test_distance_is_zero_for_the_same_image_and_learns_nothing(name: str, request: pytest.FixtureRequest) -> None:
    distance = request.getfixturevalue(name)
    truth = images()[1]
    x = truth.clone().requires_grad_()
    value = distance(x, truth)
    assert torch.equal(value, torch.zeros(2))
    value.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not any(p.requires_grad for p in distance.parameters())


@pytest.mark.parametrize("name", ["lpips", "vgg"])
def test_half_precision_stays_close(name: str, request: pytest.FixtureRequest) -> None:
    distance = request.getfixturevalue(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = distance(*images())
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, distance(*images()), atol=0, rtol=0.05)


def test_gradient_of_a_dark_image_is_finite(lpips: LPIPS) -> None:
    """Where all features of a layer are zero there is no direction to normalise."""
    for layer in lpips.vgg.features.values():
        assert isinstance(layer, torch.nn.Conv2d)
        assert layer.bias is not None
        layer.bias.fill_(-100)
    x = torch.zeros(1, 16, 16, 3, requires_grad=True)
    lpips(x, torch.ones(1, 16, 16, 3)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_images_that_cannot_be_compared_are_refused(lpips: LPIPS) -> None:
    for prediction, truth in (images(height=15), (images()[0][:1], images()[1])):
        with pytest.raises(ConfigError, match="perceptual distance"):
            lpips(prediction, truth)


# --- files ----------------------------------------------------------------------------------------------------------


def test_full_size_networks_have_the_published_shapes() -> None:
    with torch.device("meta"):
        lpips, vgg = LPIPS(), VGGDistance()
    convolutions = {name: tuple(x.shape) for name, x in lpips.vgg.state_dict().items() if name.endswith("weight")}
    assert len(convolutions) == 13
    assert convolutions["features.28.weight"] == (512, 512, 3, 3)
    assert [len(head) for head in lpips.heads] == [64, 128, 256, 512, 512]
    assert "features.30.weight" in vgg.vgg.state_dict()  # conv5_2, the last one needed
    assert "features.32.weight" not in vgg.vgg.state_dict()


def damaged(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    first = next(name for name in tensors if name.startswith(("features", "lin")))
    match kind:
        case "missing":
            del tensors[first]
        case "shape":
            tensors[first] = tensors[first][:, :1]
        case "unknown":
            tensors["head.weight"] = torch.ones(1)
        case "nan":
            tensors[first] = tensors[first] * float("nan")
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [("missing", "missing instead of"), ("shape", "instead of"), ("unknown", "head.weight"), ("nan", "not finite")],
)
@pytest.mark.parametrize("which", ["vgg", "heads"])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, kind: str, message: str, which: str) -> None:
    path = tmp_path / "file.pth"
    torch.save(damaged(kind, vgg_file(VGG16) if which == "vgg" else heads_file()), path)
    distance = LPIPS(WIDTHS)
    with pytest.raises(WeightsError, match=f"file.pth does not fit.*{message}"):
        load_vgg(distance.vgg, path) if which == "vgg" else load_heads(distance, path)


def test_the_other_vgg_is_refused(tmp_path: Path) -> None:
    torch.save(vgg_file(VGG19), tmp_path / "vgg19.pth")
    with pytest.raises(WeightsError, match="does not fit"):
        load_vgg(LPIPS(WIDTHS).vgg, tmp_path / "vgg19.pth")


def test_negative_heads_are_refused(tmp_path: Path) -> None:
    torch.save({name: -x for name, x in heads_file().items()}, tmp_path / "heads.pth")
    with pytest.raises(WeightsError, match="negative"):
        load_heads(LPIPS(WIDTHS), tmp_path / "heads.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_half_a_file_is_refused(tmp_path: Path, legacy: bool) -> None:
    whole = io.BytesIO()
    torch.save(vgg_file(VGG16), whole, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "vgg.pth").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(WeightsError, match=r"vgg\.pth"):
        load_vgg(VGGFeatures((2, 2, 3, 3, 3), (2, 2, 3, 3, 3), WIDTHS), tmp_path / "vgg.pth")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"), raising=False)
    monkeypatch.delenv(perceptual.FOLDER_VARIABLE, raising=False)
    assert torch.hub.get_dir() == str(tmp_path / "hub")
    return tmp_path / "hub" / "checkpoints"


def published(content: bytes) -> PublishedFile:
    return PublishedFile("some.pth", "https://example.org/some.pth", hashlib.sha256(content).hexdigest()[:8])


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    asked = []

    @contextmanager
    def answer(url: str, timeout: float) -> Iterator[io.BytesIO]:
        asked.append(url)
        yield io.BytesIO(content)

    monkeypatch.setattr(perceptual.urllib.request, "urlopen", answer)
    return asked


def test_files_are_downloaded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, b"weights")
    file = published(b"weights")
    assert locate(file) == locate(file) == cache / "some.pth"
    assert (cache / "some.pth").read_bytes() == b"weights"
    assert asked == [file.url]


def test_a_download_that_was_cut_or_changed_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b"weig")
    with pytest.raises(WeightsError, match=r"is not some\.pth"):
        locate(published(b"weights"))
    assert not cache.exists()


def test_without_connection_the_error_says_what_goes_where(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(perceptual.urllib.request, "urlopen", refuse)
    with pytest.raises(WeightsError) as caught:
        perceptual.load("lpips")
    for part in ("vgg16-397923af.pth", "download.pytorch.org", "no route", str(cache), perceptual.FOLDER_VARIABLE):
        assert part in str(caught.value)


def test_files_may_be_placed_in_a_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(perceptual.FOLDER_VARIABLE, str(tmp_path / "placed"))
    with pytest.raises(WeightsError, match=r"holds no vgg19-dcbb9e9d\.pth"):
        perceptual.load("vgg")
    monkeypatch.setattr(perceptual, "VGG_WIDTHS", WIDTHS)
    (tmp_path / "placed").mkdir()
    torch.save(vgg_file(VGG19), tmp_path / "placed" / "vgg19-dcbb9e9d.pth")
    with pytest.raises(WeightsError, match="does not fit"):  # these small tensors are not the published ones
        perceptual.load("vgg")
