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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from ilrm.errors import ConfigError, IlrmError, MissingExtraError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.strategy import Strategy

StrategyName = Literal["auto", "ddp", "fsdp"]
T = TypeVar("T")


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
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(strategy, devices * nodes),
        )
        fabric.launch()
    except ValueError as error:
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
