"""The shape of the project: imports go one way, and importing changes nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"ibau_defense": set(), "adapters": {"ibau_defense"}, "bench": {"adapters", "ibau_defense"}}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    local = imported(path) & {*ALLOWED, "tests", "sweeps"}
    assert local <= ALLOWED[package] | {package}


def test_the_algorithm_needs_torch_alone() -> None:
    known = {"torch", "ibau_defense", *sys.stdlib_module_names}
    for path in (ROOT / "ibau_defense").rglob("*.py"):
        assert imported(path) <= known, path


@pytest.mark.parametrize("module", ["ibau_defense", "adapters.defenses", "bench.spec", "bench.report"])
def test_importing_changes_no_global_state(module: str) -> None:
    """Neither a random generator nor the default dtype, the thread count or the working directory."""
    script = f"""
import os, random, torch, numpy
def state():
    return (torch.random.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
            torch.get_default_dtype(), torch.get_num_threads(), os.getcwd())
before = state()
import {module}
assert state() == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_algorithm_alone_is_light() -> None:
    """A user of ``ibau_defense`` alone does not pay for Ray, ART or timm."""
    script = (
        "import sys, ibau_defense; print(sorted({'ray', 'art', 'timm', 'pydantic', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
