"""Reading a sweep file: YAML to a plain tree, with everything refused that a sweep file has no use for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import UserError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
"""Values in a file once its aliases are written out: a few nested aliases can stand for billions."""
MAX_DEPTH = 40
MAX_INT = 2**63
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and lone surrogates: no name has them, and a terminal or a file may choke on them."""


class _Loader(yaml.SafeLoader):
    """Safe, and stricter: a key given twice is an error, merge keys stay bounded, 1e-3 is a number."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flat: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if node in self._flat:  # seen through another alias
            return
        self._flat.add(node)
        _refuse_duplicates(node)
        super().flatten_mapping(node)
        if len(node.value) > MAX_NODES:
            raise yaml.constructor.ConstructorError(None, None, "merge keys expand without bound", node.start_mark)


# YAML 1.1, which PyYAML follows, wants a dot and a sign in a number with an exponent; nobody writes that.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        name = (key.tag, key.value) if isinstance(key.value, str) else None
        if name in seen and name != ("tag:yaml.org,2002:merge", "<<"):
            raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
        seen.add(name)


def read(path: Path) -> dict[str, Any]:
    """The tree of a sweep file; ``UserError`` in one line, with the place in the file, for anything else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES} bytes; expected a sweep file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a sweep file in YAML") from error
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: found {type(tree).__name__}; expected a mapping with name, cell and grid")
    return tree


def parse(text: str, where: str) -> Any:
    """One YAML document as dicts, lists and scalars; ``where`` names the source in an error."""
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {_describe(error)}; expected plain YAML") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be read; expected at most {MAX_DEPTH} levels") from error
    except (ValueError, ArithmeticError, TypeError, LookupError, AttributeError) as error:
        # PyYAML's constructors trust what is tagged: !!bool maybe, !!int "" or !!timestamp x end in any of these.
        raise UserError(f"{where}: {type(error).__name__}: {str(error)[:200]}; expected plain YAML") from error
    _check_size(tree, where)
    return tree


def _describe(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"invalid YAML ({error})"
    mark = error.problem_mark or error.context_mark
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"invalid YAML{place}: {error.problem or error.context}"


def _check_size(tree: Any, where: str) -> None:
    """Walk the tree as often as its aliases repeat it, and stop at the bound."""
    count = 0
    stack = [(tree, 0)]
    while stack:
        value, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise UserError(f"{where}: more than {MAX_NODES} values or {MAX_DEPTH} levels; expected a sweep file")
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    kind = type(key).__name__
                    raise UserError(f"{where}: a key is a {kind}, no text; expected keys such as name, cell and grid")
                _check_scalar(key, where)
                stack.append((item, depth + 1))
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in value)
        else:
            _check_scalar(value, where)


def _check_scalar(value: Any, where: str) -> None:
    if not (value is None or isinstance(value, str | bool | int | float)):
        raise UserError(f"{where}: found a {type(value).__name__}; expected numbers, text, lists or maps")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: found {value}; expected a finite number")
    if isinstance(value, int) and abs(value) >= MAX_INT:
        raise UserError(f"{where}: found a number of {value.bit_length()} bits; expected less than 64")
    if isinstance(value, str) and _UNFIT.search(value):
        raise UserError(f"{where}: found {value[:40]!r}; expected text without control characters")


def override(tree: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of ``tree`` with each ``PATH.TO.KEY=VALUE`` applied; the value is YAML."""
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not all(_keys(path)):
            raise UserError(f"--set: found {text!r}; expected PATH.TO.KEY=VALUE, e.g. cell.dataset=gtsrb")
        tree = assign(tree, path, parse(value, f"--set {path}"), "--set")
    return _copy(tree)  # type: ignore[no-any-return]


def assign(tree: dict[str, Any], path: str, value: Any, where: str) -> dict[str, Any]:
    """A copy of ``tree`` with the key at ``path`` set; null removes it. ``where`` names the source in an error.

    Everything after ``grid.`` is one key, for an axis may have dots in its name (``grid.training.epochs``). A key of
    ``cell`` is taken out of the axes that set it, so that one value stands where there were several.
    """
    tree, keys = _copy(tree), _keys(path)
    _assign(tree, keys, value, where)
    if keys[0] == "cell" and len(keys) > 1 and value is not None and isinstance(tree.get("grid"), dict):
        grid = dict(axis for name, rows in tree["grid"].items() for axis in _without(".".join(keys[1:]), name, rows))
        tree = {key: item for key, item in tree.items() if key != "grid"} | ({"grid": grid} if grid else {})
    return tree


def _keys(path: str) -> list[str]:
    return path.strip().split(".", 1 if path.strip().startswith("grid.") else -1)


def _without(key: str, axis: Any, rows: Any) -> Iterator[tuple[Any, Any]]:
    """The axis as it is, or less ``key``: its other columns, equal rows once; nothing where ``key`` is all of it."""
    parts = [part.strip() for part in str(axis).split(",")]
    if key not in parts or not isinstance(rows, list):
        yield axis, rows
    elif len(parts) > 1:
        place = parts.index(key)
        short = [row[:place] + row[place + 1 :] if isinstance(row, list) else row for row in rows]
        if len(parts) == 2:
            short = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in short]
        yield ", ".join(parts[:place] + parts[place + 1 :]), list({repr(row): row for row in short}.values())


def _assign(tree: dict[str, Any], keys: Sequence[str], value: Any, where: str) -> None:
    node = tree
    for depth, key in enumerate(keys[:-1]):
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            place = ".".join(keys[: depth + 1])
            raise UserError(f"{where} {'.'.join(keys)}: {place} is {child!r}; expected a mapping to set a key of")
        node = child
    if value is None:
        node.pop(keys[-1], None)
    else:
        node[keys[-1]] = value


def _copy(tree: Any) -> Any:
    """A copy in which nothing is shared: an alias's two places can then be edited apart."""
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_copy(value) for value in tree]
    return tree
