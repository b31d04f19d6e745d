"""One process or many: set-up through Lightning Fabric, and errors that all of them raise together.

One node, N processes started by the command itself, one for each device:
    ilrm train PRESET -o OUT --devices N
Several nodes through torchrun (the same line on each), or one task for each device in a SLURM job:
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        -m ilrm.cli train PRESET -o OUT --devices 8 --nodes 2
    srun --nodes 2 --ntasks-per-node 8 --gres gpu:8 ilrm train PRESET -o OUT --devices 8 --nodes 2
All nodes must see the same OUT.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ilrm.core.errors import ConfigError, IlrmError, MissingExtraError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.strategy import Strategy

StrategyName = Literal["auto", "ddp", "fsdp"]
T = TypeVar("T")

_FIRST_SPEAKS_S = 2.0


@contextmanager
def launch(devices: int, nodes: int, strategy: StrategyName) -> Iterator[Fabric]:
    """Start the other processes if need be, and connect all of them; on the GPU if there is one.

    Raises:
        MissingExtraError: without Lightning Fabric.
        ConfigError: more devices than there are, or numbers that contradict torchrun or SLURM.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtraError("lightning-fabric", "train", "Training") from error
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(f"devices = {devices}: this machine has {torch.cuda.device_count()} that torch can use.")
    try:
        _check_started(devices, nodes)
        if "SLURM_NTASKS" in os.environ:  # Fabric insists on this one, which SLURM sets only where its option was used
            os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(strategy, devices * nodes),
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:  # the latter also where they do not find each other
        raise ConfigError(f"The processes cannot be set up: {error}", fix="see --devices and --nodes") from error
    try:
        yield fabric
    except BaseException:
        # They would wait for this process for ever.
        for process in getattr(fabric.strategy.launcher, "procs", []):
            process.kill()
        raise
    finally:
        # gloo's group is left to the end of the process: its destructor waits, with Python's lock held, for a thread
        # that may be waiting for that lock to drop the last collective's tensors.
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl":
            torch.distributed.destroy_process_group()


class _Started(NamedTuple):
    """By what this process was started: its rank, how many there are, how many on the nodes."""

    by: Literal["torchrun", "SLURM"]
    rank: int
    total: int
    on_nodes: tuple[int, ...]


def _started() -> _Started | None:
    """None where the command itself starts the others; as Fabric decides."""
    environment = os.environ
    if torch.distributed.is_torchelastic_launched():
        rank, total, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return _Started("torchrun", rank, total, (local,))
    # An interactive shell of a job has the variables too.
    if "SLURM_NTASKS" not in environment or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if "SLURM_STEP_ID" not in environment:  # in a batch script, but not by srun
        return _Started("SLURM", 0, 1, (1,))
    total = environment["SLURM_NTASKS"]
    on_nodes = environment.get("SLURM_TASKS_PER_NODE", total).split(",")  # 8 or 8(x2) or 8,4
    rank = int(environment.get("SLURM_PROCID", "0"))
    return _Started("SLURM", rank, int(total), tuple(int(tasks.split("(")[0]) for tasks in on_nodes))


def _check_started(devices: int, nodes: int) -> None:
    """Refuse processes of torchrun or SLURM that are not one for each device: they would train apart, or wait for ever.

    Raises:
        ConfigError: in the first process; the others only end (SystemExit).
    """
    started = _started()
    if started is None or (started.total == devices * nodes and set(started.on_nodes) == {devices}):
        return
    if started.rank > 0:
        time.sleep(_FIRST_SPEAKS_S)  # torchrun ends all as soon as one has ended
        raise SystemExit(1)
    count = f"{started.total} process" if started.total == 1 else f"{started.total} processes"
    there = " and ".join(map(str, dict.fromkeys(started.on_nodes)))
    start = {"torchrun": "torchrun --nnodes {} --nproc-per-node {}", "SLURM": "srun --nodes {} --ntasks-per-node {}"}
    raise ConfigError(
        f"{started.by} started {count}, {there} on a node; --devices {devices} and --nodes {nodes} were given.",
        expected="one process for each device of each node",
        fix=f"correct --devices and --nodes, or start it with {start[started.by].format(nodes, devices)}",
    )


def _strategy(name: StrategyName, processes: int) -> Strategy | str:
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    if name == "fsdp":
        return ModelParallelStrategy(
            _shard, data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy() if name == "ddp" or processes > 1 else "auto"


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2: each update layer by itself, then what is left."""
    from torch.distributed.fsdp import fully_shard

    from ilrm.model.blocks import UpdateLayer

    for layer in module.modules():
        if isinstance(layer, UpdateLayer):
            fully_shard(layer, mesh=mesh["data_parallel"])
    # The root too gives its weights back after each forward pass: between two they may be exchanged for averaged ones.
    return fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True)  # pyright: ignore


def mean_of_all(fabric: Fabric, values: Tensor) -> Tensor:
    """The mean over all processes, on the device; nothing waits for it.

    Fabric's own reduction has a barrier before it, at which NCCL makes the host wait for the device.
    """
    if fabric.world_size == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / fabric.world_size


def gather(fabric: Fabric, value: T) -> list[T]:
    """The values of all processes, in all of them."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def together(fabric: Fabric, action: Callable[[], T], *, first_only: bool = False) -> T | None:
    """Run ``action`` in all processes (or in the first only); if it fails in one of them, all stop.

    Raises:
        IlrmError: in the first process: its own error, or what another one says.
        SystemExit: in the other processes, so that the message is told once.
    """
    result, failure = None, None
    if fabric.is_global_zero or not first_only:
        try:
            result = action()
        except IlrmError as error:
            failure = error
    told = gather(fabric, failure and (failure.problem, failure.expected, failure.fix))
    if not any(told):
        return result
    if not fabric.is_global_zero:
        raise SystemExit(1)
    if failure is not None:
        raise failure
    problem, expected, fix = next(filter(None, told))
    raise IlrmError(problem, expected=expected, fix=fix)
