"""Names of weights, where they come from, and how they are fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import torch

from ilrm.core.errors import WeightsError
from ilrm.files import check_apart, claim_file, note_written, paths
from ilrm.model.config import ILRMConfig
from ilrm.model.ilrm import ILRM
from ilrm.model.weights.store import CONFIG_FILE, WEIGHTS_FILE, load_weights, save_weights

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MANUAL = "download the file on a machine with a connection and give its path instead of the name"


@dataclass(frozen=True)
class NamedWeights:
    """Weights that have a name.

    Attributes:
        name: what the user types.
        where: "bundled" with the package, or the id of a repository on the Hugging Face hub.
        file: its file there (bundled: the folder).
        about: data and setting it was trained for.
        licence: of the weights, as far as it is stated.
    """

    name: str
    where: str
    file: str
    about: str
    licence: str


_UNSTATED = "none stated by its authors"
REGISTRY: dict[str, NamedWeights] = {
    entry.name: entry
    for entry in (
        NamedWeights(
            "ilrm-small",
            "bundled",
            "ilrm-small",
            "2 to 12 views, 128 to 256 px, procedural scenes and captures, feedback",
            "Apache-2.0",
        ),
        NamedWeights("ilrm-re10k-2view", "Gynjn/iLRM", "re10k_2view.ckpt", "RE10K, 2 views, 256x256", _UNSTATED),
        NamedWeights(
            "ilrm-dl3dv-32view", "Gynjn/iLRM", "ilrm_undistort_dl3dv.pt", "DL3DV, 32 views, 540x960", _UNSTATED
        ),
        NamedWeights(
            "ilrm-dl3dv-16view", "Gynjn/iLRM", "ilrm_undistort_dl3dv_16view.pt", "DL3DV, 16 views, 540x960", _UNSTATED
        ),
    )
}


def list_weights() -> list[NamedWeights]:
    """All weights that have a name."""
    return list(REGISTRY.values())


def from_pretrained(source: str | Path) -> ILRM:
    """The network of a name, a path or a hub id ("owner/name"), on the CPU and in evaluation mode.

    Raises:
        WeightsError: no such name or path, no connection, or a file that cannot be used.
    """
    return load_weights(locate(source))


def locate(source: str | Path) -> Path:
    """The local file or folder of a name, path or hub id; downloaded if need be."""
    text = str(source)
    if text in REGISTRY:
        return pull(text)
    path = Path(source)
    if paths.exists(path):
        return path
    if isinstance(source, str) and _HUB_ID.fullmatch(text) and not text.startswith("."):
        _download(text, CONFIG_FILE)
        return _download(text, WEIGHTS_FILE).parent
    raise WeightsError(
        f"There are no weights {text!r}.",
        expected=f"one of {', '.join(REGISTRY)}; the path of a file or folder; or a hub id like owner/name",
        fix="check the spelling, or see `ilrm weights list`",
    )


def pull(name: str) -> Path:
    """The local path of named weights, downloaded into the hub's cache if they are not there yet."""
    if name not in REGISTRY:
        raise WeightsError(f"There are no weights named {name!r}.", expected=f"one of {', '.join(REGISTRY)}")
    entry = REGISTRY[name]
    if entry.where != "bundled":
        return _download(entry.where, entry.file)
    folder = Path(str(resources.files("ilrm"))) / "assets" / "weights" / entry.file
    if not paths.is_file(folder / WEIGHTS_FILE):
        raise WeightsError(f"The bundled weights {name!r} are missing from this installation.", fix="reinstall ilrm")
    return folder


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{file} of {repository} is not in the cache, and the hub cannot be reached.",
            expected="a connection to the Hugging Face hub for the first use",
            fix=f"connect (and unset HF_HUB_OFFLINE), or {_MANUAL}",
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise WeightsError(
            f"The hub has no file {file} in {repository}, or it is not public.",
            fix="check the id, or log in with `hf auth login`",
        ) from error
    except Exception as error:  # the hub's HTTP client raises errors of its own, which differ between its versions
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise WeightsError(f"{file} of {repository} could not be downloaded: {reason}.", fix=_MANUAL) from error


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file holds."""

    path: Path
    layout: Literal["ilrm", "released"]
    parameters: int
    file_bytes: int
    config: ILRMConfig


def describe(source: str | Path) -> WeightsInfo:
    """Read weights completely and say what they are. Raises WeightsError as ``from_pretrained``."""
    path = locate(source)
    model = load_weights(path)
    own = paths.is_dir(path) or path.suffix == ".safetensors"
    file = path / WEIGHTS_FILE if paths.is_dir(path) else path
    return WeightsInfo(path, "ilrm" if own else "released", model.parameter_count(), file.stat().st_size, model.config)


def convert(source: str | Path, target: str | Path, bf16: bool = False, *, overwrite: bool = False) -> WeightsInfo:
    """Write any readable weights in our layout: a ``.safetensors`` file, or a folder (any other name).

    Args:
        overwrite: replace files of the same names that this program has not written.

    Raises:
        WeightsError: as ``from_pretrained``.
        OutputError: the target cannot be written, is the source, or exists and is not ours.
    """
    path, target = locate(source), Path(target)
    if target.suffix == ".safetensors":
        claim_file(target, reads=[path], overwrite=overwrite)
    else:
        check_apart(target, [path])
    save_weights(load_weights(path), target, dtype=torch.bfloat16 if bf16 else None, overwrite=overwrite)
    note_written(target)
    return describe(target)
