"""Counts how often the host asks a device for a value, also where there is no device: with tensors without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_WAITING = {
    _ATEN._local_scalar_dense.default: "item",  # item(), bool(), float(), int()
    _ATEN.nonzero.default: "nonzero",  # a shape that depends on values
    _ATEN.masked_select.default: "nonzero",
}
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)


class HostReads(TorchDispatchMode):
    """What made the host wait for ``device`` in the context, in order.

    With ``device="meta"`` it stands for any device but the CPU: such tensors have shapes and no values, a read of one
    gives one here, and a copy to the CPU or a shape that depends on values is an error of torch's.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.seen = device, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITING:
            self.note(args[0], _WAITING[func])
            if args[0].is_meta:
                return 1
        if func in _INDEXING and any(index is not None and index.dtype is torch.bool for index in args[1]):
            self.note(args[0], "nonzero")  # x[mask]
        return func(*args, **(kwargs or {}))

    def note(self, source: Tensor, what: str) -> None:
        if source.device.type == self.device:
            self.seen.append(what)


@contextmanager
def counting_reads(device: str = "cpu") -> Iterator[list[str]]:
    """The reads of ``device`` inside; ``tolist()``, which passes no dispatcher, is counted as the one read it is."""
    mode, plain = HostReads(device), Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        mode.note(tensor, "tolist")
        return plain(torch.ones(tensor.shape) if tensor.is_meta else tensor)

    with pytest.MonkeyPatch.context() as patch, mode:
        patch.setattr(Tensor, "tolist", tolist)
        yield mode.seen
