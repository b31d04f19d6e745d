"""A training run on disk: one safetensors file with everything that its next step depends on.

Random draws of a step come from (seed, step), learning rates have a closed form and batches are numbered, so weights,
optimiser moments, averaged weights and a few counters are all there is. Files are complete or absent, carry a digest
of their content, and are the same for any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ilrm.core.errors import ConfigError, WeightsError
from ilrm.core.typed_config import build, check_range
from ilrm.files import atomic_file
from ilrm.files.paths import is_dir
from ilrm.train.config import NORMS_KEPT, TrainConfig
from ilrm.train.optim import Average
from ilrm.train.serialise import from_dict, to_dict

FORMAT = 1
# The file that a run goes on from.
LAST = "last"
_METADATA_KEY = "ilrm_checkpoint"
_DIGEST_KEY = "sha256"
_ANOTHER = "copy another checkpoint of the run (best, step_N) over it, or start anew in another folder"
# What may change when a run is continued: how far it goes, how it is split over processes, what is written.
_FREE = {
    *("steps", "accumulate", "compile", "workers", "save_every", "keep_every", "validate_every", "validation_scenes"),
    *("validation", "broken_share", "non_finite", "patience", "read_every", "compute.checkpoint", "compute.attention"),
}


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done, skipped ones included.
        seconds: time spent on them, without start-up.
        seen, unusable, broken: items that were drawn, those of them that could not be used, and those of these with
            damaged data.
        skipped: steps whose update was left out because loss or gradient were not finite.
        best_psnr: of all validations, in dB.
        stale: validations since the best one.
        outliers: steps whose update was left out because the gradient norm stood out.
        norms: the last gradient norms, where those that stand out are left out.
    """

    step: int = 0
    seconds: float = 0.0
    seen: int = 0
    unusable: int = 0
    broken: int = 0
    skipped: int = 0
    best_psnr: float | None = None
    stale: int = 0
    outliers: int = 0
    norms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        names = ("step", "seconds", "seen", "unusable", "broken", "skipped", "stale", "outliers", "norms")
        check_range(self, 0, 2**63 - 1, *names)
        if len(self.norms) > NORMS_KEPT:
            raise ConfigError(f"There are {len(self.norms)} norms.", expected=f"{NORMS_KEPT} at most")


@dataclass(frozen=True)
class _State:
    """What a checkpoint says beside its tensors."""

    progress: Progress
    average_updates: int


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        tensors: by name: ``network.NAME``, ``optimiser.MOMENT.NAME`` and, if weights are averaged, ``average.NAME``.
        average_updates: of the averaged weights.
        config: ``to_dict`` of the run's config.
    """

    progress: Progress
    tensors: dict[str, Tensor]
    average_updates: int
    config: dict[str, Any]


# --- files ----------------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a file that survives a power cut once this returns; until then the earlier one stays.

    Raises:
        OutputError: it cannot be written.
    """
    state = json.dumps(
        {
            "format": FORMAT,
            "progress": asdict(checkpoint.progress),
            "average_updates": checkpoint.average_updates,
            "config": checkpoint.config,
        }
    )
    metadata = {_METADATA_KEY: state, _DIGEST_KEY: _digest(state, checkpoint.tensors)}
    with atomic_file(path) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(checkpoint.tensors, temporary, metadata=metadata)
        except safetensors.SafetensorError as error:  # it hides what the system said
            number = re.search(r"os error (\d+)", str(error))
            code = int(number.group(1)) if number else None
            raise (OSError(code, os.strerror(code)) if code else OSError(str(error))) from error
        temporary.chmod(mode)  # it makes files that only their owner can read
        _flush(temporary)
    _flush(path.parent)


def copy_checkpoint(source: Path, target: Path) -> None:
    """A second file with the same content, as safe as the first. Raises OutputError."""
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)
        _flush(temporary)
    _flush(target.parent)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a whole checkpoint onto the CPU, and verify it. No code of the file is ever run.

    Raises:
        WeightsError: cut short, damaged, of something else, or of a newer version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as opened:  # type: ignore[no-untyped-call]
            metadata = opened.metadata() or {}
            state_text, digest = metadata.get(_METADATA_KEY), metadata.get(_DIGEST_KEY)
            if state_text is None:
                raise WeightsError(f"{path} is no checkpoint of a training run.", expected="a file that it wrote")
            content = json.loads(state_text)
            if (version := content.pop("format")) > FORMAT:
                raise WeightsError(
                    f"{path} was written by a newer version (format {version}).",
                    expected=f"format {FORMAT} at most",
                    fix="update ilrm",
                )
            config = dict(content.pop("config"))
            state = build(_State, content)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if _digest(state_text, tensors) != digest:
            raise WeightsError(f"{path} is damaged: its content does not match its checksum.", fix=_ANOTHER)
        return Checkpoint(state.progress, tensors, state.average_updates, config)
    except WeightsError:
        raise
    except Exception as error:  # of safetensors, of what torch makes of odd types, and of texts that are no state
        reason = error.problem if isinstance(error, ConfigError) else str(error).split("\n")[0]
        raise WeightsError(
            f"{path} cannot be read: {reason}.", expected="a complete checkpoint", fix=_ANOTHER
        ) from error


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the state and all names, types, shapes and values."""
    sha = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        x = tensors[name]
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        sha.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _flush(path: Path) -> None:
    """Have a file or the names in a folder on the disk itself."""
    if os.name == "nt" and is_dir(path):  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- a run's state, as tensors of any number of processes -----------------------------------------------------------


def collect(network: nn.Module, optimiser: torch.optim.Optimizer, average: Average | None) -> dict[str, Tensor]:
    """Everything learned so far, whole and on the CPU. All processes of a sharded run must call it."""
    tensors = {f"network.{name}": _whole(x) for name, x in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for moment, x in optimiser.state[parameter].items():
            tensors[f"optimiser.{moment}.{name}"] = _whole(x)
    if average is not None:
        tensors |= {f"average.{name}": _whole(x) for name, x in average.weights.items()}
    return tensors


def restore(
    checkpoint: Checkpoint, network: nn.Module, optimiser: torch.optim.Optimizer, average: Average | None
) -> None:
    """Put ``collect``'s tensors back, in however many processes the run is continued.

    Raises:
        WeightsError: the tensors are not those of this network.
    """
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimiser": {}, "average": {}}
    for full_name, x in checkpoint.tensors.items():
        part, _, name = full_name.partition(".")
        if part not in parts:
            raise _other_network("parts", [full_name])
        parts[part][name] = x
    _copy(parts["network"], network.state_dict(), "weights")
    if average is not None:
        _copy(parts["average"], average.weights, "averaged weights")
        average.updates = checkpoint.average_updates
    parameters = dict(network.named_parameters())
    fused = {id(p) for g in optimiser.param_groups if g.get("fused") or g.get("capturable") for p in g["params"]}
    for moment_name, x in parts["optimiser"].items():
        moment, _, name = moment_name.partition(".")
        if name not in parameters or x.shape not in (parameters[name].shape, ()):
            raise _other_network("optimiser state", [name])
        parameter = parameters[name]
        # torch counts the steps of a parameter on the CPU, unless its fused kernels do.
        on_cpu = x.ndim == 0 and id(parameter) not in fused
        optimiser.state[parameter][moment] = x.clone() if on_cpu else _as(x, parameter)


def _copy(stored: Mapping[str, Tensor], targets: Mapping[str, Tensor], what: str) -> None:
    differing = sorted(set(stored) ^ set(targets)) or [n for n in targets if stored[n].shape != targets[n].shape]
    if differing:
        raise _other_network(what, differing)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(_as(stored[name], target))


def _other_network(what: str, names: list[str]) -> WeightsError:
    return WeightsError(
        f"The {what} of the checkpoint are those of another network: {', '.join(names[:4])} differ.",
        fix="continue with the version of ilrm that wrote it, or start anew in another folder",
    )


def _whole(x: Tensor) -> Tensor:
    x = x.detach()
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).cpu().contiguous()  # pyright: ignore


def _as(whole: Tensor, template: Tensor) -> Tensor:
    """A whole tensor on the device of another one, and cut into the same shards."""
    whole = whole.to(template.device)
    if not hasattr(template, "device_mesh") or whole.ndim == 0:
        return whole.clone()
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, template.device_mesh, template.placements)  # pyright: ignore


# --- is it the same run? --------------------------------------------------------------------------------------------


def check_same_run(stored: Mapping[str, Any], config: TrainConfig, path: Path) -> None:
    """Refuse to continue a run with another config; steps, intervals and how it is split may differ.

    Args:
        stored: ``to_dict`` of the config that the run was started with. Fields that are younger have their defaults.

    Raises:
        ConfigError: names the fields that differ, with both values.
    """
    old, new = (dict(_leaves(to_dict(c), "")) for c in (from_dict(stored), config))
    differing = [
        f"{name}: {old.get(name, 'nothing')} there, {new.get(name, 'nothing')} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    if differing:
        more = f"\n    and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise ConfigError(
            f"{path} belongs to a run with another config:\n    " + "\n    ".join(differing[:6]) + more,
            expected="the same preset, seed and options as before (steps, minutes and intervals may change)",
            fix="repeat the command that the run was started with, or choose another output folder",
        )


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every value that matters, as JSON, by its dotted name."""
    if name in _FREE:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not items:
        yield name, json.dumps(value)
        return
    for key, below in items:
        yield from _leaves(below, f"{name}.{key}" if name else str(key))
