"""The documents do what they say: their code runs, their defense passes the contract, their site has every page."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_defenses
import yaml

from adapters import defenses
from adapters.protocols import Defense
from bench import spec, sweep
from bench.provenance import Commit
from bench.records import RecordStore
from bench.report import build
from bench.run_cell import CellRunner

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
"""A fenced block: language, file name if any, text."""


def blocks(page: str) -> list[tuple[str, str | None, str]]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


CONTRACT = [
    one
    for name, one in vars(test_defenses).items()
    if name.startswith("test_")
    and list(inspect.signature(one).parameters) == ["defense"]
    and not any(mark.name == "cuda" for mark in getattr(one, "pytestmark", ()))
]


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> Defense:
    """The defense of ``docs/adding_a_defense.md``, registered."""
    (code,) = [code for _, title, code in blocks("adding_a_defense.md") if title]
    module = types.ModuleType("documented_defense")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # pydantic reads the annotations there
    exec(compile(code, "docs/adding_a_defense.md", "exec"), module.__dict__)
    kind: type[Defense] = module.__dict__["NoisyTuning"]
    monkeypatch.setitem(defenses.DEFENSES, kind.name, kind)
    return defenses.build({"name": kind.name, "epochs": 2})


@pytest.mark.parametrize("contract", CONTRACT, ids=lambda one: one.__name__)
def test_the_defense_of_the_documents_passes_the_contract(contract: Callable[[Defense], None], documented: Any) -> None:
    contract(documented)


def test_the_contract_is_the_whole_suite_and_the_defense_is_short(documented: Defense) -> None:
    assert len(CONTRACT) >= 6
    (code,) = [code for _, title, code in blocks("adding_a_defense.md") if title]
    body = code[code.index("class ") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
    assert documented.name == "noisy_tuning"


def _without_ray(command: list[str], here: Path) -> None:
    """What ``bench.sweep`` does, in this process: plan, cells, records, report."""
    options = sweep.parse(command)
    plan = spec.load(options.file, options.overrides, options.data_root)
    runner = CellRunner(options.data_root, options.cache, _cpu(), Commit(None, None))
    store = RecordStore(options.out / plan.name)
    for cell in plan.cells:
        store.append(runner.run(cell))
    build(store.folder)


def _with_ray(command: list[str], here: Path) -> None:
    assert sweep.main(command) == 0


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


@pytest.mark.parametrize("run", [_without_ray, pytest.param(_with_ray, marks=pytest.mark.ray)])
def test_the_tutorial_runs_from_beginning_to_end(
    run: Callable[[list[str], Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    languages, printed = [], ""
    for language, title, code in blocks("tutorial.md"):
        languages.append(language)
        if language == "python":  # each stands by itself
            capsys.readouterr()
            exec(compile(code, "docs/tutorial.md", "exec"), {"__name__": "tutorial"})
            printed = capsys.readouterr().out
        elif language == "text":
            _about_the_same(printed, code)
        elif language == "yaml":
            Path(str(title)).write_text(code, encoding="utf-8")
        else:
            command = code.split()
            assert command[:3] == ["python", "-m", "bench.sweep"]
            run(command[3:], tmp_path)
    assert languages == ["python", "yaml", "bash", "python", "text", "python", "text"]
    records = {record.cell.defense["name"]: record for record in RecordStore(tmp_path / "runs" / "mine").read()}
    assert set(records) == {"none", "fine_tuning", "ibau"}
    assert all(record.status == "ok" for record in records.values()), records
    none = records["none"]
    assert none.asr is not None
    assert none.asr > 0.9  # the tutorial's victim is one
    assert none.acc is not None
    assert none.acc > 0.9  # and no poorly trained one, which any defense would improve
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


NUMBER = re.compile(r"\d+\.\d+")
SHARE = re.compile(r"(?:ACC|ASR|RA|DER) (\d+\.\d+)")


def _about_the_same(printed: str, told: str) -> None:
    """The same words, in whatever order of lines, and shares that another machine's arithmetic may move by a tenth."""
    ours, theirs = (sorted(text.splitlines()) for text in (printed, told))
    assert [NUMBER.sub("#", line) for line in ours] == [NUMBER.sub("#", line) for line in theirs]
    shares = [[float(one) for line in lines for one in SHARE.findall(line)] for lines in (ours, theirs)]
    assert shares[0] == pytest.approx(shares[1], abs=0.1)


@pytest.mark.parametrize("page", ["theory.md"])
def test_the_other_pages_code_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for language, _, code in blocks(page):
        assert language == "python"
        exec(compile(code, page, "exec"), {"__name__": "page"})
    assert len(capsys.readouterr().out.split()) == 5


def test_the_engine_pages_function_gives_the_gradient_that_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (_, _, code), _ = blocks("engine.md")  # the second is for several processes
    exec(compile(code, "docs/engine.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == "tensor([0.4000, 1.4000])\n"


def test_every_page_is_in_the_navigation_and_every_metric_has_one() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(tree: Any) -> Iterator[str]:
        if isinstance(tree, str):
            yield tree
        else:
            for one in tree.values() if isinstance(tree, dict) else tree:
                yield from pages(one)

    assert sorted(pages(config["nav"])) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert config["strict"] is True
    metrics = {path.stem for path in (DOCS / "metrics").glob("*.md")}
    assert metrics == {
        "index", "acc", "asr", "ra", "der", "error_gap", "evasion_accuracy", "seconds", "peak_memory", "passes",
        "intervals",
    }  # fmt: skip


def test_local_links_of_the_documents_lead_somewhere() -> None:
    """The site's own build checks anchors too (``tox -e docs``); this needs nothing installed."""
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_docs_environment_installs_what_the_extra_names() -> None:
    extra = re.search(r"^docs = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert extra
    names = re.findall(r'"([^"]+)"', extra[1])
    assert names
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    assert all(f"\n    {name}\n" in tox for name in names)
