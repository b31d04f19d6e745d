"""Our own weights on disk: ``config.json`` and ``model.safetensors`` in a folder, or one ``.safetensors`` file that
carries the config in its metadata. Nothing is ever unpickled with code execution.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from ilrm.core.errors import ConfigError, WeightsError
from ilrm.core.typed_config import build
from ilrm.files import atomic_folder, paths, settle, write_bytes, write_text
from ilrm.files.reading import parse_json, read_text
from ilrm.files.torch_files import LazyTensor, load_lazily, share_reasonably
from ilrm.model.config import ComputeConfig, ILRMConfig
from ilrm.model.ilrm import ILRM
from ilrm.model.weights import official

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_METADATA_KEY, _COMPUTE_KEY = "ilrm_config", "compute"
_DOWNLOAD_AGAIN = "download or convert it again"


def load_weights(path: str | Path, dtype: torch.dtype = torch.float32) -> ILRM:
    """A network with the weights of a file or folder, on the CPU and in evaluation mode.

    Args:
        path: a folder or ``.safetensors`` file of ours, or a released ``.ckpt`` / ``.pt`` / ``.pth`` file.
        dtype: precision of the parameters (files may hold less).

    Raises:
        WeightsError: missing, truncated, foreign or code-carrying file; tensors that do not fit the network,
            each named.
    """
    path = Path(path)
    settle(path)
    if not paths.exists(path):
        raise WeightsError(
            f"{path} does not exist.", expected="a weights file or folder", fix="see `ilrm weights list` for names"
        )
    if paths.is_dir(path) or path.suffix == ".safetensors":
        config, compute, tensors = _read_own(path)
    else:
        (config, tensors), compute = _read_released(path), ComputeConfig()
    model = _fill(config, tensors, dtype, str(path))
    model.compute = compute
    return model


def save_weights(model: ILRM, path: str | Path, dtype: torch.dtype | None = None, *, overwrite: bool = False) -> None:
    """Write a network to one ``.safetensors`` file, or to a folder (any other name).

    Args:
        dtype: precision in the file; the parameters' own by default.
        overwrite: replace a config and weights in the folder that an earlier call has not written.

    Raises:
        OutputError: they cannot be written, or the folder holds another config or other weights.
    """
    path = Path(path)
    described = model.config.to_dict()
    if model.compute.mini_batch != "none":  # trained so, and meant to be computed so
        described[_COMPUTE_KEY] = {"mini_batch": model.compute.mini_batch}
    config = json.dumps(described, indent=1)
    state = {name: x.detach().to("cpu", dtype).contiguous() for name, x in model.state_dict().items()}
    content = save(state, metadata={_METADATA_KEY: config})
    if path.suffix == ".safetensors":
        write_bytes(path, content)
        return
    # Both or neither: the config of one network beside the tensors of another would be worse than none.
    with atomic_folder(path, (CONFIG_FILE, WEIGHTS_FILE), overwrite=overwrite) as folder:
        write_text(folder / CONFIG_FILE, config + "\n")
        write_bytes(folder / WEIGHTS_FILE, content)


def _read_own(path: Path) -> tuple[ILRMConfig, ComputeConfig, dict[str, Tensor]]:
    folder, file = (path, path / WEIGHTS_FILE) if paths.is_dir(path) else (None, path)
    if not paths.is_file(file):
        raise WeightsError(f"{path} holds no {WEIGHTS_FILE}.", fix=_DOWNLOAD_AGAIN)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # of safetensors, and what torch makes of odd types and shapes
        raise WeightsError(
            f"{file} cannot be read: {_reason(error)}.", expected="a complete safetensors file", fix=_DOWNLOAD_AGAIN
        ) from error
    text, source = metadata.get(_METADATA_KEY), f"The network config in {file}"
    if folder is not None and paths.is_file(folder / CONFIG_FILE):
        text, source = read_text(folder / CONFIG_FILE, WeightsError), str(folder / CONFIG_FILE)
    if text is None:
        raise WeightsError(
            f"{file} says nothing about its network.",
            expected=f"a {CONFIG_FILE} beside it, or metadata written by ilrm",
        )
    try:
        values = parse_json(text, source, WeightsError)
        compute = {}
        if isinstance(values, dict):
            compute = values.pop(_COMPUTE_KEY, {})
            # Where the first files had them.
            values.pop("checkpoint", None)
            if "mini_batch" in values:
                compute = {"mini_batch": values.pop("mini_batch")}
        return ILRMConfig.from_dict(values), build(ComputeConfig, compute), tensors
    except ConfigError as error:
        raise WeightsError(f"{path}: {error.problem}", expected=error.expected, fix=error.fix) from error


def _read_released(path: Path) -> tuple[ILRMConfig, dict[str, LazyTensor]]:
    content = load_pickle_safely(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = named_tensors(content, path)
    layout = official.detect(tensors)
    if layout is None:
        some = ", ".join(list(tensors)[:3])
        raise WeightsError(
            f"{path} is in no layout that is known here (it starts with {some}).",
            expected="a released iLRM checkpoint, or a file written by `ilrm weights convert`",
        )
    config = official.infer_config(layout, tensors, str(path))
    return config, official.rename(layout, tensors, config.layers)


def named_tensors(content: object, path: Path) -> dict[str, LazyTensor]:
    """What ``load_pickle_safely`` gave, if it is a dictionary of tensors.

    Raises:
        WeightsError: it is not, or its tensors together are larger than their data.
    """
    if isinstance(content, dict) and content:
        tensors = {name: x for name, x in content.items() if isinstance(name, str) and isinstance(x, LazyTensor)}
        if len(tensors) == len(content) and share_reasonably(list(tensors.values())):
            return tensors
    raise WeightsError(f"{path} holds no weights.", expected="a dictionary of tensors", fix=_DOWNLOAD_AGAIN)


def load_pickle_safely(path: Path) -> object:
    """What ``torch.save`` wrote: plain values, and tensors that are yet to be read.

    Raises:
        WeightsError: the file is truncated, no torch file, holds anything but tensors and plain values, or promises
            more than it holds.
    """
    try:
        return load_lazily(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} was refused: {error}.",
            expected="a checkpoint of tensors and plain containers; objects that run code when read are never loaded",
            fix="get the weights from a source you trust, as safetensors if there is a choice",
        ) from error
    except Exception as error:  # zip files can be damaged in many ways
        raise WeightsError(
            f"{path} cannot be read: {_reason(error)}.", expected="a complete torch checkpoint", fix=_DOWNLOAD_AGAIN
        ) from error


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def _fill(
    config: ILRMConfig, tensors: Mapping[str, Tensor] | Mapping[str, LazyTensor], dtype: torch.dtype, source: str
) -> ILRM:
    """A network of that config with exactly these tensors."""
    if config.layers > len(tensors):  # before a module is made for each
        raise WeightsError(
            f"{source} holds {len(tensors)} tensors, too few for {config.layers} layers.", fix=_DOWNLOAD_AGAIN
        )
    with torch.device("meta"):
        model = ILRM(config)
    expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(x.shape)} instead of {expected[name]}"
        for name, x in tensors.items()
        if name in expected and tuple(x.shape) != expected[name]
    ]
    complaints = [
        *([f"missing: {_some(missing)}"] if missing else []),
        *([f"unexpected: {_some(unexpected)}"] if unexpected else []),
        *([f"wrong shape: {_some(shapes)}"] if shapes else []),
    ]
    if complaints:
        raise WeightsError(
            f"The tensors of {source} do not fit the network. " + "; ".join(complaints) + ".",
            expected=f"{len(expected)} tensors of a network with width {config.width} and {config.layers} layers",
            fix=_DOWNLOAD_AGAIN,
        )
    bad = [name for name, x in tensors.items() if not x.dtype.is_floating_point]
    values = {}
    for name in [name for name in tensors if name not in bad]:
        x = tensors[name]
        values[name] = (x if isinstance(x, Tensor) else _read(x, source)).to(dtype)
        if not torch.isfinite(values[name]).all():
            bad.append(name)
    if bad:
        raise WeightsError(f"{source} holds values that are not finite numbers in {_some(bad)}.", fix=_DOWNLOAD_AGAIN)
    model.load_state_dict(values, strict=True, assign=True)
    return model.eval()


def _read(tensor: LazyTensor, source: str) -> Tensor:
    try:
        return tensor.read()
    except OSError as error:
        raise WeightsError(f"{source} cannot be read: {error}.", fix=_DOWNLOAD_AGAIN) from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
