"""Perceptual distances on frozen VGG features: LPIPS (v0.1, VGG-16) and absolute differences of VGG-19 features.

The networks come as their authors publish them; see ``load`` for where the files are looked for.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilrm.core.errors import ConfigError, WeightsError
from ilrm.files import atomic_file, paths
from ilrm.model.weights.store import load_pickle_safely, named_tensors

FOLDER_VARIABLE = "ILRM_PERCEPTUAL_WEIGHTS"
VGG_WIDTHS = (64, 128, 256, 512, 512)
# Four poolings come before the last block.
_LEAST_SIDE = 16
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights: its name here, where it is published, and the first digits of its SHA-256."""

    name: str
    url: str
    sha256: str


_PYTORCH = "https://download.pytorch.org/models"
_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights"
VGG16_FILE = PublishedFile("vgg16-397923af.pth", f"{_PYTORCH}/vgg16-397923af.pth", "397923af")
VGG19_FILE = PublishedFile("vgg19-dcbb9e9d.pth", f"{_PYTORCH}/vgg19-dcbb9e9d.pth", "dcbb9e9d")
LPIPS_FILE = PublishedFile("lpips-v0.1-vgg.pth", f"{_LPIPS}/v0.1/vgg.pth", "a78928a0")


class VGGFeatures(nn.Module):
    """The convolutions of a VGG up to one tap in each of its five blocks, named as in torchvision.

    Args:
        convolutions: 3x3 convolutions of each block.
        taps: in each block, after which convolution (from 1, its ReLU included) the features are read.
        widths: channels of each block.
    """

    def __init__(self, convolutions: Sequence[int], taps: Sequence[int], widths: Sequence[int] = VGG_WIDTHS) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        self._blocks: list[list[tuple[str, bool]]] = []
        index, channels = 0, 3
        for block, (count, tap, width) in enumerate(zip(convolutions, taps, widths, strict=True)):
            last = block == len(widths) - 1
            names = []
            for i in range(1, (tap if last else count) + 1):
                name = str(index + 2 * (i - 1))  # torchvision counts the ReLUs between them
                self.features[name] = nn.Conv2d(channels, width, 3, padding=1)
                names.append((name, i == tap))
                channels = width
            self._blocks.append(names)
            index += 2 * count + 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (T, C, H / 2^i, W / 2^i) of each block i = 0 to 4 of normalised images (T, 3, H, W)."""
        found = []
        for i, block in enumerate(self._blocks):
            if i:
                x = F.max_pool2d(x, 2)
            for name, tapped in block:
                x = F.relu(self.features[name](x))
                if tapped:
                    found.append(x)
        return found


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, version 0.1 on VGG-16 (Zhang et al., CVPR 2018).

    At each of five layers both feature maps are scaled to unit length at every pixel; the squared differences are
    summed over channels with learned weights >= 0 and averaged over pixels; the layers are added up.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int] = VGG_WIDTHS) -> None:
        super().__init__()
        self.vgg = VGGFeatures((2, 2, 3, 3, 3), (2, 2, 3, 3, 3), widths)
        self.heads = nn.ParameterList(torch.ones(width) / width for width in widths)
        # Of images in [-1, 1]: close to, but not the same as, torchvision's mean and deviation.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Distances (T,) of images (T, H, W, 3) with values around [0, 1]; gradients flow to ``prediction`` alone.

        Raises:
            ConfigError: images with a side under 16 pixels, or of different shapes.
        """
        pairs = _both_features(self.vgg, 2 * prediction - 1, 2 * truth - 1, self.shift, self.scale)
        layers = [
            (head[:, None, None] * (_unit_length(a) - _unit_length(b)).square()).sum(1).mean((1, 2))
            for head, (a, b) in zip(self.heads, pairs, strict=True)
        ]
        return torch.stack(layers).sum(0)


class VGGDistance(nn.Module):
    """Absolute differences of VGG-19 features (Chen and Koltun, ICCV 2017), as GS-LRM and LVSM train with.

    Layers and weights are theirs: the pixels, then conv1_2 to conv5_2 after ReLU. Their weights are for a network
    that reads values of 0 to 255 without dividing by the deviation. Here it is torchvision's, trained anew on
    normalised images; its features are multiplied by the mean deviation, so that they are in units of image values.
    """

    LAYER_WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
    mean: Tensor
    deviation: Tensor

    def __init__(self, widths: Sequence[int] = VGG_WIDTHS) -> None:
        super().__init__()
        self.vgg = VGGFeatures((2, 2, 4, 4, 4), (2, 2, 2, 2, 2), widths)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_IMAGENET_STD)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Distances (T,) of images (T, H, W, 3) with values around [0, 1]; gradients flow to ``prediction`` alone.

        Raises:
            ConfigError: images with a side under 16 pixels, or of different shapes.
        """
        pairs = _both_features(self.vgg, prediction, truth, self.mean, self.deviation)
        differences = torch.stack([(a.float() - b.float()).abs().mean((1, 2, 3)) for a, b in pairs])
        weights = torch.tensor(self.LAYER_WEIGHTS).to(differences)
        pixels = (prediction - truth).abs().mean((1, 2, 3))
        return pixels + self.deviation.mean() * (weights @ differences)


PerceptualDistance = LPIPS | VGGDistance


def _both_features(
    vgg: VGGFeatures, prediction: Tensor, truth: Tensor, mean: Tensor, deviation: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Features of both stacks (T, H, W, 3), layer by layer."""
    if prediction.shape != truth.shape or truth.ndim != 4 or min(truth.shape[1:3]) < _LEAST_SIDE:
        raise ConfigError(
            f"A perceptual distance was asked of images {tuple(prediction.shape)} and {tuple(truth.shape)}.",
            expected=f"two stacks (T, H, W, 3) of one shape, with sides of at least {_LEAST_SIDE} pixels",
        )
    of_prediction = vgg((prediction.permute(0, 3, 1, 2) - mean) / deviation)
    with torch.no_grad():
        of_truth = vgg((truth.permute(0, 3, 1, 2) - mean) / deviation)
    return list(zip(of_prediction, of_truth, strict=True))


def _unit_length(x: Tensor) -> Tensor:
    """Features (T, C, H, W) with unit length over C, in fp32; all-zero pixels stay zero."""
    x = x.float()
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


# --- weights --------------------------------------------------------------------------------------------------------


def load(kind: Literal["lpips", "vgg"], device: torch.device | str = "cpu") -> PerceptualDistance:
    """The frozen distance with its published weights.

    Each file is looked for in the folder that the environment variable ``ILRM_PERCEPTUAL_WEIGHTS`` names, then in
    torch's hub cache (``$TORCH_HOME/hub/checkpoints``), then downloaded into that cache from where it is published.

    Raises:
        WeightsError: a file that is nowhere and cannot be downloaded, is damaged, or holds something else.
    """
    if kind == "lpips":
        distance = LPIPS()
        load_vgg(distance.vgg, locate(VGG16_FILE))
        load_heads(distance, locate(LPIPS_FILE))
    else:
        distance = VGGDistance()
        load_vgg(distance.vgg, locate(VGG19_FILE))
    return distance.to(device)


def load_vgg(vgg: VGGFeatures, path: Path) -> None:
    """Fill the convolutions from a file in torchvision's layout; its classifier and deeper layers are not needed."""
    tensors = _read(path)
    ours = vgg.state_dict()
    foreign = [name for name in tensors if not name.startswith(("features.", "classifier."))]
    _check(path, {name: tuple(x.shape) for name, x in ours.items()}, tensors, foreign)
    vgg.load_state_dict({name: tensors[name] for name in ours})


def load_heads(distance: LPIPS, path: Path) -> None:
    """Fill the learned weights of LPIPS from a file in its authors' layout."""
    tensors = _read(path)
    names = [f"lin{i}.model.1.weight" for i in range(len(distance.heads))]
    expected = {name: (1, len(head), 1, 1) for name, head in zip(names, distance.heads, strict=True)}
    _check(path, expected, tensors, [name for name in tensors if name not in expected])
    for name, head in zip(names, distance.heads, strict=True):
        if (tensors[name] < 0).any():
            raise WeightsError(f"{path} holds negative values in {name}.", expected="the weights of a distance, >= 0")
        head.copy_(tensors[name].flatten())


def _read(path: Path) -> dict[str, Tensor]:
    tensors = named_tensors(load_pickle_safely(path), path)
    try:
        return {name: x.read() for name, x in tensors.items()}
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from error


def _check(
    path: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], foreign: Sequence[str]
) -> None:
    wrong = [
        f"{name} is {tuple(tensors[name].shape) if name in tensors else 'missing'} instead of {shape}"
        for name, shape in expected.items()
        if name not in tensors or tuple(tensors[name].shape) != shape
    ]
    wrong += [f"{name} is unknown" for name in foreign]
    wrong += [f"{name} is not finite" for name in expected if name in tensors and not tensors[name].isfinite().all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"{path} does not fit: {'; '.join(wrong[:3])}{more}.", fix=f"delete {path} and try again")


def locate(file: PublishedFile) -> Path:
    """Where a published file lies on this machine; downloaded if it is nowhere. Raises WeightsError."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        placed = paths.expanded(folder) / file.name
        if not paths.is_file(placed):
            raise WeightsError(
                f"The folder of {FOLDER_VARIABLE} holds no {file.name}: {folder}.",
                expected=f"the file published at {file.url}, under that name",
                fix=f"put it there, or unset {FOLDER_VARIABLE} to have it downloaded",
            )
        return placed
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    return cached if paths.is_file(cached) else _download(file, cached)


def _download(file: PublishedFile, target: Path) -> Path:
    with atomic_file(target) as temporary:
        try:
            with urllib.request.urlopen(file.url, timeout=30) as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise WeightsError(
                f"{file.name} is not on this machine and could not be downloaded from {file.url}: {error}.",
                expected=f"a connection for the first use, or the file at {target}",
                fix=f"download it elsewhere, put it there or into a folder that {FOLDER_VARIABLE} names; "
                "or train without a perceptual loss (loss.perceptual=null)",
            ) from error
        digest = _sha256(temporary)
        if not digest.startswith(file.sha256):
            raise WeightsError(
                f"What {file.url} sent is not {file.name}: its SHA-256 starts with {digest[:8]}.",
                expected=file.sha256,
                fix="try again; if it stays so, do not use it",
            )
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
