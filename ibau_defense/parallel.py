"""Data-parallel unlearning: the images of a mini-batch are shared among ranks, everything else is replicated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
import torch.distributed as distributed
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group, and the sums they form together.

    Every rank holds the same model, images and seed, and draws the same mini-batches; it differentiates its own share
    of each, and a sum over the ranks (one ``all_reduce`` a pass) leaves the whole on all of them. The vectors of the
    ascent, the solver and the optimiser are replicated: each rank computes them from the same sums. All ranks must
    make the same calls in the same order.

    Attributes:
        group: an initialised process group this process belongs to; its backend must serve the tensors' device
            (gloo for the CPU, NCCL for CUDA).
    """

    group: ProcessGroup

    @property
    def size(self) -> int:
        return distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return distributed.get_rank(self.group)

    def share(self, count: int) -> slice:
        """This rank's part of ``count`` things: contiguous, sizes at most one apart, possibly empty."""
        return share_of(count, self.rank, self.size)

    @torch.no_grad()
    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over the ranks, in the tensors' shapes and dtypes; the arguments stay as they are.

        One collective a dtype, whatever the number of tensors.
        """
        found: list[Tensor] = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            which = [index for index, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[index].detach().reshape(-1) for index in which])
            distributed.all_reduce(flat, group=self.group)
            pieces = flat.split([tensors[index].numel() for index in which])
            for index, piece in zip(which, pieces, strict=True):
                found[index] = piece.view_as(tensors[index])
        return found

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any rank; the same answer on all of them."""
        found = torch.tensor(int(flag), device=device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=self.group)
        return bool(found)

    @torch.no_grad()
    def check_same(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Refuse tensors whose sizes or sums differ between ranks.

        Raises:
            ValueError: on every rank, naming ``what``.
        """
        device = tensors[0].device
        size = torch.tensor(float(sum(tensor.numel() for tensor in tensors)), device=device, dtype=torch.float64)
        total = torch.stack([tensor.double().nan_to_num().sum() for tensor in tensors]).sum()
        prints = torch.stack([size, total])
        extremes = torch.cat([prints, -prints])
        distributed.all_reduce(extremes, op=distributed.ReduceOp.MAX, group=self.group)
        high, low = extremes[:2], -extremes[2:]
        if bool((high - low > 1e-9 * (1 + high.abs())).any()):
            raise ValueError(
                f"{what}: found different ones on the {self.size} ranks; expected the same on all: each rank takes "
                "its own share of the images itself"
            )


def share_of(count: int, rank: int, size: int) -> slice:
    """Part ``rank`` of ``size`` parts of ``count`` things."""
    return slice(count * rank // size, count * (rank + 1) // size)


def ranks_from(group: ProcessGroup | Literal["world"] | None) -> Ranks | None:
    """``None`` for one process alone; ``"world"`` for torch's default group.

    Raises:
        ValueError: ``"world"`` without ``torch.distributed.init_process_group``, or a group this process is not in.
    """
    if group is None:
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            f"group: found {group!r}, but torch.distributed is not initialised; expected a call of "
            "torch.distributed.init_process_group before, or group=None"
        )
    found = distributed.group.WORLD if group == "world" else group
    if found is None or isinstance(found, str) or distributed.get_rank(found) < 0:
        raise ValueError(f"group: found {group!r}; expected 'world' or a process group that this process belongs to")
    return Ranks(found)


@runtime_checkable
class Shared(Protocol):
    """An objective whose ``parts`` may be one rank's share of it."""

    @property
    def ranks(self) -> Ranks | None: ...


def ranks_of(objective: object) -> Ranks | None:
    """The processes that share ``objective``; None where this one has it all."""
    return objective.ranks if isinstance(objective, Shared) else None


def total(objective: object, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over the ranks that share ``objective``; the tensors themselves where one process has it all."""
    ranks = ranks_of(objective)
    return list(tensors) if ranks is None else ranks.sum(tensors)
