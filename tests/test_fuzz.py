"""Whatever stands in a sweep file or in a file of records: an error of ours in one line, or a valid result.

Never another exception. A hundred examples each here, ten thousand in ``tox -e faults``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep
import yaml
from fake_cells import record
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.errors import UserError
from bench import includes, spec, sweep
from bench.cells import Cell
from bench.records import Record, RecordStore
from bench.report import rows

HOSTILE = [
    "",
    "~nobody/x.png",
    "a\0b",
    "../../etc/passwd",
    "x" * 300,
    "<script>",
    "$(id)",
    "\ud800",
    "\x1b[2J",
    "\u202e",
]
WORDS = [
    "none", "ibau", "fine_tuning", "badnets", "all_to_all", "image_folder:tiny?size=16", "digits", "name", "image",
    "test_resnet", "add", "united", "checkpoint", "attack", "target", "recipe", "paper", "null",
]  # fmt: skip
KEYS = [
    "name", "cell", "grid", "seeds", "resources", "budgets", "include", "dataset", "model", "attack", "target",
    "poison_ratio", "training", "clean_size", "radius", "defense", "min_asr", "time_limit", "run", "mix", "clean_label",
    "victim", "image", "mode", "mask", "alpha", "checkpoint", "trigger", "epochs", "recipe", "rounds",
    "dataset, model", "seed", "training.epochs", "defense.name", "", "tsne_images", "evasion_radius",
]  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
    | st.sampled_from(HOSTILE) | st.sampled_from([2**63, 2**64, -1, 0, 1, 10**30])
)  # fmt: skip
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | scalars, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def sweep_trees(draw: st.DrawFn) -> Any:
    """A sound sweep file with up to four places changed, or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(trees)
    tree: Any = json.loads(json.dumps(tiny_sweep.tree()))
    for _ in range(draw(st.integers(0, 4))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from([*keys, "new"]))
            if key == "new" or not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
                break
            node = node[key]
        if isinstance(node, list):
            node.append(draw(trees)) if key == "new" else node.__setitem__(key, draw(trees))
        else:
            key = draw(st.sampled_from(KEYS)) if key == "new" else key
            node.pop(key, None) if draw(st.integers(0, 4)) == 0 else node.__setitem__(key, draw(trees))
    return tree


TOKENS = [
    *KEYS, *WORDS, ": ", ":\n  ", "\n", "\n- ", "- ", "  ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<: *a\n",
    "!!bool ", "!!int ", "!!float ", "!!null ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!pairs ", "!!str ",
    "!!map ", "!!seq ", "!!python/name:os.system ", "!x ", "'", '"', "|\n", ">\n", "? ", "#", "---\n", "...\n",
    "%YAML 1.1\n", "\t", "1:60", "2001-13-01", "0x", "0b", "1_0", ".inf", ".nan", "1e400", "~", "=", "\\x", "\\ud800",
    "\ufeff", "\x85",
]  # fmt: skip
texts = st.lists(st.sampled_from(TOKENS) | st.text(max_size=3), max_size=25).map("".join)


MOST = 2000
"""Combinations of an example: more would show nothing else, and take minutes to expand."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_sweep.write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "MAX_COMBINATIONS", MOST)
        yield folder


def _is_ours(error: UserError) -> None:
    message = str(error)
    assert message.isprintable()
    assert 0 < len(message) < 5000


def _load(place: Path, text: str, *overrides: str) -> None:
    path = place / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        plan = includes.load(path, overrides, place / "data")
    except UserError as error:
        _is_ours(error)
        return
    assert plan.cells or not plan.combinations
    assert plan.combinations <= MOST
    for cell in plan.cells[:3]:
        assert Cell.model_validate_json(cell.model_dump_json()) == cell
        assert len(cell.id) == 16


@given(tree=sweep_trees())
@example(tree=tiny_sweep.tree(name="~nobody/x"))
@example(tree=tiny_sweep.tree(seeds=MOST))
def test_any_sweep_file_is_a_plan_or_an_error_of_ours(place: Path, tree: Any) -> None:
    _load(place, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


@given(text=texts)
@example(text="name: !!bool maybe\n")
@example(text='name: !!int ""\n')
@example(text="name: !!float ''\n")
@example(text="name: !!timestamp x\n")
@example(text="name: !!omap [1]\n")
@example(text=f"name: tiny\nseeds: 0x{'f' * 5000}\n")
@example(text=f"name: tiny\ngrid: {{'a, b': [[0x{'f' * 5000}, 1]]}}\n")
@example(text="name: {[1]: 2}\n")
@example(text='name: "\\ud800"\n')
def test_any_text_is_a_plan_or_an_error_of_ours(place: Path, text: str) -> None:
    _load(place, text)


@given(path=st.lists(st.sampled_from(KEYS) | st.text(max_size=3), max_size=3).map(".".join), value=texts)
@example(path="grid.dataset, victim", value=f"[[0x{'f' * 5000}, 1]]")
@example(path="cell.dataset", value=f"0x{'f' * 5000}")
def test_any_override_is_a_plan_or_an_error_of_ours(place: Path, path: str, value: str) -> None:
    _load(place, yaml.safe_dump(tiny_sweep.tree()), f"{path}={value}")


@pytest.mark.parametrize("key", ["--out", "--cache", "--data-root", "FILE"])
def test_an_unknown_users_home_is_an_error_of_ours(key: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = "~nobody_at_all/x.yaml" if key == "FILE" else str(place / "x.yaml")
    assert sweep.main([file, *([] if key == "FILE" else [key, "~nobody_at_all/x"])]) == 2
    assert capsys.readouterr().err.startswith(f"error: {key}: found '~nobody_at_all/x")


# --- records ------------------------------------------------------------------------------------------------------

LINES = [record("none").line(), record("ibau").line(), record("ibau", seed=1).line()]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -1, "ok"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_records(draw: st.DrawFn) -> bytes:
    """A record as one line, some of its values others than they were."""
    tree = json.loads(draw(st.sampled_from(LINES)))
    for _ in range(draw(st.integers(0, 3))):
        node = tree
        key = draw(st.sampled_from([*node, "new"]))
        while isinstance(node.get(key), dict) and node[key] and draw(st.booleans()):
            node = node[key]
            key = draw(st.sampled_from([*node, "new"]))
        if draw(st.integers(0, 4)) == 0:
            node.pop(key, None)
        else:
            node[key] = draw(json_values)
    return json.dumps(tree).encode() + b"\n"


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` cut, flipped by a bit, overwritten, or with something put in between."""
    place = draw(st.integers(0, len(content)))
    junk = draw(st.binary(max_size=12) | st.sampled_from([b"\n", b"\0" * 9, b"\xff\xfe", b"\r\n", b"[" * 3000, b"}{"]))
    kind = draw(st.sampled_from(["as it is", "cut", "bit", "over", "between"]))
    if kind == "cut":
        return content[:place]
    if kind == "bit" and place < len(content):
        return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
    if kind == "over":
        return content[:place] + junk + content[place + len(junk) :]
    return content[:place] + junk + content[place:] if kind == "between" else content


files = (
    st.lists(changed_records() | st.sampled_from(LINES) | st.binary(max_size=20), max_size=4)
    .map(b"".join)
    .flatmap(damaged)
)


@given(content=files)
@example(content=b'{"schema": true}\n')
@example(content=b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\n")
@example(content=b"\xff\xfe{\0}\0\n\0")
@example(content=b'{"schema": 1' + b"0" * 5000 + b"}\n")
def test_any_file_of_records_is_records_or_an_error_of_ours(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "records"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    store = RecordStore(folder)
    store.path.write_bytes(content)
    intact = [line for line in LINES if line in _lines(content)]
    store.objects()
    _report(folder)
    before = _read(store)
    store.repair()
    after = _read(store)
    assert after == before
    assert all(line.rstrip(b"\n") in store.path.read_bytes() for line in intact), "an intact record is gone"
    store.append(record("fine_tuning"))
    if after is not None:
        assert _read(store) == [*(one for one in after if one != record("fine_tuning")), record("fine_tuning")]


def _lines(content: bytes) -> Iterator[bytes]:
    yield from (line + b"\n" for line in content.split(b"\n"))


def _read(store: RecordStore) -> list[Record] | None:
    """None for a file that is refused."""
    try:
        records = store.read()
    except UserError as error:
        _is_ours(error)
        return None
    assert all(Record.model_validate_json(one.line()) == one for one in records)
    return records


def _report(folder: Path) -> None:
    try:
        rows.read(folder)
    except UserError as error:
        _is_ours(error)
