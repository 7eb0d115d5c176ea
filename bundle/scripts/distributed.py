"""Communication between the processes of a distributed training."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .errors import InputError

T = TypeVar("T")


def started() -> bool:
    """Whether this process is one of a distributed training."""
    return dist.is_available() and dist.is_initialized()


def rank_and_size() -> tuple[int, int]:
    """Rank and number of the processes of a distributed training; 0 and 1 without one."""
    if started():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def check_agreed(path: str | None) -> None:
    """That all processes of a distributed run found the same file.

    Raises:
        InputError: another process found another one, or none, as on a machine that does not share the folder.
    """
    _, size = rank_and_size()
    if size > 1:
        found: list[str | None] = [None] * size
        dist.all_gather_object(found, path)
        if len(set(found)) > 1:
            raise InputError(
                f"{path}: the processes found different checkpoints ({', '.join(map(str, found))}); expected one "
                "--output_dir that all machines share."
            )


def of_rank_0(value: T) -> T:
    """The value of the first process, in every process of a distributed run."""
    if rank_and_size()[1] == 1:
        return value
    values: list[T] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


class Gather(torch.autograd.Function):
    """Tensors of one shape of all processes, one after the other along the first axis.

    A process's part enters the losses of all: its gradient is the sum of theirs, which DistributedDataParallel then
    divides by their number, as it does with what enters the own loss alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
