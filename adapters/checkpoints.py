"""Poisoned models from elsewhere, as state dicts. Nothing is ever unpickled freely: ``weights_only`` always holds.

Read are the I-BAU authors' ``.pth`` (``{"net": ...}``), BackdoorBench's ``attack_result.pt`` (``{"model": ...}`` beside
names, paths and numpy arrays), ``{"state_dict": ...}``, a bare state dict, and ``.safetensors``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import struct
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adapters.errors import UserError
from adapters.models.normalised import Normalised
from adapters.models.stems import Enlarged

KEY = "victim.checkpoint"
NESTED = ("net", "state_dict", "model", "model_state_dict")
WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.)*")
"""What wrapped modules have before the names of their own, one prefix a wrapper."""

# What torch raises on a file that is not a checkpoint, besides refusing it: the restricted unpickler reads whatever
# bytes there are as instructions of a small stack machine.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    tarfile.TarError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    MemoryError,
)


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict in ``path``, on the CPU: parameter and buffer names to finite tensors.

    The prefixes that ``DataParallel`` and ``torch.compile`` put before every name are taken off, in whatever order.
    Raises ``UserError`` (one line) for a file that is missing, unreadable, holds anything but plain data, or holds NaN
    or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{KEY}: no file at {path}; expected a state dict (.pth, .pt or .safetensors)")
    tree = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _find_state(tree, path)
    shared = os.path.commonprefix(list(state))  # noqa: RUF071 (letter by letter is what is meant)
    if wrappers := WRAPPERS.match(shared):  # always: it may be empty
        state = {name.removeprefix(wrappers[0]): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{KEY}: {path} holds NaN or infinite values in {name!r}; expected finite weights")
    return state


def load_into(model: nn.Module, path: Path) -> None:
    """Load ``path`` into ``model``; the names and shapes are checked first, so that a failure changes nothing.

    Behind a normalisation, or an enlargement of the images, a network has its own names, or those of the whole.
    Raises ``UserError`` naming the first key that does not fit, and what ``load_state`` raises.
    """
    state = load_state(path)
    while isinstance(model, Normalised | Enlarged) and not all(name.startswith("network.") for name in state):
        model = model.network
    own = model.state_dict()
    # Counters of BatchNorm's batches are bookkeeping, and checkpoints from before torch 0.4.1 lack them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    common = [name for name in own if name in state]
    wrong = [name for name in common if own[name].shape != state[name].shape]
    cast = [name for name in common if own[name].is_floating_point() and not state[name].is_floating_point()]
    if wrong:
        name = wrong[0]
        problem = f"{name!r} has shape {tuple(state[name].shape)}; expected {tuple(own[name].shape)}"
    elif cast:
        problem = f"{cast[0]!r} is {str(state[cast[0]].dtype).removeprefix('torch.')}; expected a floating dtype"
    elif missing or extra:
        problem = f"{len(missing)} missing keys{_first(missing)}, {len(extra)} unknown keys{_first(extra)}"
    else:
        model.load_state_dict({**own, **state})
        return
    raise UserError(f"{KEY}: {path} does not fit the model {type(model).__name__}: {problem}")


def _first(names: list[str]) -> str:
    return f" (the first is {names[0]!r})" if names else ""


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{KEY}: {path} is not a safetensors file ({error})") from error


def _read_torch(path: Path) -> Any:
    try:
        with _stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on old file formats; the file is not the user's making
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(_explain(path, error)) from error


def _explain(path: Path, error: BaseException) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return (
            f"{KEY}: {path} is refused: unpickling it would call {refused[1]}, and code in a checkpoint is never run; "
            "expected tensors only, as torch.save(model.state_dict(), PATH) writes them"
        )
    # torch wraps the cause in its advice to unpickle freely, which is not ours to pass on.
    cause = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    foreign = "weights_only" in cause or isinstance(error, LookupError)  # of a text read as a pickle
    first = "it is not in a format of torch.save" if foreign else cause.splitlines()[0]
    return f"{KEY}: {path} cannot be read as a checkpoint ({first[:200]}); expected a state dict saved by torch"


def _find_state(tree: Any, path: Path) -> dict[str, Tensor]:
    candidates = [tree]
    if isinstance(tree, Mapping):
        candidates += [tree[key] for key in NESTED if key in tree]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(_is_entry(*item) for item in candidate.items()):
            return {name: tensor.detach() for name, tensor in candidate.items()}
    found = f"keys {', '.join(sorted(map(str, tree)))[:200]}" if isinstance(tree, Mapping) else type(tree).__name__
    raise UserError(
        f"{KEY}: {path} holds no state dict (found {found}); expected one, or one under {', '.join(NESTED)}"
    )


def _is_entry(name: object, tensor: object) -> bool:
    return isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided


class _StandIn:
    """Takes the place of a numpy array, a numpy scalar or a path, and holds nothing."""

    def __init__(self, *content: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_ins() -> contextlib.AbstractContextManager[object]:
    """Let files through that hold numpy arrays or paths beside the weights, without building either.

    BackdoorBench's do. Allowing numpy's own functions would hand them bytes of the file's choosing, so each name is
    bound to an empty class instead.
    """
    names = [(package, name) for package in ("pathlib", "pathlib._local") for name in _PATHS]
    names += [(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
    names += [("numpy", "ndarray"), ("numpy", "dtype")]
    return torch.serialization.safe_globals(
        [type(name, (_StandIn,), {"__module__": package, "__qualname__": name}) for package, name in names]
    )


_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
