"""Triggers with settings of their own: what a sweep file may say, what it becomes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import tiny_sweep
import torch
import yaml
from fake_records import cell, record
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import data
from pydantic import Field, TypeAdapter

from adapters import attacks
from adapters.attacks import FITS, TRIGGERS
from adapters.attacks.settings import of_factory, of_fit
from adapters.errors import UserError
from adapters.protocols import Trigger
from adapters.trigger_names import named
from bench import spec
from bench.cells import Cell, NamedTrigger, plain, title
from bench.jobs import Job
from bench.records import Record
from bench.report import beside, names
from bench.report.records_table import one_cell_sweep
from bench.report.rows import from_record
from bench.summary import table
from bench.titles import describe
from bench.triggers import TriggerStore, cell_attacks, clean_cell
from bench.victims import VictimStore

SETTINGS = {name: of_fit(fit) for name, fit in FITS.items()} | {name: of_factory(one) for name, one in TRIGGERS.items()}
SHAPE = (3, 16, 128)
"""Wide enough for every number of periods that is drawn."""


@st.composite
def mappings(draw: st.DrawFn, names: Any = tuple(SETTINGS)) -> dict[str, Any]:
    """``{name: …}`` with some settings, each in its range, in any order."""
    name = draw(st.sampled_from(names))
    chosen = draw(st.lists(st.sampled_from(sorted(SETTINGS[name])), unique=True))
    found = {}
    for key in chosen:
        default = SETTINGS[name][key].default
        found[key] = draw(st.integers(2, 31) if isinstance(default, int) else st.floats(1e-6, 1) | st.just(default))
    return dict(draw(st.permutations([("name", name), *found.items()])))


def sweep(folder: Path, attack: Any, grid: dict[str, Any] | None = None) -> spec.SweepPlan:
    tree = tiny_sweep.tree(grid=grid or {"seeds": [1]})
    tree["cell"] |= {"attack": attack, "poison_ratio": 0.1, "defense": "none"}
    if isinstance(attack, list):
        del tree["cell"]["target"]
    if grid is None:
        del tree["grid"]
    return spec.load(tiny_sweep.write(folder, tree), (), folder)


@given(mappings())
def test_a_normal_mapping_holds_what_differs_from_the_defaults(given_: dict[str, Any]) -> None:
    name = given_["name"]
    defaults = {key: one.default for key, one in SETTINGS[name].items()}
    changed = {key: value for key, value in given_.items() if key != "name" and value != defaults[key]}
    found = attacks.normal(given_)
    assert found == ({"name": name, **changed} if changed else name)
    assert attacks.normal(found) == found
    assert attacks.normal({**defaults, **given_}) == found
    assert attacks.normal({**dict.fromkeys(defaults), **given_}) == found  # null asks for the default
    assert attacks.needs_fit(found) == (name in FITS)
    assert attacks.name_of(found) == named(name, changed)


@given(mappings(), mappings())
def test_names_are_equal_exactly_if_triggers_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    one, other = attacks.normal(one), attacks.normal(other)  # type: ignore[assignment]
    assert (attacks.name_of(one) == attacks.name_of(other)) == (one == other)


def test_names_tell_neighbouring_numbers_apart() -> None:
    assert named("blend", {"alpha": 0.1}) == "blend (alpha 0.1)"
    assert named("blend", {"alpha": 0.1 + 1e-12}) != named("blend", {"alpha": 0.1})
    assert named("l2_inv", {"stages": 6, "rms": 1.0}) == "l2_inv (rms 1, stages 6)"


@settings(max_examples=30, deadline=None)
@given(mappings(tuple(TRIGGERS)))
def test_what_is_built_is_called_by_its_settings_and_stays_in_range(given_: dict[str, Any]) -> None:
    trigger = attacks.build(given_, SHAPE, 0)
    assert trigger.name == attacks.name_of(attacks.normal(given_))
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    shown = trigger(images)
    assert shown.shape == images.shape
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1


def test_settings_do_what_they_say() -> None:
    images = torch.full((1, 3, 32, 32), 0.5)

    def change(**given_: Any) -> torch.Tensor:
        return (attacks.build(given_, (3, 32, 32), 0)(images) - 0.5).abs()[0]

    for side in (2, 4, 5):
        assert int((change(name="badnets", side=side)[0] > 0).sum()) == side**2
    assert change(name="badnets", side=3, margin=0)[0, 29:, 29:].min() > 0
    full = attacks.build("blend", (3, 32, 32), 0)
    torch.testing.assert_close(change(name="blend", alpha=0.1), (full(images) - 0.5).abs()[0] / 2)
    assert float(change(name="sig", amplitude=0.3).max()) == pytest.approx(0.3, abs=0.01)
    once = change(name="sig", periods=1)[0, 0]
    assert int((once[1:-1] > once[:-2]).logical_and(once[1:-1] >= once[2:]).sum()) == 2  # the two halves of one wave
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    moved = [float((attacks.build(one, (3, 32, 32), 0)(noise) - noise).abs().mean()) for one in (
        {"name": "wanet", "strength": 0.1}, "wanet", {"name": "wanet", "strength": 2},
    )]  # fmt: skip
    assert moved == sorted(moved)
    assert moved[0] < moved[-1]


def test_more_periods_than_images_can_show_are_refused() -> None:
    """They were capped: two names for one trigger."""
    message = r"^here\.periods: found 9; expected at most 8, a quarter of the images' width \(32\)$"
    with pytest.raises(UserError, match=message):
        attacks.build({"name": "sig", "periods": 9}, (3, 32, 32), 0, "here")
    images = torch.full((1, 3, 16, 16), 0.5)
    plain, four = (attacks.build(one, (3, 16, 16), 0)(images) for one in ("sig", {"name": "sig", "periods": 4}))
    assert torch.equal(plain, four)  # six, the default, are four at this width


FAULTS: dict[str, tuple[Any, str]] = {
    "name": ({"name": "blnd", "alpha": 0.1}, "cell.attack.name: unknown name 'blnd'; expected one of: badnets, blend"),
    "name a list": ({"name": ["blend"]}, "cell.attack.name: found ['blend']; expected one of: badnets"),
    "setting": ({"name": "blend", "beta": 1}, "cell.attack.beta: unknown setting of 'blend'; expected one of: alpha"),
    "another's": ({"name": "smooth", "rms": 0.1}, "cell.attack.rms: unknown setting of 'smooth'; expected one of: alp"),
    "seed": ({"name": "badnets", "seed": 1}, "cell.attack.seed: unknown setting of 'badnets'; expected one of: side"),
    "too large": ({"name": "blend", "alpha": 1.5}, "cell.attack.alpha: found 1.5; expected less than or equal to 1"),
    "zero": ({"name": "l2_inv", "rms": 0}, "cell.attack.rms: found 0; expected greater than 0"),
    "text": ({"name": "sig", "amplitude": "0.1"}, "cell.attack.amplitude: found '0.1'; expected a valid number"),
    "truth": ({"name": "smooth", "steps": True}, "cell.attack.steps: found True; expected a valid integer"),
    "fraction": ({"name": "badnets", "side": 4.5}, "cell.attack.side: found 4.5; expected a valid integer"),
    "mapping": ({"name": "wanet", "points": {"a": 1}}, "cell.attack.points: found {'a': 1}; expected a valid integer"),
    "both kinds": (
        {"name": "blend", "image": "a.png", "mode": "add"},
        "cell.attack.name: unknown key; expected one of",
    ),
    "in a list": (
        [{"attack": "badnets", "target": 1}, {"attack": {"name": "blend", "alpha": 2}, "target": 2}],
        "cell.attack.1.attack.alpha: found 2; expected less than or equal to 1",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_one_line_that_names_the_key(case: str, tmp_path: Path) -> None:
    attack, message = FAULTS[case]
    with pytest.raises(UserError) as found:
        sweep(tmp_path, attack)
    assert str(found.value).startswith(message)


def test_faults_of_an_axis_name_the_axis(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^grid\.attack\.alpha: found 3; expected less"):
        sweep(tmp_path, {"name": "blend"}, {"attack.alpha": [0.1, 3]})
    with pytest.raises(UserError, match=r"^cell\.attack\.side: unknown setting of 'blend'"):
        sweep(tmp_path, {"name": "blend", "side": 3}, {"attack.alpha": [0.1]})
    tree = tiny_sweep.tree(grid={"attack": ["badnets", {"name": "sig", "periods": 0}]})
    del tree["cell"]["attack"]
    tree["cell"] |= {"poison_ratio": 0.1, "defense": "none"}
    with pytest.raises(UserError, match=r"^grid\.attack\.periods: found 0; expected greater"):
        spec.load(tiny_sweep.write(tmp_path, tree), (), tmp_path)
    tree = tiny_sweep.tree(grid={"training.epochs": [0], "poison_ratio": [0.1], "defense": ["none"]})
    del tree["cell"]["training"]
    with pytest.raises(UserError, match=r"^grid\.training\.epochs: found 0; expected greater"):
        spec.load(tiny_sweep.write(tmp_path, tree), (), tmp_path)


def test_an_axis_over_a_setting(tmp_path: Path) -> None:
    cells = sweep(tmp_path, {"name": "blend"}, {"attack.alpha": [0.1, 0.2, None]}).cells
    assert [cell.attack for cell in cells] == [NamedTrigger.model_validate({"name": "blend", "alpha": 0.1}), "blend"]
    (bare,) = sweep(tmp_path, "blend").cells
    assert (cells[1].id, cells[1].victim_id) == (bare.id, bare.victim_id)
    assert cells[0].victim_id != bare.victim_id


@settings(max_examples=25, deadline=None)
@given(given_=mappings())
def test_a_cell_comes_back_from_json_and_from_its_own_sweep_file(
    tmp_path_factory: pytest.TempPathFactory, given_: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (cell,) = sweep(folder, given_).cells
    assert Cell.model_validate_json(cell.model_dump_json()) == cell
    assert cell.attack is not None
    assert not isinstance(cell.attack, tuple)
    assert plain(cell.attack) == attacks.normal(given_)
    row = from_record({"id": cell.id, "cell": json.loads(cell.model_dump_json()), "status": "ok"})
    (again,) = spec.load(tiny_sweep.write(folder, yaml.safe_load(one_cell_sweep(row)), "one.yaml"), (), folder).cells
    assert again.id == cell.id
    assert row.attack == title(cell.attack) == attacks.name_of(attacks.normal(given_))


TWO = [{"attack": {"name": "blend", "alpha": alpha}, "target": k} for k, alpha in enumerate((0.1, 0.2))]


def made(**changes: Any) -> Cell:
    parts = {"dataset": "made", "model": "simplified_vgg", "poison_ratio": 0.2, "defense": {"name": "none"}}
    return Cell.model_validate({**parts, "training": {"epochs": 1, "batch_size": 32}, **changes})


def test_two_variants_in_one_cell_keep_apart_and_equal_ones_are_refused() -> None:
    found = [trigger.name for trigger, _ in cell_attacks(made(attack=TWO), data())]
    assert found == ["blend (alpha 0.1)", "blend"]
    twice = [TWO[0], {"attack": "blend", "target": 1}, TWO[1]]
    with pytest.raises(UserError, match=r"cell.attack\[2\].attack: 'blend' is listed twice"):
        cell_attacks(made(attack=twice), data())


def test_a_fitted_trigger_has_a_file_for_each_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick: Any = dataclasses.replace(FITS["smooth"], steps=1)  # type: ignore[type-var]
    monkeypatch.setitem(attacks.FITS, "smooth", quick)
    store = VictimStore(tmp_path)
    cells = [made(attack=one, target=1) for one in ("smooth", {"name": "smooth", "alpha": 0.1}, {"name": "smooth"})]
    (one,), (other,), (same,) = (
        [trigger for trigger, _ in store.attacks(cell, data(), torch.device("cpu"))] for cell in cells
    )
    assert isinstance(one, attacks.FittedTrigger)
    assert isinstance(other, attacks.FittedTrigger)
    assert isinstance(same, attacks.FittedTrigger)
    assert [one.name, other.name, same.name] == ["smooth", "smooth (alpha 0.1)", "smooth"]
    assert one.digest == same.digest != other.digest
    assert torch.all(other.keep == 0.9)
    assert other.provenance["settings"] == {**dataclasses.asdict(quick), "alpha": 0.1}
    ((again, _),) = store.attacks(cells[1], data(), torch.device("cpu"))
    assert (again.name, len(list((tmp_path / "triggers").glob("*.safetensors")))) == ("smooth (alpha 0.1)", 2)
    triggers = TriggerStore(tmp_path, store.get_or_train)
    clean = clean_cell(cells[0], data().image_shape)
    assert [triggers.lacks(cell, clean) for cell in cells] == [False] * 3
    assert triggers.lacks(made(attack={"name": "smooth", "alpha": 0.3}, target=1), clean)


def test_a_trigger_from_elsewhere_may_have_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def dim(
        image_shape: tuple[int, int, int], seed: int = 0, *, share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    ) -> Trigger:
        trigger = attacks.build({"name": "blend", "alpha": share}, image_shape, seed)
        trigger.name = "dim"
        return trigger

    monkeypatch.setitem(attacks.TRIGGERS, "dim", dim)
    assert attacks.build("dim", SHAPE, 0).name == "dim"
    assert attacks.build({"name": "dim", "share": 0.25}, SHAPE, 0).name == "dim (share 0.25)"
    with pytest.raises(UserError, match=r"cell\.attack\.share: found 1; expected less than 1"):
        attacks.check({"name": "dim", "share": 1})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, -1, [0.1]])
def test_no_number_out_of_range_passes(value: Any) -> None:
    with pytest.raises(UserError, match=r"^cell\.attack\.rate: found .*; expected "):
        attacks.check({"name": "trojan_sq", "rate": value})


def test_progress_and_summary_tell_the_settings() -> None:
    one = made(attack={"name": "blend", "alpha": 0.1}, target=1)
    tree = record(cell("none", attack={"name": "blend", "alpha": 0.1}))
    plain_tree = record(cell("none", attack="blend"))
    rows = [Record.model_validate(one) for one in (tree, plain_tree)]
    assert {"blend", "blend (alpha 0.1)"} <= set(table(rows).columns[1].cells)
    assert "blend (alpha 0.1) → 1" in describe(Job("victim", one, one.victim_id, one.victim_id))


def test_the_papers_figure_never_stands_beside_a_changed_trigger() -> None:
    def row(attack: Any, **changes: Any) -> Any:
        setting = {"dataset": "cifar10", "poison_ratio": 0.2, "clean_size": 2500, "attack": attack, "target": 1}
        return from_record(record(cell("none", **{**setting, **changes})))

    assert beside.one_trigger(row("blend"), 2500) != ("", "")
    changed = row({"name": "blend", "alpha": 0.1})
    assert (changed.attack, names.attack_name(changed.attack)) == ("blend (alpha 0.1)", "Blend (alpha 0.1)")
    assert beside.one_trigger(changed, 2500) == ("", "")
    assert changed.changed_trigger
    assert not row("blend").changed_trigger
    assert beside.attack_of(row({"name": "badnets", "side": 5}, target="all_to_all")) == ""
    assert changed.victim_key != row("blend").victim_key != row({"name": "blend", "alpha": 0.3}).victim_key
    brought = {"checkpoint": "a.pth", "trigger": {"name": "blend", "alpha": 0.1}, "target": 1}
    own = row(None, victim=brought, target=None, poison_ratio=None)
    assert (own.attack, own.changed_trigger, beside.one_trigger(own, 2500)) == ("blend (alpha 0.1)", True, ("", ""))
    assert row([TWO[0], {"attack": "blend", "target": 1}], target=None).changed_trigger


def test_the_ranges_hold_the_defaults() -> None:
    for name, known in SETTINGS.items():
        for key, one in known.items():
            assert TypeAdapter(one.kind).validate_python(one.default, strict=True) == one.default, (name, key)
    assert set(SETTINGS["badnets"]) == {"side", "margin"}
    assert set(SETTINGS["wanet"]) == {"points", "strength"}


def test_the_documents_list_every_setting_with_its_default() -> None:
    text = (Path(__file__).parents[1] / "docs" / "attacks.md").read_text()
    section = text.partition("## Settings of a trigger")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    told: dict[str, dict[str, float]] = {}
    for line in lines:
        triggers, listed = line.strip("| ").split(" | ")
        pairs = re.findall(r"`(\w+)` ([\d.]+)(?:/(\d+))?", listed)
        for name in re.findall(r"`(\w+)`", triggers):
            told[name] = {key: float(value) / float(below or 1) for key, value, below in pairs}
    assert told == {name: {key: one.default for key, one in known.items()} for name, known in SETTINGS.items()}
