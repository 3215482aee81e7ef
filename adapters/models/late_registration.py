"""Register with a library when it is imported, not before: importing timm costs seconds that few cells need."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(library: str, registration: str) -> None:
    """Import the module ``registration`` as soon as ``library`` has been imported; at once if it is already."""
    if library in sys.modules:
        importlib.import_module(registration)
    else:
        sys.meta_path.insert(0, _Finder(library, registration))


class _Finder(MetaPathFinder):
    """Stands first in the search for one library, steps aside when asked, and has the found loader report back."""

    def __init__(self, library: str, registration: str) -> None:
        self.library, self.registration = library, registration

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.library or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.registration)
        return spec


class _Loader(Loader):
    """The library's own loader, followed by the registration."""

    def __init__(self, loader: Loader, registration: str) -> None:
        self.loader, self.registration = loader, registration

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module(self.registration)
