"""``Remote``: a folder on any fsspec path (``s3://…``, ``gs://…``), whose objects are read and written whole."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from adapters.errors import UserError, printable

Value = TypeVar("Value")


class RemoteError(OSError):
    """A remote folder could not be reached, or refused; ``filename`` is its address."""

    def __init__(self, why: str, address: str) -> None:
        super().__init__(errno.EIO, why, address)

    def __str__(self) -> str:
        return f"{self.filename}: cannot be reached or written to ({self.strerror})"


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether ``place`` is an address (``PROTOCOL://…``) and no path of this machine's."""
    return "://" in str(place)


def work_folder(address: str) -> Path:
    """The local folder in which a sweep works whose results go to ``address``: one for each address, in the user's
    folder for caches."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "ibau-bench" / "remote" / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]


class Remote:
    """Objects below ``address``; access rights come from where its fsspec implementation looks for them.

    Neither appending, nor locks, nor renaming is asked of it: only whole objects, whose names do not change.
    """

    def __init__(self, address: str, key: str = "--out") -> None:
        """Raises ``UserError``, naming ``key``, for a protocol that is unknown, or whose package is not installed."""
        from fsspec.core import url_to_fs

        self.address = address.rstrip("/")
        try:
            self._files, root = url_to_fs(address)
        except ImportError as error:
            raise UserError(f"{key}: found {address!r}; expected its package to be installed: {error}") from error
        except ValueError as error:
            raise UserError(f"{key}: found {address!r} ({error}); expected s3://…, gs://… or a folder") from error
        except Exception as error:  # what an implementation raises that finds no access rights, say
            raise UserError(f"{key}: found {address!r}, which cannot be used: {_line(error)}") from error
        self._root = str(root).rstrip("/")

    def names(self, folder: str) -> set[str]:
        """Names of the objects right below ``folder``; none if there is no such folder."""

        def find() -> set[str]:
            self._files.invalidate_cache()
            return {str(one).rsplit("/", 1)[-1] for one in self._files.find(self._path(folder), maxdepth=1)}

        return self._try(find, set())

    def read(self, name: str) -> bytes | None:
        """The object ``name``; None if there is none."""
        return self._try(lambda: bytes(self._files.cat_file(self._path(name))), None)

    def read_all(self, names: Iterable[str]) -> list[bytes]:
        """The objects ``names`` that are there, several at a time where the implementation can."""
        paths = [self._path(name) for name in names]
        if not paths:
            return []
        found: dict[str, Any] = self._try(lambda: self._files.cat(paths, on_error="return"), {})
        for one in found.values():
            if isinstance(one, Exception) and not isinstance(one, FileNotFoundError):
                raise RemoteError(_line(one), self.address) from one
        return [bytes(one) for one in found.values() if not isinstance(one, Exception)]

    def write(self, name: str, content: bytes) -> None:
        """Put the object ``name``, whatever was there; its folders are made where there is such a thing."""
        path = self._path(name)

        def put() -> None:
            self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._files.pipe_file(path, content)

        self._try(put, None)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _try(self, do: Callable[[], Value], absent: Value) -> Value:
        """Raises ``RemoteError`` for whatever ``do`` raises: each implementation has errors of its own."""
        try:
            return do()
        except FileNotFoundError as error:
            if do.__name__ == "put":  # no such bucket
                raise RemoteError(_line(error), self.address) from error
            return absent
        except Exception as error:
            raise RemoteError(_line(error), self.address) from error


def _line(error: BaseException) -> str:
    """One line of printable text."""
    return printable(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
