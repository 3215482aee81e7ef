"""Decoded data sets on disk: written once, checked on every read, mapped into memory instead of copied."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from adapters.datasets.base import Source
from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelledImages

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of every key: raise it whenever decoding, cropping or splitting changes."""
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class _DamagedError(Exception):
    """A cache entry that is not what was written."""


def load_cached(source: Source, root: Path, cache_dir: Path) -> ImageTensors:
    """``source.load(root)`` through the cache; one process decodes and the others wait for it.

    An entry that is damaged is rebuilt with a logged warning. A cache that may only be read serves what it holds;
    raises ``UserError`` where something would have to be written to it.
    """
    folder = cache_dir / "datasets"
    label = _label(source.name)
    entry = folder / f"{label}-{_key(source, root)}"
    with suppress(OSError, _DamagedError):  # without the lock, which all workers of a cluster would wait for in turn
        return _read(entry, source.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{label}.lock")
        lock.acquire()
    except OSError as error:
        return _read_only(entry, source.name, error)
    try:
        try:
            return _read(entry, source.name)
        except FileNotFoundError:
            log.info("%s: decoding into %s", source.name, entry)
        except _DamagedError as error:
            log.warning("%s: the cached copy %s is damaged (%s): decoding it again", source.name, entry, error)
        _write(entry, source.load(root))
        return _read(entry, source.name)
    finally:
        lock.release()


def _read_only(entry: Path, name: str, why: OSError) -> ImageTensors:
    """What a cache that cannot be written to holds already; ``UserError`` if that is nothing, or damaged."""
    try:
        return _read(entry, name)
    except (FileNotFoundError, NotADirectoryError, PermissionError, _DamagedError):
        raise _unwritable(entry.parent, why) from why


def _label(name: str) -> str:
    """``name`` as a file name; unlike names that look alike here still differ in the key."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)[:60]


def _key(source: Source, root: Path) -> str:
    """Hash of what decides the content: the format, the name, and name, size and time of change of every source."""
    digest = hashlib.sha256(json.dumps([FORMAT, source.name]).encode())
    for path in source.sources(root):
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"cell.dataset: {source.name}: cannot read {path} ({error.strerror})") from error
        digest.update(json.dumps([str(path), stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()[:16]


def _write(entry: Path, data: ImageTensors) -> None:
    """Write beside ``entry``, then rename: a reader sees the whole entry or none."""
    arrays = _arrays(data)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f"{entry.name}.tmp-", dir=entry.parent))
        try:
            for name, tensor in arrays.items():
                with (temporary / f"{name}.npy").open("wb") as file:
                    np.save(file, tensor.numpy())
                    file.flush()
                    os.fsync(file.fileno())
            (temporary / "meta.json").write_text(json.dumps(_sealed(_meta(data, arrays))))
            temporary.chmod(0o755)  # mkdtemp's 0700 would lock other users of a shared cache out
            if entry.exists():
                shutil.rmtree(entry)
            temporary.rename(entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _unwritable(entry.parent, error) from error


def _read(entry: Path, name: str) -> ImageTensors:
    """Map an entry into memory. ``FileNotFoundError`` where there is none, ``_DamagedError`` where it is not sound."""
    if not entry.is_dir():
        raise FileNotFoundError(entry)
    try:
        meta = _unsealed(json.loads((entry / "meta.json").read_text()))
        # Copy-on-write: pages are shared and clean, and torch gets a buffer it may regard as writable.
        arrays = {key: np.load(entry / f"{key}.npy", mmap_mode="c", allow_pickle=False) for key in ARRAYS}
        for key, array in arrays.items():
            if _crc32(array) != meta["crc32"][key]:
                raise _DamagedError(f"checksum of {key}.npy")
        tensors = [torch.from_numpy(arrays[key]) for key in ARRAYS]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error
    train, test = LabelledImages(*tensors[:2]), LabelledImages(*tensors[2:])
    return ImageTensors(name, train, test, tuple(meta["class_names"]), meta["pool_size"])


def _arrays(data: ImageTensors) -> dict[str, Tensor]:
    tensors: Sequence[Tensor] = (*data.train, *data.test)
    return {name: tensor.contiguous() for name, tensor in zip(ARRAYS, tensors, strict=True)}


def _meta(data: ImageTensors, arrays: dict[str, Tensor]) -> dict[str, Any]:
    sums = {name: _crc32(tensor.numpy()) for name, tensor in arrays.items()}
    return {"class_names": list(data.class_names), "pool_size": data.pool_size, "crc32": sums}


def _crc32(array: npt.NDArray[Any]) -> int:
    """A second per gigabyte: it guards against damage, not against malice."""
    flat: Any = array.reshape(-1).view(np.uint8)  # numpy's stubs know buffers from Python 3.12 on
    return zlib.crc32(flat)


def _sealed(meta: dict[str, Any]) -> dict[str, Any]:
    return {"meta": meta, "crc32": zlib.crc32(json.dumps(meta, sort_keys=True).encode())}


def _unsealed(tree: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = tree["meta"]
    if _sealed(meta) != tree:
        raise _DamagedError("checksum of meta.json")
    return meta


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cache: cannot write in {folder} ({error.strerror or error})")
