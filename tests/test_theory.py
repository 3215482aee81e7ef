"""The plots of the theory: their records hold what the documents say, are current, and can be drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.theory import FIGURES, STUDIES, draw, gaps, measure
from bench.theory.__main__ import main
from bench.theory.concave import exact_hypergradient, implicit_error, quadratic, unrolled_error
from bench.theory.gap_figures import looseness
from bench.theory.measure import SEEDS, STEPS, saved_bytes
from ibau_defense import ascend
from ibau_defense.bounds import network_norms

ROOT = Path(__file__).resolve().parents[1]


def recorded(study: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / "theory" / f"{study}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_recorded_errors_are_under_the_bound_and_vanish() -> None:
    rows = recorded("hypergradient_error")["rows"]
    assert {(row["seed"], row["steps"]) for row in rows} == {(seed, step) for seed in SEEDS for step in STEPS}
    for row in rows:
        assert max(row["implicit"], row["unrolled"]) <= row["bound"]
    assert max(row["implicit"] for row in rows if row["steps"] == STEPS[-1]) < 1e-5


@pytest.mark.parametrize("seed", [0, 7])
def test_the_recorded_errors_are_what_is_measured_today(seed: int) -> None:
    problem, steps = quadratic(seed), STEPS[6]
    size = float(exact_hypergradient(problem).norm())
    rows = recorded("hypergradient_error")["rows"]
    row = next(one for one in rows if (one["seed"], one["steps"]) == (seed, steps))
    implicit, solved = (implicit_error(problem, steps, k) / size for k in (steps, None))
    found = {"implicit": implicit, "solved": solved, "unrolled": unrolled_error(problem, steps) / size}
    assert found == pytest.approx({key: row[key] for key in found}, rel=1e-6)


def test_the_study_of_the_error_measures_shares_of_the_hypergradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SEEDS", SEEDS[:1])
    monkeypatch.setattr(measure, "STEPS", STEPS[:2])
    rows = {(row["seed"], row["steps"]): row for row in recorded("hypergradient_error")["rows"]}
    for row in measure.hypergradient_error():
        assert row == pytest.approx(rows[row["seed"], row["steps"]], rel=1e-6)


def test_the_recorded_bytes_are_what_is_counted_today() -> None:
    rows = recorded("saved_bytes")["rows"]
    today = saved_bytes(counts=(1, 4))
    known = {(row["what"], row["inner_steps"], row["solver_steps"]): row["bytes"] for row in rows}
    found = {(row["what"], row["inner_steps"], row["solver_steps"]): row["bytes"] for row in today}
    assert found == pytest.approx({key: known[key] for key in found}, rel=0.05)
    one = next(row["bytes"] for row in rows if row["what"] == "one_gradient")
    implicit = {row["bytes"] for row in rows if row["what"] == "implicit"}
    assert len(implicit) == 1
    assert implicit.pop() <= 2 * one


def test_an_outer_step_takes_the_steps_that_it_is_counted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def climb(losses: Any, theta: Any, start: Any, ball: Any, ascent: Any) -> Any:
        taken.append(ascent.steps)
        return ascend(losses, theta, start, ball, ascent)

    monkeypatch.setattr(measure, "ascend", climb)
    monkeypatch.setattr(measure, "response_product", lambda *given: taken.append(given[-1].solver.max_steps))
    measure.outer_step(measure.vgg_loss(), 2, 7)
    assert taken == [2, 7]


@pytest.mark.parametrize("study", list(STUDIES))
def test_every_study_is_drawn_with_provenance_and_stands_in_the_documents(study: str) -> None:
    record = recorded(study)
    assert record["provenance"]["commit"]
    assert record["provenance"]["dirty"] is False
    vector, raster = draw(study, record["rows"])
    assert vector.startswith(b"<?xml")
    assert raster.startswith(b"\x89PNG")
    assert draw(study, record["rows"]) == (vector, raster)
    documents = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("engine.md", "theory.md")]
    assert any(f"figures/{study}.svg" in text for text in documents)
    assert (ROOT / "docs" / "figures" / f"{study}.svg").is_file()
    assert list(FIGURES) == list(STUDIES)


def test_the_recorded_linear_gaps_are_under_the_bound_and_what_is_measured_today() -> None:
    rows = recorded("linear_gap")["rows"]
    assert {(row["source"], row["count"]) for row in rows} == {
        *(("two clouds", count) for count in gaps.CLOUDS), *(("digits", count) for count in gaps.DIGITS)
    }  # fmt: skip
    for row in rows:
        assert row["fresh_error"] <= row["risk"] + row["bound"]
        assert row["gap"] == pytest.approx(abs(row["fresh_error"] - row["clean_error"]))
    informative = {(row["source"], row["count"]) for row in rows if row["risk"] + row["bound"] < 1}
    assert informative == {("two clouds", count) for count in gaps.CLOUDS[1:]}  # what docs/theory.md says
    today = gaps.linear_row("two clouds", 1000, seed=3)
    row = next(one for one in rows if (one["source"], one["count"], one["seed"]) == ("two clouds", 1000, 3))
    assert {key: row[key] for key in today} == pytest.approx(today, abs=2e-3)  # sums of other orders flip a few images


def test_the_recorded_network_gaps_are_what_is_measured_today() -> None:
    over_n, over_width = (recorded(f"network_gap_{name}")["rows"] for name in ("clean", "width"))
    assert {row["count"] for row in over_n} == set(gaps.CLEAN)
    assert {row["width"] for row in over_width} == set(gaps.WIDTHS)
    for row in [*over_n, *over_width]:
        assert row["victim_error"] > 0.5 > row["fresh_error"]  # there was a backdoor, and it was unlearned
        assert row["bound"] > 1000  # docs/theory.md: the bound says nothing
        assert row["printed"] > row["bound"]
    today = gaps.network_row(gaps.WIDTHS[0], gaps.FEW, seed=2)
    row = next(one for one in over_width if (one["width"], one["seed"]) == (gaps.WIDTHS[0], 2))
    assert {key: row[key] for key in ("clean_error", "fresh_error")} == pytest.approx(
        {key: today[key] for key in ("clean_error", "fresh_error")}, abs=0.02
    )
    assert row["bound"] == pytest.approx(today["bound"], rel=0.05)


def test_norms_of_a_power_iteration_cut_short_make_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "network_norms", partial(network_norms, max_steps=1))
    with pytest.raises(ValueError, match="expected all to converge"):
        gaps.network_row(gaps.WIDTHS[0], gaps.FEW, seed=2)


def test_unseen_images_are_the_same_whatever_the_clean_set(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(original: Callable[..., float]) -> Callable[..., float]:
        def error(*arguments: Any) -> float:
            counts.append(len(arguments[-1]))
            return original(*arguments)

        return error

    monkeypatch.setattr(gaps, "error", counted(gaps.error))
    monkeypatch.setattr(gaps, "_error", counted(gaps._error))
    for count in (50, 800):
        gaps.linear_row("digits", count, seed=2)
    assert counts == [50, 997, 800, 997]
    counts.clear()
    for count in (25, 400):
        gaps.network_row(gaps.WIDTHS[0], count, seed=2)
    assert counts == [25, 600, 600, 400, 600, 600]


def test_one_study_alone_is_drawn_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--results", str(ROOT / "results" / "theory"), "--figures", str(tmp_path), "--only", "linear_gap"]
    assert main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear_gap.png", "linear_gap.svg"]
    assert capsys.readouterr().out.count("\n") == 1


def test_looseness_is_the_median_factor() -> None:
    rows = [{"gap": 0.1, "bound": 0.2}, {"gap": 0.0, "bound": 1.0}, {"gap": 0.5, "bound": 2.0}]
    assert looseness(rows) == 4


def test_without_a_record_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path), "--figures", str(tmp_path / "figures")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "found no record" in error
